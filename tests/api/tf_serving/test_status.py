"""GET /v1/models…: states and metadata as TensorFlow Serving has them, and what KServe's version 1 reads besides."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.api.tf_serving.predict import SUBJECTS
from tests.running import RunningServer

OK = {"error_code": "OK", "error_message": ""}


def versions(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 200, answer.text
    return [(one["version"], one["state"]) for one in answer.json()["model_version_status"]]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/numbered", [("8", "AVAILABLE"), ("7", "AVAILABLE")]),
        ("/numbered/versions/7", [("7", "AVAILABLE")]),
        ("/numbered/versions/2.0.0", [("8", "AVAILABLE")]),
        ("/numbered/labels/old", [("7", "AVAILABLE")]),
        ("/plain", [("3", "AVAILABLE")]),
        ("/scores", [("1.0.0", "AVAILABLE")]),
    ],
)
def test_status_tells_the_versions(serving: httpx.Client, path: str, expected: Any) -> None:
    answer = serving.get(path)
    assert versions(answer) == expected
    assert all(one["status"] == OK for one in answer.json()["model_version_status"])


def test_status_of_a_version_that_failed(serving: httpx.Client) -> None:
    answer = serving.get("/broken")
    assert versions(answer) == [("1.0.0", "END")]
    (status,) = answer.json()["model_version_status"]
    assert status["status"]["error_code"] == "UNAVAILABLE"
    assert "model.onnx" in status["status"]["error_message"]
    assert answer.json()["ready"] is False


@pytest.mark.parametrize(
    ("place", "subject"), list(zip(("", "/versions/7", "/labels/old"), SUBJECTS, strict=True)), ids=SUBJECTS
)
def test_colon_at_the_end_is_a_verb(serving: httpx.Client, client: httpx.Client, place: str, subject: str) -> None:
    answer = serving.get(f"/numbered{place}:predict")
    assert (answer.status_code, answer.json()["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert "405" in client.get("/openapi.json").json()["paths"][subject]["get"]["responses"]


def test_status_of_all_workers(client: httpx.Client) -> None:
    assert versions(client.get("/v1/models/efficientnet-lite0")) == [("1.1.0", "AVAILABLE")]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/nobody", (404, "model_not_found")),
        ("/numbered/versions/9", (404, "version_not_found")),
        ("/numbered/labels/nobody", (404, "version_not_found")),
        ("/numbered/versions/old", (400, "bad_content")),
        ("/numbered/labels/1.0.0", (400, "bad_content")),
        ("/NOT%20a%20name", (400, "bad_content")),
        ("/nobody/metadata", (404, "model_not_found")),
        ("/broken/metadata", (503, "model_failed")),
    ],
)
def test_status_of_what_is_not_there(serving: httpx.Client, path: str, code: tuple[int, str]) -> None:
    answer = serving.get(path)
    assert (answer.status_code, answer.json()["code"]) == code
    assert answer.headers["content-type"] == "application/json"


def test_metadata_describes_the_signature(serving: httpx.Client) -> None:
    found = serving.get("/numbered/labels/old/metadata").json()
    assert found["model_spec"] == {"name": "numbered", "signature_name": "", "version": "7"}
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    shape = {"dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}], "unknown_rank": False}
    assert signature == {
        "inputs": {"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x"}},
        "outputs": {"scores": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "scores"}},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("same", {"text": ("DT_STRING", ["-1"])}),
        ("double", {"x": ("DT_FLOAT", [])}),
        ("transpose", {"x": ("DT_FLOAT", ["2", "3"])}),
        ("lookup", {"at": ("DT_INT64", ["-1"])}),
        ("one-row", {"x": ("DT_FLOAT", ["-1", "3"])}),
        ("scaled", {"x": ("DT_FLOAT", ["-1", "2"]), "by": ("DT_FLOAT", [])}),
        ("colour", {"image": ("DT_UINT8", ["-1", "4", "4", "3"])}),
    ],
)
def test_metadata_of_inputs(serving: httpx.Client, model: str, expected: Any) -> None:
    signatures = serving.get(f"/{model}/metadata").json()["metadata"]["signature_def"]["signature_def"]
    inputs = signatures["serving_default"]["inputs"]
    found = {name: (one["dtype"], [dim["size"] for dim in one["tensor_shape"]["dim"]]) for name, one in inputs.items()}
    assert found == expected


def test_metadata_loads_nothing(tiny: RunningServer) -> None:
    """`idle` is loaded by the first request for it, and by that alone."""
    base = f"{tiny.url}/v1/models/idle"
    states = [versions(tiny.client.get(base)) for _ in range(2)]
    assert tiny.client.get(f"{base}/metadata").json()["model_spec"]["version"] == "5"
    assert [*states, versions(tiny.client.get(base))] == [[("5", "START")]] * 3
    assert tiny.client.get(base).json()["ready"] is True


def test_kserve_v1_reads_what_it_needs_p18(tiny: RunningServer, serving: httpx.Client) -> None:
    """What kserve's InferenceRESTClient asks for with protocol v1; it sends Accept: */*, as httpx does by itself."""
    assert tiny.client.get(f"{tiny.url}/").json() == {"status": "alive"}
    assert serving.get("/scores").json()["ready"] is True
    assert {"scores", "numbered"} <= set(tiny.client.get(f"{tiny.url}/v1/models").json()["models"])
    assert serving.post("/scores:predict", json={"instances": [[1, 2, 3]]}).json() == {"predictions": [[1, 2, 3]]}


def test_errors_are_json_by_their_content_type_p20(serving: httpx.Client) -> None:
    answer = serving.post("/nobody:predict", json={"instances": [1]})
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error", "code", "request_id"}


def test_page_is_for_browsers(tiny: RunningServer) -> None:
    answer = tiny.client.get(f"{tiny.url}/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["vary"] == "accept"
