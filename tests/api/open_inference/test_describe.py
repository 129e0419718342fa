"""Metadata and configuration: what clients read before they send anything."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import pytest

import app

ALL = ("scores", "double", "transpose", "one_row", "scaled", "same", "lookup", "positive", "two_inputs", "colour")


def shapes(metadata: dict[str, Any], part: str) -> dict[str, list[int]]:
    return {tensor["name"]: tensor["shape"] for tensor in metadata[part]}


def error(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    message: str = answer.json()["error"]
    return message


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata_with_and_without_slash_p21(v2: httpx.Client, path: str) -> None:
    described = v2.get(path).json()
    assert (described["name"], described["version"]) == ("headway", app.__version__)
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(described["extensions"])
    # What is not there is not claimed.
    assert not {"sequence", "trace", "logging", "system_shared_memory", "schedule_policy"} & set(
        described["extensions"]
    )


def test_list_of_models_p30(v2: httpx.Client) -> None:
    assert {*ALL, "lazy", "broken"} <= set(v2.get("/v2/models").json()["models"])


def test_metadata(v2: httpx.Client) -> None:
    assert v2.get("/v2/models/scores").json() == {
        "name": "scores",
        "versions": ["1.0.0", "2.0.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}],
    }


@pytest.mark.parametrize("tag", ["1.0.0", "2.0.0", "stable", "canary"])
def test_a_version_or_an_alias_in_the_path(v2: httpx.Client, tag: str) -> None:
    for end in ("", "/", "/config", "/config/", "/ready"):
        assert v2.get(f"/v2/models/scores/versions/{tag}{end}").status_code == 200, end
    assert v2.get(f"/v2/models/scores/versions/{tag}").json()["versions"] == ["1.0.0", "2.0.0"]


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "max_batch_size"),
    [
        ("one_row", {"x": [-1, 3]}, {"total": [-1, 1]}, 1024),  # the file takes one row; callers send any number
        ("colour", {"image": [-1, 4, 4, 3]}, {"scores": [-1, 3]}, 1024),
        ("same", {"text": [-1]}, {"copy": [-1]}, 1024),
        ("scores", {"x": [-1, 3]}, {"scores": [-1, 3]}, 8 * 1024),
        ("transpose", {"x": [2, 3]}, {"turned": [3, 2]}, 0),
        ("double", {"x": []}, {"twice": []}, 0),
        ("scaled", {"x": [-1, 2], "by": []}, {"product": [-1, 2]}, 0),  # one input has no rows
    ],
)
def test_shapes_and_rows_p23(
    v2: httpx.Client, model: str, inputs: dict[str, list[int]], outputs: dict[str, list[int]], max_batch_size: int
) -> None:
    metadata, config = v2.get(f"/v2/models/{model}").json(), v2.get(f"/v2/models/{model}/config").json()
    assert (shapes(metadata, "inputs"), shapes(metadata, "outputs")) == (inputs, outputs)
    assert config["max_batch_size"] == max_batch_size
    for part, full in (("input", inputs), ("output", outputs)):
        dims = {tensor["name"]: tensor["dims"] for tensor in config[part]}
        assert dims == {name: shape[1:] if max_batch_size else shape for name, shape in full.items()}


@pytest.mark.parametrize("model", ALL)
def test_config_names_what_metadata_names_p22(v2: httpx.Client, model: str) -> None:
    metadata, config = v2.get(f"/v2/models/{model}").json(), v2.get(f"/v2/models/{model}/config").json()
    assert config["name"] == model
    assert type(config["max_batch_size"]) is int
    for part in ("input", "output"):
        assert [one["name"] for one in config[part]] == [one["name"] for one in metadata[part + "s"]]
        for one, other in zip(config[part], metadata[part + "s"], strict=True):
            assert one["data_type"] == {"BYTES": "TYPE_STRING"}.get(other["datatype"], f"TYPE_{other['datatype']}")
    batches = {"preferred_batch_size": [8], "max_queue_delay_microseconds": 2000}
    assert config.get("dynamic_batching") == (batches if model == "scores" else None)


def test_max_batch_size_is_taken_in_one_request_p23(v2: httpx.Client) -> None:
    rows = v2.get("/v2/models/scores/config").json()["max_batch_size"]
    data = [[number, 0, 0] for number in range(rows)]
    body = {"inputs": [{"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": data}]}
    (output,) = v2.post("/v2/models/scores/infer", json=body).json()["outputs"]
    assert output["shape"] == [rows, 3]
    assert output["data"][::3] == list(range(rows))


def test_what_is_loaded_on_demand_is_described_without_loading_it(v2: httpx.Client) -> None:
    assert v2.get("/v2/models/lazy").json()["inputs"][0]["shape"] == [-1, 3]
    assert v2.get("/v2/models/lazy/config").json()["max_batch_size"] == 1024
    assert v2.get("/v2/models/lazy/ready").json() == {"name": "lazy", "ready": True}
    assert v2.get("/v2/models/lazy/stats").status_code == 200
    (version,) = v2.get("/models/lazy").json()["versions"]
    assert set(version["workers"]) == {"unloaded"}


def test_unknown_models_and_versions_p12(v2: httpx.Client) -> None:
    for end in ("", "/ready", "/config", "/stats"):
        assert "nothing" in error(v2.get(f"/v2/models/nothing{end}"), 404)
        assert "9.0.0" in error(v2.get(f"/v2/models/scores/versions/9.0.0{end}"), 404)
        assert "beta" in error(v2.get(f"/v2/models/scores/versions/beta{end}"), 404)
        assert "names no model" in error(v2.get(f"/v2/models/No%20Name{end}"), 400)


def test_a_version_that_cannot_be_loaded_says_why_p29(v2: httpx.Client) -> None:
    for path in ("/v2/models/broken", "/v2/models/broken/ready", "/v2/models/broken/versions/1.0.0/ready"):
        assert "labels.txt" in error(v2.get(path), 503)


def test_quoted_names_and_query_parameters_p10(v2: httpx.Client) -> None:
    assert v2.get("/v2/models/%73cores/versions/1%2E0%2E0?cache=no").json()["name"] == "scores"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/scores/trace/setting", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("DELETE", "/v2/models/scores", 405),
        ("GET", "/v2/models/scores/infer", 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/models/scores/load", 403),
        ("POST", "/v2/repository/index", 400),
        ("POST", "/v2/models/scores/infer", 400),
    ],
)
def test_every_refusal_is_json_with_an_error_p3(v2: httpx.Client, method: str, path: str, status: int) -> None:
    assert error(v2.request(method, path, content=b"[" if method == "POST" else None), status)


def test_a_body_past_the_limit_is_json_with_an_error_p3(v2: httpx.Client) -> None:
    packed = gzip.compress(bytes(30_000_000))
    for path in ("/v2/repository/index", "/v2/models/scores/infer"):
        assert "larger" in error(v2.post(path, headers={"content-encoding": "gzip"}, content=packed), 413)


def test_an_error_has_exactly_this_content_type_p20(v2: httpx.Client) -> None:
    for path in ("/v2/models/nothing", "/v2/nothing", "/v2/models/broken/ready"):
        assert v2.get(path).headers["content-type"] == "application/json"
