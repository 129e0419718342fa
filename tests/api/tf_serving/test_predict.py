"""`:predict` over real sockets: both formats, every kind of tensor, the same answers as the other protocols give."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.running import RunningServer


def send(client: httpx.Client, subject: str, body: Any, **headers: str) -> httpx.Response:
    return client.post(f"/{subject}:predict", content=json.dumps(body), headers=headers)


def answered(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        ("scores", {"instances": [[1, 2, 3], [0, 0, 1]]}, {"predictions": [[1, 2, 3], [0, 0, 1]]}),
        ("scores", {"instances": [{"x": [1, 2, 3]}]}, {"predictions": [[1, 2, 3]]}),
        ("scores", {"inputs": [[1, 2, 3]]}, {"outputs": [[1, 2, 3]]}),
        ("scores", {"inputs": {"x": [[1, 2, 3]]}}, {"outputs": [[1, 2, 3]]}),
        ("sum", {"instances": [[1, 2, 3], [0, 0, 1]]}, {"predictions": [[6], [1]]}),
        ("one-row", {"instances": [[1, 2, 3], [0, 0, 1]]}, {"predictions": [[6], [1]]}),
        ("lookup", {"instances": [2, 0, 1]}, {"predictions": [30, 10, 20]}),
        ("positive", {"instances": [[1, -1, 0]]}, {"predictions": [[True, False, False]]}),
        ("double", {"inputs": 2.5}, {"outputs": 5}),
        ("transpose", {"inputs": [[1, 2, 3], [4, 5, 6]]}, {"outputs": [[1, 4], [2, 5], [3, 6]]}),
        ("centred", {"instances": [[1, 2, 3], [3, 2, 1]]}, {"predictions": [[-1, 0, 1], [1, 0, -1]]}),
        ("scaled", {"inputs": {"x": [[1, 2], [3, 4]], "by": 10}}, {"outputs": [[10, 20], [30, 40]]}),
        ("two-inputs", {"instances": [{"a": [1, 2], "b": [3, 4]}]}, {"predictions": [[4, 6]]}),
        (
            "pair",
            {"instances": [{"a": [5, 6], "b": [3, 4]}, {"b": [1, 1], "a": [0, 0]}]},
            {"predictions": [{"sum": [8, 10], "difference": [2, 2]}, {"sum": [1, 1], "difference": [-1, -1]}]},
        ),
        (
            "pair",
            {"inputs": {"a": [[5, 6]], "b": [[3, 4]]}},
            {"outputs": {"sum": [[8, 10]], "difference": [[2, 2]]}},
        ),
    ],
)
def test_predict_answers_in_the_format_of_the_request(
    serving: httpx.Client, model: str, body: Any, expected: Any
) -> None:
    assert answered(send(serving, model, body)) == expected
    assert answered(send(serving, model, body | {"signature_name": "serving_default", "stray": 1})) == expected


def test_predict_strings_as_text_and_as_base64(serving: httpx.Client) -> None:
    encoded = {"b64": base64.b64encode("grün".encode()).decode()}
    texts = ["grün", encoded, {"b64": encoded["b64"].rstrip("=")}, ""]
    assert answered(send(serving, "same", {"instances": texts})) == {"predictions": ["grün", "grün", "grün", ""]}
    assert answered(send(serving, "same", {"instances": [{"text": encoded}]})) == {"predictions": ["grün"]}
    assert answered(send(serving, "echo", {"inputs": ["a", "b"]})) == {"outputs": ["a", "b", "a", "b"]}


def test_predict_output_named_bytes_is_base64(serving: httpx.Client) -> None:
    expected = {"predictions": [{"b64": base64.b64encode(b"abc").decode()}, {"b64": ""}]}
    assert answered(send(serving, "binary", {"instances": ["abc", ""]})) == expected


def test_predict_passes_values_that_are_not_finite_p27(serving: httpx.Client) -> None:
    answer = serving.post("/scores:predict", content='{"instances": [[NaN, Infinity, -Infinity]]}')
    (row,) = answered(answer)["predictions"]
    assert math.isnan(row[0])
    assert row[1:] == [math.inf, -math.inf]
    assert answer.text == '{"predictions":[[NaN,Infinity,-Infinity]]}'


def test_predict_tells_what_policies_have_changed(serving: httpx.Client) -> None:
    answer = answered(serving.post("/checked:predict", content='{"instances": [[NaN, 2, 1]]}'))
    assert answer["predictions"] == [[0.5, 1, 1]]
    missing, outside = answer["warnings"]
    assert missing.startswith("input 'x', row 0, column 0 (counted from 0): the value is missing")
    assert outside.startswith("input 'x', row 0, column 1 (counted from 0): 2")


def test_predict_integers_are_exact_p28(serving: httpx.Client) -> None:
    # 2**53 + 1 is no FP64: were it taken for one it would be in the range of nothing, or wrong.
    answer = send(serving, "lookup", {"instances": [2**53 + 1]})
    assert answer.status_code in (400, 500)
    assert str(2**53 + 1) in answer.json()["error"]


@pytest.mark.parametrize(
    ("subject", "version", "alias"),
    [
        ("numbered", "2.0.0", "stable"),
        ("numbered/versions/7", "1.0.0", None),
        ("numbered/versions/8", "2.0.0", None),
        ("numbered/versions/1.0.0", "1.0.0", None),
        ("numbered/labels/old", "1.0.0", "old"),
        ("numbered/labels/stable", "2.0.0", "stable"),
        ("plain/versions/3", "3", None),
        ("lazy/versions/5", "1.0.0", None),
    ],
)
def test_predict_by_version_and_label(serving: httpx.Client, subject: str, version: str, alias: str | None) -> None:
    answer = send(serving, subject, {"instances": [[1, 2, 3]]})
    assert answered(answer) == {"predictions": [[1, 2, 3]]}
    assert answer.headers["headway-model-version"] == version
    assert answer.headers.get("headway-model-alias") == alias


@pytest.mark.parametrize("number", ["9", "1.1.0"])
def test_predict_by_unknown_version(serving: httpx.Client, number: str) -> None:
    answer = send(serving, f"numbered/versions/{number}", {"instances": [[1, 2, 3]]})
    assert (answer.status_code, answer.json()["code"]) == (404, "version_not_found")


def test_predict_answers_as_the_other_protocols_do(client: httpx.Client) -> None:
    rows = load_digits().data[:5].astype(np.float32).tolist()
    (ours, columns) = (
        client.post("/v1/models/digits:predict", json={key: rows}).json() for key in ("instances", "inputs")
    )
    assert ours["predictions"] == columns["outputs"]
    results = client.post("/predict", json={"model": "digits", "inputs": rows, "top_k": 10}).json()["results"]
    for row, result in zip(ours["predictions"], results, strict=True):
        assert row == [one["confidence"] for one in sorted(result["predictions"], key=lambda one: one["index"])]
    tensor = client.get("/models/digits/stable").json()["manifest"]["inputs"][0]
    sent = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": [5, 64], "data": rows}
    (output,) = client.post("/v2/models/digits/infer", json={"inputs": [sent]}).json()["outputs"]
    assert output["data"] == [value for row in ours["predictions"] for value in row]


def test_predict_prediction_ids_are_taken_as_feedback(client: httpx.Client) -> None:
    rows = load_digits().data[:3].tolist()
    answer = client.post("/v1/models/digits:predict", json={"instances": rows})
    ids = answer.headers["headway-prediction-id"].split(",")
    assert len(set(ids)) == 3
    given = [{"prediction_id": one, "label": str(label)} for label, one in enumerate(ids)]
    results = client.post("/feedback", json={"feedback": given}).json()["results"]
    assert [(one["status"], one["outcome"]) for one in results] == [("recorded", "correct")] * 3


def test_predict_leaves_out_prediction_ids_that_fit_no_header(serving: httpx.Client) -> None:
    few, many = (send(serving, "scores", {"instances": [[0, 0, 1]] * count}) for count in (10, 200))
    assert len(few.headers["headway-prediction-id"].split(",")) == 10
    assert "headway-prediction-id" not in many.headers
    assert len(answered(many)["predictions"]) == 200


def test_predict_takes_and_gives_packed_bodies(serving: httpx.Client) -> None:
    rows = [[0.5, 0.25, 0.125]] * 500
    packed = gzip.compress(json.dumps({"instances": rows}).encode())
    headers = {"content-encoding": "gzip", "accept-encoding": "gzip"}
    answer = serving.post("/scores:predict", content=packed, headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    assert answered(answer) == {"predictions": rows}


def test_predict_is_counted_under_its_protocol(tiny: RunningServer, serving: httpx.Client) -> None:
    answered(send(serving, "transpose", {"inputs": [[1, 2, 3], [4, 5, 6]]}))
    metrics = tiny.client.get(f"{tiny.url}/metrics").text
    counted = [line for line in metrics.splitlines() if 'protocol="tf_serving"' in line and 'model="transpose"' in line]
    assert any(line.startswith("headway_requests_total{") for line in counted)
