"""A tensor as the whole body: answered as the same numbers in JSON are, and refused with a sentence that helps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from app.registry.servables.loading import load_servable
from tests.fixtures_models import write_model, write_release
from tests.running import MODELS, PATIENCE_SECONDS, running_server

HEADERS = {"content-type": "application/octet-stream"}
KINDS = ("scores", "sum", "two_inputs", "echo", "double", "transpose", "lookup", "colour")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One worker that serves models whose answers can be worked out by hand, and has no default."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        write_model(root, kind.replace("_", "-"), kind=kind)
        write_release(root, kind.replace("_", "-"), "1.0.0")
    log = tmp_path_factory.mktemp("tiny") / "log"
    with (
        running_server(log, workers=1, HEADWAY_MODELS=str(root)) as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as client,
    ):
        yield client


def post(client: httpx.Client, tensor: np.ndarray | bytes, **query: str | int) -> httpx.Response:
    body = tensor if isinstance(tensor, bytes) else tensor.tobytes()
    return client.post("/predict", params=query, content=body, headers=HEADERS)


def without_ids(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    del body["request_id"]
    for result in body.get("results", ()):
        del result["prediction_id"]
    return body


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("scores", np.array([[0.1, 0.7, 0.2]], "<f4")),
        ("scores", np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [0, 0, 1]], "<f4")),
        ("sum", np.array([[1, 2, 3], [4, 5, 6]], "<f4")),
        ("double", np.array(21, "<f4")),
        ("transpose", np.array([[1, 2, 3], [4, 5, 6]], "<f4")),
        ("lookup", np.array([2, 0, 1], "<i8")),
    ],
)
def test_a_tensor_is_answered_as_its_numbers_in_json(tiny: httpx.Client, model: str, tensor: np.ndarray) -> None:
    numbers = tensor.tolist() if tensor.ndim else {"x": tensor.item()}
    expected = without_ids(tiny.post("/predict", json={"inputs": numbers, "model": model}))
    assert without_ids(post(tiny, tensor, model=model)) == expected


def test_top_k_is_taken_from_the_query(tiny: httpx.Client) -> None:
    results = post(tiny, np.array([[0.1, 0.7, 0.2]], "<f4"), model="scores@1.0.0", top_k=2).json()["results"]
    assert [prediction["label"] for prediction in results[0]["predictions"]] == ["middle", "high"]


def test_without_a_model_the_default_for_tensors_answers(client: httpx.Client) -> None:
    rows = np.arange(128, dtype="<f4").reshape(2, 64) % 17
    expected = without_ids(client.post("/predict", json={"inputs": rows.tolist()}))
    assert expected["model"] == "digits"
    assert without_ids(post(client, rows)) == expected


def test_an_image_model_takes_its_prepared_tensor(client: httpx.Client, cat: bytes) -> None:
    servable = load_servable(MODELS / "efficientnet-lite0/1.1.0", threads=1)
    (prepared,) = servable.prepare("image", cat).values()
    expected = client.post("/predict", content=cat, headers={"content-type": "image/jpeg"}).json()["predictions"]
    answer = post(client, np.concatenate([prepared, np.zeros_like(prepared)]), model="efficientnet-lite0")
    results = answer.json()["results"]
    assert len(results) == 2
    assert [one["label"] for one in results[0]["predictions"]] == [one["label"] for one in expected]
    assert results[0] != results[1]


def test_not_a_number_is_passed_on_and_named_in_the_answer(tiny: httpx.Client) -> None:
    answer = without_ids(post(tiny, np.array([[np.nan, 1, 2]], "<f4"), model="sum"))
    assert answer["results"] == [{"value": None}]
    assert "not finite" in answer["warnings"][0]


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "half a number": ("scores", b"\0" * 13, "takes 12 bytes a row (FP32 [n, 3]); the body has 13 bytes"),
    "empty": ("scores", b"", "takes 12 bytes a row (FP32 [n, 3]); the body has 0 bytes"),
    "too few": ("transpose", b"\0" * 20, "takes 24 bytes (FP32 [2, 3]); the body has 20 bytes"),
    "two tensors for one": ("transpose", b"\0" * 48, "the body has 48 bytes"),
    "several inputs": ("two-inputs", b"\0" * 16, "the inputs a, b, and a raw body carries one; send JSON"),
    "strings": ("echo", b"text", "takes strings"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bytes_that_do_not_fit_the_model_are_refused(tiny: httpx.Client, case: str) -> None:
    model, body, words = REFUSED[case]
    answer = post(tiny, body, model=model)
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_tensor"
    assert words in answer.json()["error"]
    counted = tiny.get("/metrics").text
    assert f'headway_requests_total{{code="400",model="{model}",protocol="predict",version="1.0.0"}}' in counted


@pytest.mark.parametrize(
    ("beginning", "media_type"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"II*\0", "image/tiff"),
        (b"MM\0*", "image/tiff"),
        (b"BM", "image/bmp"),
    ],
)
def test_an_image_file_is_told_its_content_type(tiny: httpx.Client, beginning: bytes, media_type: str) -> None:
    for query in ({"model": "colour"}, {"model": "scores"}, {}):  # {}: there is no default
        answer = post(tiny, beginning + b"\1" * 101, **query)
        assert answer.status_code == 400
        assert f"send {media_type} as its Content-Type" in answer.json()["error"]


def test_a_tensor_that_begins_like_an_image_file_is_taken(tiny: httpx.Client) -> None:
    answer = post(tiny, (b"\xff\xd8\xff" * 16), model="colour")
    assert answer.status_code == 200
    assert answer.json()["results"][0]["predictions"][0]["label"] in ("red", "blue")


def test_a_photo_without_a_model_is_told_its_content_type(client: httpx.Client, cat: bytes) -> None:
    answer = post(client, cat + b"\0" * (256 - len(cat) % 256 + 1))
    assert answer.status_code == 400
    assert "send image/jpeg" in answer.json()["error"]


def test_an_unknown_query_parameter_is_refused(client: httpx.Client) -> None:
    answer = post(client, b"\0" * 256, shape="1,64")
    assert answer.status_code == 422
    assert "'shape'" in answer.json()["error"]
