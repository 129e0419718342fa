"""`:predict` of models that take images: encoded ones as base64 under any name, or their pixels."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image


def encoded(colour: tuple[int, int, int]) -> dict[str, str]:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return {"b64": base64.b64encode(file.getvalue()).decode()}


RED, BLUE = encoded((255, 0, 0)), encoded((0, 0, 255))
PIXELS = [[[255, 0, 0]] * 4] * 4


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"instances": [RED, BLUE]}, {"predictions": [[1, 0, 0], [0, 0, 1]]}),
        ({"instances": [{"image_bytes": RED}, {"image_bytes": BLUE}]}, {"predictions": [[1, 0, 0], [0, 0, 1]]}),
        ({"instances": [{"image": BLUE}]}, {"predictions": [[0, 0, 1]]}),
        ({"inputs": RED}, {"outputs": [[1, 0, 0]]}),
        ({"inputs": [RED, BLUE]}, {"outputs": [[1, 0, 0], [0, 0, 1]]}),
        ({"inputs": {"image_bytes": [BLUE]}}, {"outputs": [[0, 0, 1]]}),
        ({"inputs": {"image_bytes": BLUE}}, {"outputs": [[0, 0, 1]]}),
        ({"instances": [PIXELS]}, {"predictions": [[1, 0, 0]]}),
        ({"inputs": {"image": [PIXELS, PIXELS]}}, {"outputs": [[1, 0, 0], [1, 0, 0]]}),
    ],
)
def test_images_are_answered_in_order(serving: httpx.Client, body: Any, expected: Any) -> None:
    answer = serving.post("/colour:predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == expected


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"instances": [RED, {"b64": "!!"}]}, "bad_image", "image 1 (counted from 0) is not base64"),
        ({"instances": [RED, {"b64": "AAAA"}]}, "bad_image", ""),
        ({"instances": [RED, 5]}, "bad_image", "image 1"),
        ({"instances": [RED["b64"]]}, "bad_image", 'must be {"b64": '),
        ({"inputs": {"image": RED, "other": RED}}, "bad_tensor", "there is no input 'other'"),
        ({"inputs": [RED] * 65}, "body_too_large", "65 images in one request; send at most 64"),
        ({"instances": [[[1]]]}, "bad_tensor", "input 'image' has shape"),
    ],
)
def test_images_that_are_none(serving: httpx.Client, body: Any, code: str, words: str) -> None:
    answer = serving.post("/colour:predict", json=body)
    assert answer.json()["code"] == code, answer.text
    assert answer.status_code == (413 if code == "body_too_large" else 400)
    assert words in answer.json()["error"]


def test_images_answer_as_predict_does(client: httpx.Client, cat: bytes) -> None:
    text = base64.b64encode(cat).decode()
    ((scores,),) = (
        client.post("/v1/models/efficientnet-lite0:predict", json={"instances": [{"b64": text}]}).json().values()
    )
    predictions = client.post("/predict", json={"image": text, "top_k": 3}).json()["predictions"]
    assert sorted(scores, reverse=True)[:3] == [one["confidence"] for one in predictions]
    assert [scores[one["index"]] for one in predictions] == [one["confidence"] for one in predictions]
