"""The page at `/` in a real Chromium against a real server."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.running import CAT, MODELS, PATIENCE_SECONDS, RunningServer, running_server

try:
    from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("playwright is not installed; pip install playwright", allow_module_level=True)

UI = Path(__file__).parent.parent.parent / "app" / "ui"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What a drop or a paste of a photo is to a page; `type` is the event's.
TRANSFER = """
([bytes, type]) => {
  const data = new DataTransfer();
  const raw = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0));
  data.items.add(new File([raw], "photo.jpg", { type: "image/jpeg" }));
  const init = { dataTransfer: data, clipboardData: data, bubbles: true, cancelable: true };
  const event = type === "paste" ? new ClipboardEvent(type, init) : new DragEvent(type, init);
  document.getElementById("drop").dispatchEvent(event);
  return event.defaultPrevented;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing")
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser: Browser, url: str, **options: object) -> Iterator[Page]:
    """A page in a context of its own. At the end: no request left the origin, nothing but refused requests in the
    console, which is where a violation of the Content-Security-Policy would stand, too."""
    expect.set_options(timeout=PATIENCE_SECONDS / 3 * 1e3)
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.goto(url)
    yield page
    context.close()
    assert [address for address in requests if not address.startswith((f"{url}/", "data:", f"blob:{url}/"))] == []
    assert [problem for problem in problems if "responded with a status of 4" not in problem] == []


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    with open_page(browser, server.url) as page:
        yield page


@pytest.fixture
def phone(browser: Browser, server: RunningServer) -> Iterator[Page]:
    size = {"width": 360, "height": 640}
    with open_page(browser, server.url, viewport=size, has_touch=True, is_mobile=True, color_scheme="dark") as page:
        yield page


def expect_cat(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("tiger cat 42.1 %")
    expect(page.locator(".bars .label")).to_have_count(5)
    expect(page.locator(".bars .label").first).to_have_text("tiger cat")
    expect(page.locator("#results")).to_contain_text("tabby cat")


def choose_digits(page: Page) -> None:
    page.get_by_label("Model", exact=True).select_option("digits@1.1.0")
    expect(page.locator("#canvas")).to_be_visible()


def wait_for(page: Page, held: list[Route], count: int) -> None:
    """A request is seen before its handler has run."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while len(held) < count and time.monotonic() < limit:
        page.wait_for_timeout(10)
    assert len(held) == count


def transfer_cat(page: Page, event: str) -> bool:
    """Whether the page took the event, so that the browser does not open the photo in its place."""
    return bool(page.evaluate(TRANSFER, [base64.b64encode(CAT.read_bytes()).decode(), event]))


def test_models_are_listed_with_the_default_first(page: Page) -> None:
    options = page.locator("#model option")
    expect(options).to_have_text(
        [
            "efficientnet-lite0@1.1.0 (stable)",
            "efficientnet-lite0-tflite@1.0.0 (stable)",
            "digits@1.1.0 (stable)",
            "digits@1.0.0",
            "sentiment@1.0.0 (stable)",
            "digits-cascade@1.0.0 (stable)",
            "recommender@1.0.0 (stable)",
        ]
    )
    expect(page.locator("#model")).to_have_value("efficientnet-lite0@1.1.0")


def test_chosen_photo_gets_labelled_bars_and_stage_times(page: Page) -> None:
    page.locator("#photo").set_input_files(CAT)
    expect_cat(page)
    expect(page.locator("#source")).to_have_text("efficientnet-lite0@1.1.0 (stable)")
    expect(page.locator("#preview")).to_be_visible()
    stages = ["decode", "queue", "preprocess", "inference", "postprocess", "other"]
    expect(page.locator("#legend dt")).to_have_text([*stages, "total", "round trip"])
    expect(page.locator("#stack span")).to_have_count(len(stages))
    *parts, total, round_trip = (float(text.removesuffix(" ms")) for text in page.locator("dd").all_inner_texts())
    assert sum(parts) == pytest.approx(total, abs=0.05 * len(parts))
    assert 0 < total < round_trip


def test_written_text_is_read(page: Page) -> None:
    page.get_by_label("Model", exact=True).select_option("sentiment@1.0.0")
    expect(page.locator("#model-note")).to_have_text("text classification")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#error")).to_contain_text("The text is empty")
    page.get_by_label("Text", exact=True).fill("A warm and “funny” film. 很好看")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator(".bars .label").first).to_have_text("positive")
    expect(page.locator("#command")).to_have_value(re.compile("很好看.*sentiment@1.0.0"))


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dropped_or_pasted_photo_goes_to_the_image_model(page: Page, event: str) -> None:
    choose_digits(page)
    if event == "drop":
        assert transfer_cat(page, "dragover")
    assert transfer_cat(page, event) == (event == "drop")
    expect_cat(page)
    expect(page.locator("#model")).to_have_value("efficientnet-lite0@1.1.0")


def test_photo_dropped_before_the_models_are_listed_is_not_lost(page: Page) -> None:
    held: list[Route] = []
    page.route("**/models", lambda route: held.append(route))
    page.reload()
    transfer_cat(page, "drop")
    wait_for(page, held, 1)
    held[0].continue_()
    expect_cat(page)


def test_drawn_stroke_is_read_as_one(page: Page) -> None:
    choose_digits(page)
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    x = box["x"] + box["width"] * 0.3  # neither in the middle nor of full height: the page centres and scales
    page.mouse.move(x, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] * 0.7, steps=10)
    with page.expect_request("**/predict") as sent:
        page.mouse.up()
    expect(page.locator(".bars .label").first).to_have_text("1")
    expect(page.locator("#source")).to_have_text("digits@1.1.0 (stable)")
    row = sent.value.post_data_json["inputs"][0]
    assert len(row) == 64
    # Of scikit-learn's 1797 digits, 98 % have a sum of 251 to 397; each has something in the first and last row.
    assert 251 <= sum(row) <= 397
    assert min(row) == 0
    assert max(row) == 16
    assert all(max(row[index : index + 8]) > 0 for index in range(0, 64, 8))
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#results")).to_be_empty()


def test_keyboard_alone_suffices(page: Page) -> None:
    expect(page.get_by_label("Model", exact=True)).to_be_enabled()
    page.get_by_label("Model", exact=True).focus()
    page.keyboard.press("d")  # the first option that begins so
    expect(page.locator("#canvas")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator("#canvas")).to_be_focused()
    page.keyboard.press("Space")
    for _ in range(15):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_contain_text("1 ")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Clear")).to_be_focused()
    page.keyboard.press("Tab")
    with page.expect_response("**/predict"):
        page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Predict")).to_be_focused()


def test_text_called_jpg_shows_the_sentence_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    fake = tmp_path / "photo.jpg"
    fake.write_text("I am no photo")
    with page.expect_response("**/predict?*") as answered:
        page.locator("#photo").set_input_files(fake)
    request_id = answered.value.header_value("x-request-id")
    assert request_id
    alert = page.get_by_role("alert")
    expect(alert).to_have_text(
        f"This is not an image that can be read; send JPEG, PNG, WebP, GIF, BMP or TIFF request {request_id}"
    )
    expect(page.locator("#preview")).to_be_hidden()
    page.locator("#photo").set_input_files(CAT)
    expect_cat(page)
    expect(alert).to_be_empty()


def test_running_request_is_sent_once_and_aborted_by_the_next_photo(page: Page) -> None:
    held: list[Route] = []
    page.route("**/predict?*", lambda route: held.append(route))
    with page.expect_request("**/predict?*"):
        page.locator("#photo").set_input_files(CAT)
    button = page.locator("#predict")
    expect(button).to_have_text("Running…")
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
    button.click(force=True)
    with page.expect_event("requestfailed"):
        transfer_cat(page, "paste")
    wait_for(page, held, 2)
    held[1].continue_()
    expect_cat(page)
    expect(button).to_have_text("Predict")


def test_copied_command_gives_the_same_answer(page: Page, server: RunningServer) -> None:
    page.locator("#photo").set_input_files(CAT)
    expect_cat(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#copied")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == (
        f"curl '{server.url}/predict?model=efficientnet-lite0@1.1.0' -H 'Content-Type: image/jpeg' "
        "--data-binary @cat.jpg"
    )


def test_key_is_asked_for_after_401_and_kept_in_memory_only(browser: Browser, tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "log", workers=1, HEADWAY_API_KEYS="open-sesame") as server,
        open_page(browser, server.url) as page,
    ):
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("valid key")
        expect(field).to_have_value("")
        field.fill("open-sesame")
        field.press("Enter")
        expect(page.locator("#model")).to_have_value("efficientnet-lite0@1.1.0")
        expect(field).to_be_hidden()
        page.locator("#photo").set_input_files(CAT)
        expect_cat(page)
        assert "open-sesame" not in page.locator("#command").input_value()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_rows_of_numbers_for_a_model_without_labels(browser: Browser, tmp_path: Path) -> None:
    version = tmp_path / "models" / "plain" / "1.0.0"
    version.mkdir(parents=True)
    shutil.copy(MODELS / "digits" / "1.0.0" / "model.onnx", version)
    manifest = yaml.safe_load((MODELS / "digits" / "1.0.0" / "model.yaml").read_text())
    manifest = {
        key: manifest[key] for key in ("schema", "version", "runtime", "inputs", "outputs", "processing", "licence")
    } | {
        "name": "plain",
        "task": "tensor",
        "files": {"model.onnx": manifest["files"]["model.onnx"]},
        "answer": {"type": "tensor"},
    }
    (version / "model.yaml").write_text(yaml.safe_dump(manifest))
    with (
        running_server(tmp_path / "log", workers=1, HEADWAY_MODELS=str(tmp_path / "models")) as server,
        open_page(browser, server.url) as page,
    ):
        rows = page.get_by_label("Inputs, as JSON")
        expect(rows).to_have_value(str([[0] * 64]).replace(" ", ""))
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("pre")).to_contain_text(manifest["outputs"][0]["name"])
        rows.fill("[[1, 2")
        page.get_by_role("button", name="Predict").click()
        expect(page.get_by_role("alert")).to_contain_text("The inputs are not JSON")


def test_page_works_behind_a_root_path(browser: Browser, server: RunningServer) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/*", lambda route: route.continue_(url=route.request.url.replace("/prefix/", "/")))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{server.url}/prefix/")
    page.locator("#photo").set_input_files(CAT)
    expect_cat(page)
    assert all(url.startswith((f"{server.url}/prefix/", "data:", "blob:")) for url in requests)
    context.close()


def test_phone_needs_no_sideways_scrolling(phone: Page) -> None:
    fits = "document.documentElement.scrollWidth <= innerWidth"
    phone.locator("#photo").set_input_files(CAT)
    expect_cat(phone)
    expect(phone.locator("#status")).to_be_in_viewport()
    assert phone.evaluate(fits)
    choose_digits(phone)
    phone.locator("#canvas").tap()
    expect(phone.locator(".bars")).to_be_visible()
    assert phone.evaluate(fits)


def test_page_stays_small() -> None:
    assert sum((UI / name).stat().st_size for name in ("index.html", "page.js", "page.css")) < 31_000
