"""The page at `/` in a real Chromium against a real server."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.running import CAT, RunningServer

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
DROP = """
([bytes, type]) => {
  const data = new DataTransfer();
  const raw = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  data.items.add(new File([raw], "dropped.jpg", { type }));
  const target = document.getElementById("drop");
  for (const kind of ["dragenter", "dragover", "drop"])
    target.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
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


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    """The open page. At the end: no request left the origin, and the console has no error but for refused requests."""
    page = browser.new_page()
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    expect(page.locator("#model option").first).to_contain_text("@")
    yield page
    page.close()
    assert requests
    assert all(url.startswith((server.url, "data:", "blob:")) for url in requests)
    assert [problem for problem in problems if "status of 4" not in problem] == []


def choose(page: Page, model: str) -> None:
    value = page.locator("#model option").filter(has_text=model).first.get_attribute("value")
    page.locator("#model").select_option(value)


def test_chosen_photo_gets_labelled_bars_and_stage_times(page: Page) -> None:
    choose(page, "efficientnet-lite0")
    page.locator("#photo").set_input_files(CAT)
    answer = page.locator("#answer")
    if page.locator("#results").inner_text() == "":
        page.locator("#predict").click()
    expect(answer).to_contain_text("tiger cat")
    expect(answer).to_contain_text("Egyptian cat")
    expect(answer).to_contain_text("efficientnet-lite0@1.1.0")
    for stage in ("decode", "queue", "preprocess", "inference", "postprocess", "total"):
        expect(page.locator("#legend")).to_contain_text(stage)


def test_dropped_photo_is_answered(page: Page) -> None:
    choose(page, "efficientnet-lite0")
    page.evaluate(DROP, [base64.b64encode(CAT.read_bytes()).decode(), "image/jpeg"])
    page.locator("#predict").click()
    expect(page.locator("#answer")).to_contain_text("tiger cat")


def test_drawn_stroke_is_read_as_one(page: Page) -> None:
    choose(page, "digits")
    canvas = page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + box["height"] * 0.15)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] * 0.85, steps=20)
    page.mouse.up()
    if page.locator("#predict").is_visible():
        page.locator("#predict").click()
    expect(page.locator("#results")).to_contain_text("1")
    expect(page.locator("#answer")).to_contain_text("digits@1.1.0")


def test_text_called_jpg_shows_the_sentence_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    fake = tmp_path / "photo.jpg"
    fake.write_text("I am no photo")
    choose(page, "efficientnet-lite0")
    page.locator("#photo").set_input_files(fake)
    page.locator("#predict").click()
    expect(page.locator("#error")).to_contain_text("not an image that can be read")
    page.locator("#photo").set_input_files(CAT)
    page.locator("#predict").click()
    expect(page.locator("#answer")).to_contain_text("tiger cat")


def test_keyboard_alone_suffices(page: Page) -> None:
    choose(page, "digits")
    expect(page.locator("#canvas")).to_be_visible()
    page.locator("#canvas").focus()
    expect(page.locator("#canvas")).to_be_focused()
    page.keyboard.press("Space")
    for _ in range(12):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.locator("#predict").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_contain_text("digits@1.1.0")
