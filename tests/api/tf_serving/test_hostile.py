"""What is no request for `:predict`: always 4xx at once, in TensorFlow Serving's shape, naming what is wrong."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

_DEEP = 10_000


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        ("scores", b"", "the body is not valid JSON"),
        ("scores", b"{", "the body is not valid JSON"),
        ("scores", b"\xff\xfe", "the body is not valid JSON"),
        ("scores", b"[]", "the body must be a JSON object"),
        ("scores", b"null", "the body must be a JSON object"),
        ("scores", b'{"instances": ' + b"[" * _DEEP + b"]" * _DEEP + b"}", "the body is not valid JSON"),
        ("scores", b'{"inputs": ' + b'{"a":' * _DEEP + b"1" + b"}" * _DEEP + b"}", "the body is not valid JSON"),
        ("scores", b'{"instances": ["\\ud800"]}', "the body is not valid JSON"),
        ("scores", {}, "exactly one of instances (rows) and inputs (columns)"),
        ("scores", {"instances": [[1, 2, 3]], "inputs": [[1, 2, 3]]}, "exactly one of"),
        ("scores", {"instances": None}, "exactly one of"),
        ("scores", {"instances": []}, "instances: "),
        ("scores", {"instances": {"x": [1, 2, 3]}}, "instances: "),
        ("scores", {"instances": "abc"}, "instances: "),
        ("scores", {"instances": [[1, 2, 3]], "signature_name": "other"}, "there is no signature 'other'"),
        ("scores", {"instances": [[1, 2, 3]], "signature_name": 5}, "signature_name: "),
        ("scores", {"instances": [[1, 2, 3]], "signature_name": "s" * 1000}, "signature_name: "),
        ("scores", {"instances": [[1, 2]]}, "input 'x' has shape [1, 2]; it takes [n, 3]"),
        ("scores", {"instances": [[1, 2, 3], [1, 2]]}, "input 'x' is ragged"),
        ("scores", {"instances": [1, 2, 3]}, "input 'x' has shape [3]"),
        ("scores", {"instances": [["a", "b", "c"]]}, "input 'x' takes numbers"),
        ("scores", {"instances": [[None, 2, 3]]}, "input 'x' takes numbers"),
        ("scores", {"instances": [[True, False, True]]}, "input 'x' takes FP32, not bool"),
        ("scores", {"instances": [[True, 2, 3]]}, "input 'x' has true or false among other values"),
        ("scores", {"inputs": [[True, True, True], [1, 2, 3]]}, "input 'x' has true or false among other values"),
        ("scores", {"instances": [[10**400, 2, 3]]}, "input 'x'"),
        ("scores", {"instances": [[1e39, 2, 3]]}, "input 'x' has a value that is too large for FP32"),
        ("scores", {"instances": [{"b64": "AAAA"}]}, "input 'x' takes numbers"),
        ("scores", {"instances": [{"y": [1, 2, 3]}]}, "input 'x' is missing; there is no input 'y'"),
        ("scores", {"instances": [{"x": [1, 2, 3], "y": 1}]}, "there is no input 'y'"),
        ("scores", {"instances": [{}]}, "input 'x' is missing"),
        ("scores", {"instances": [{"x": [1, 2, 3]}, [1, 2, 3]]}, "instances.1: must be an object with the keys x"),
        ("scores", {"instances": [{"x": [1, 2, 3]}, {"y": [1, 2, 3]}]}, "instances.1: must be an object"),
        ("scores", {"instances": [[1, 2, 3], {"x": [1, 2, 3]}]}, "input 'x'"),
        ("scores", {"inputs": {}}, "input 'x' is missing"),
        ("scores", {"inputs": "abc"}, "input 'x'"),
        ("scores", {"inputs": []}, "input 'x' has shape [0]; it takes [n, 3]"),
        ("lookup", {"instances": [1.5]}, "input 'at' takes whole numbers (INT64)"),
        ("lookup", {"instances": [2**63]}, "input 'at' takes INT64"),
        ("same", {"instances": [{"b64": "!"}]}, "input 'text' has a b64 that is not base64"),
        ("same", {"instances": [{"b64": "ä"}]}, "input 'text' has a b64 that is not base64"),
        ("same", {"instances": [{"b64": 5}]}, "there is no input 'b64'"),
        ("same", {"instances": [1]}, "input 'text' takes strings"),
        ("same", {"instances": [[["a"], []]]}, "input 'text'"),
        ("same", {"inputs": [{"b64": "QQ", "x": 1}]}, "input 'text' takes strings"),
        ("two-inputs", {"instances": [[1, 2]]}, "each must be an object with the keys a, b"),
        ("two-inputs", {"inputs": [[1, 2]]}, "send an object with the keys a, b"),
        ("two-inputs", {"inputs": {"a": [[1, 2]], "b": [[1, 2], [3, 4]]}}, "the same number of rows"),
        ("double", {"instances": [1]}, "input 'x' is [] and has no rows; send inputs instead"),
        ("transpose", {"instances": [[1, 2, 3], [4, 5, 6]]}, "has no rows; send inputs instead"),
        ("scaled", {"instances": [{"x": [1, 2], "by": 3}]}, "input 'by' is [] and has no rows"),
        ("echo", {"instances": ["a"]}, "output 'echoed' of shape [2] has not one row for each of the 1 instances"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, bytes) else None,
)
def test_predict_refuses(serving: httpx.Client, model: str, body: Any, words: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = serving.post(f"/{model}:predict", content=content)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


@pytest.mark.parametrize("depth", [63, 64, 65, 150])
@pytest.mark.parametrize(("model", "value"), [("scores", 1), ("same", "a")])
def test_predict_refuses_lists_deeper_than_any_tensor(
    serving: httpx.Client, model: str, value: Any, depth: int
) -> None:
    for _ in range(depth):
        value = [value]
    answer = serving.post(f"/{model}:predict", json={"inputs": value})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/scores:predict", "POST"),
        ("PUT", "/scores:predict", "POST"),
        ("GET", "/numbered/versions/7:predict", "POST"),
        ("GET", "/numbered/labels/old:predict", "POST"),
        ("POST", "/scores", "GET"),
        ("DELETE", "/scores/metadata", "GET"),
        ("POST", "/scores/labels/old", "GET"),
    ],
)
def test_wrong_method_names_the_right_one_p3(serving: httpx.Client, method: str, path: str, allow: str) -> None:
    answer = serving.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    assert allow in answer.json()["error"]


@pytest.mark.parametrize("verb", ["classify", "regress", "explain", "predict:predict", "Predict"])
def test_other_verbs_are_refused(serving: httpx.Client, verb: str) -> None:
    answer = serving.post(f"/scores:{verb}", json={"examples": [{"x": [1, 2, 3]}]})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_path_and_headers_that_are_wrong(serving: httpx.Client) -> None:
    body = {"instances": [[1, 2, 3]]}
    assert serving.post("/no%2Fbody:predict", json=body).status_code in (400, 404)
    assert serving.post("/scores/versions/:predict", json=body).status_code in (404, 405)
    assert serving.post("/scores/versions/%F0%9F%90%88:predict", json=body).status_code == 400
    assert serving.post("/scores/versions/123456789012345678901234567890:predict", json=body).status_code == 400
    late = serving.post("/scores:predict", json=body, headers={"headway-timeout-ms": "soon"})
    assert late.status_code == 422
    packed = serving.post("/scores:predict", content=b"no gzip", headers={"content-encoding": "gzip"})
    assert packed.status_code == 400
