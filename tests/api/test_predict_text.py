"""POST /predict with texts over real sockets: the shipped model, and tiny ones whose answers are known by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fixtures_models import write_composition, write_model, write_release
from tests.running import PATIENCE_SECONDS, running_server

PLAIN = {"content-type": "text/plain"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One worker with mood (at most 20 characters), a model in a batch, a composition of both, echo and scores."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "mood", kind="mood")
    write_model(root, "together", kind="mood", batch={"max_size": 8})
    write_model(root, "echo", kind="echo", processing={"type": "text"})
    write_model(root, "scores")
    steps = [{"model": "mood", "confidence": 0.7}, {"model": "together"}]
    write_composition(root, "both", "cascade", steps, kind="mood")
    for name in ("mood", "together", "echo", "scores", "both"):
        write_release(root, name, "1.0.0")
    (root / "registry.yaml").write_text("schema: 1\ndefaults: {text: mood}\n")
    log = tmp_path_factory.mktemp("tiny") / "log"
    with (
        running_server(log, workers=1, HEADWAY_MODELS=str(root), HEADWAY_MAX_ITEMS="10") as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as client,
    ):
        yield client


def good(result: dict[str, Any]) -> float:
    """How good a text is to `mood`."""
    (confidence,) = [one["confidence"] for one in result["predictions"] if one["label"] == "good"]
    return float(confidence)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A warm, funny and beautifully acted film.", "positive"),
        ("a dull, lifeless mess", "negative"),
        ("房间很干净 服务也非常好", "positive"),
        ("质量太差了 非常失望", "negative"),
    ],
)
def test_the_shipped_model_reads_english_and_chinese(client: httpx.Client, text: str, label: str) -> None:
    body = client.post("/predict", json={"text": text}).json()
    assert (body["model"], body["version"], body["alias"]) == ("sentiment", "1.0.0", "stable")
    assert set(body) == {"predictions", "prediction_id", "model", "version", "alias", "request_id"}
    first, second = body["predictions"]
    assert first["label"] == label
    assert first["confidence"] + second["confidence"] == pytest.approx(1, abs=1e-6)


def test_feedback_on_a_text_is_taken(client: httpx.Client) -> None:
    answer = client.post("/predict", json={"text": "A dull film."}).json()
    feedback = client.post("/feedback", json={"prediction_id": answer["prediction_id"], "label": "negative"})
    assert feedback.status_code == 200, feedback.text


@pytest.mark.parametrize("model", ["mood", "together", "both"])
def test_several_texts_are_answered_each_for_itself(tiny: httpx.Client, model: str) -> None:
    texts = ["good", "bad", "", "what else", "good 👍", "a" * 21, "good"]
    answer = tiny.post("/predict", json={"texts": texts, "model": model})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [result.get("code") for result in results] == [None, None, "bad_text", None, None, "text_too_long", None]
    assert [good(result) for result in results if "predictions" in result] == [0.75, 0.25, 0.5, 0.5, 0.75]
    assert "20" in results[5]["error"]


@pytest.mark.parametrize("form", ["json", "raw", "charset", "query", "byte order mark", "tensor", "rows"])
def test_every_way_to_send_a_text_gives_one_answer(tiny: httpx.Client, form: str) -> None:
    if form == "json":
        answer = tiny.post("/predict", json={"text": "good"})
    elif form == "raw":
        answer = tiny.post("/predict", content=b"good", headers=PLAIN)
    elif form == "charset":
        headers = {"content-type": 'text/plain; charset="UTF-8"'}
        answer = tiny.post("/predict", content=b"good", headers=headers)
    elif form == "query":
        answer = tiny.post("/predict?model=mood@1.0.0&top_k=2", content=b"good", headers=PLAIN)
    elif form == "byte order mark":
        answer = tiny.post("/predict", content=b"\xef\xbb\xbfgood", headers=PLAIN)
    elif form == "tensor":
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["good"]}
        answer = tiny.post("/v2/models/mood/infer", json={"inputs": [tensor]})
        assert answer.json()["outputs"][0]["data"] == [0.25, 0.75]
        return
    else:
        answer = tiny.post("/v1/models/mood:predict", json={"instances": ["good"]})
        assert answer.json()["predictions"] == [[0.25, 0.75]]
        return
    assert answer.status_code == 200, answer.text
    assert good(answer.json()) == 0.75


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"text": ""}, 400, "bad_text", "empty"),
        ({"text": " \n"}, 400, "bad_text", "empty"),
        ({"text": "x" * 21}, 413, "text_too_long", "21 characters; at most 20"),
        ({"texts": ["", "x" * 21]}, 400, "bad_text", "empty"),
        ({"text": 7}, 422, "malformed_request", "text"),
        ({"text": ["good"]}, 422, "malformed_request", "text"),
        ({"texts": ["good", 7]}, 422, "malformed_request", "texts.1"),
        ({"texts": []}, 422, "malformed_request", "texts"),
        ({"texts": ["good"] * 11}, 413, "body_too_large", "11 texts in one request; send at most 10"),
        ({"text": "good", "texts": ["good"]}, 422, "malformed_request", "text and texts"),
        ({"text": "good", "model": "scores"}, 400, "bad_content", "scores takes numbers"),
        ({"inputs": [["good"]], "model": "mood"}, 400, "bad_content", "mood takes texts (the key text)"),
        ({"image": "R0lG", "model": "mood"}, 400, "bad_content", "mood takes texts (the key text), not images"),
        ({"texts": ["good"], "model": "echo"}, 400, "bad_content", "one text a request"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    tiny: httpx.Client, body: dict[str, Any], status: int, code: str, words: str
) -> None:
    answer = tiny.post("/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert words in answer.json()["error"]


def test_a_lone_surrogate_in_json_is_refused(tiny: httpx.Client) -> None:
    answer = tiny.post("/predict", content=rb'{"text": "a\ud800"}', headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "malformed_request")


@pytest.mark.parametrize("text", ["a\0b", "\0", "👍🏽", "\u202egood", "'; --", "\ufffe", '{"inputs": 1}'])
def test_odd_texts_are_answered(tiny: httpx.Client, text: str) -> None:
    for answer in (
        tiny.post("/predict", json={"text": text}),
        tiny.post("/predict", content=text.encode(), headers=PLAIN),
        tiny.post("/predict", content=json.dumps({"text": text}), headers={"content-type": "application/json"}),
    ):
        assert answer.status_code == 200, answer.text
        assert good(answer.json()) == 0.5


def test_a_raw_text_that_is_not_utf8_is_refused(tiny: httpx.Client) -> None:
    answer = tiny.post("/predict", content="grün".encode("latin-1"), headers=PLAIN)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_text")
    assert "byte 2" in answer.json()["error"]
    answer = tiny.post("/predict", content=b"good", headers={"content-type": "text/plain; charset=latin-1"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_a_long_text_of_a_tensor_is_refused_too(tiny: httpx.Client) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["good", "x" * 21]}
    answer = tiny.post("/v2/models/mood/infer", json={"inputs": [tensor]})
    assert answer.status_code == 413
    assert "21 characters" in answer.json()["error"]


def test_a_text_model_may_answer_with_tensors(tiny: httpx.Client) -> None:
    assert tiny.post("/predict", json={"text": "good", "model": "echo"}).json()["outputs"] == {"echoed": ["good"] * 2}


def test_listed_with_its_kind_and_its_limit(tiny: httpx.Client) -> None:
    (found,) = [model for model in tiny.get("/models").json()["models"] if model["name"] == "mood"]
    assert (found["kind"], found["task"]) == ("text", "text-classification")
    manifest = tiny.get("/models/mood/1.0.0").json()["manifest"]
    assert manifest["processing"] == {"type": "text", "max_characters": 20}


def test_examples_of_the_openapi_document_are_answered(client: httpx.Client) -> None:
    body = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert "text/plain" in body
    for name in ("text", "texts"):
        answer = client.post("/predict", json=body["application/json"]["examples"][name]["value"])
        assert answer.status_code == 200
