"""POST /predict over real sockets, with the shipped models: what is answered, and in which shape."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from app.api.schemas import PredictResponse
from app.monitoring.keys import SigningKeys, load_keys
from app.monitoring.prediction_id import PredictionIds
from tests.fixtures_models import write_model
from tests.recipes.foolbox_photos import foolbox_photos
from tests.running import PATIENCE_SECONDS, ROOT, RunningServer, running_server

SECRET = "a secret of more than 16 bytes"
RAW = {"content-type": "application/octet-stream"}
STAGES = ["decode", "queue", "preprocess", "inference", "postprocess", "total"]


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_predict_json_image_names_the_animal(client: httpx.Client, cat: bytes) -> None:
    answer = client.post("/predict", json={"image": encode(cat), "top_k": 3})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"predictions", "prediction_id", "model", "version", "alias", "request_id"}
    assert body["model"] == "efficientnet-lite0"
    assert body["version"] == "1.1.0"
    assert body["alias"] == "stable"
    assert [set(prediction) for prediction in body["predictions"]] == [{"label", "index", "confidence"}] * 3
    labels = {prediction["label"]: prediction["index"] for prediction in body["predictions"]}
    assert labels == {"tiger cat": 282, "Egyptian cat": 285, "tabby cat": 281}
    confidences = [prediction["confidence"] for prediction in body["predictions"]]
    assert confidences == sorted(confidences, reverse=True)
    assert 0 < sum(confidences) <= 1


@pytest.mark.parametrize("form", ["data url", "line breaks", "raw", "raw with query", "multipart", "no content type"])
def test_predict_every_way_to_send_an_image_gives_one_answer(client: httpx.Client, cat: bytes, form: str) -> None:
    expected = client.post("/predict", json={"image": encode(cat)}).json()["predictions"]
    text = encode(cat)
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    if form == "data url":
        answer = client.post("/predict", json={"image": f"data:image/jpeg;base64,{text}"})
    elif form == "line breaks":
        answer = client.post("/predict", json={"image": lines})
    elif form == "raw":
        answer = client.post("/predict", content=cat, headers={"content-type": "image/jpeg"})
    elif form == "raw with query":
        query = {"model": "efficientnet-lite0@1.1.0", "top_k": "5"}
        answer = client.post("/predict", params=query, content=cat, headers={"content-type": "image/*"})
    elif form == "multipart":
        answer = client.post("/predict", files={"image": ("cat.jpg", cat, "image/jpeg")}, data={"top_k": "5"})
    else:
        answer = client.post("/predict", content=json.dumps({"image": text}))
    assert answer.status_code == 200
    assert answer.json()["predictions"] == expected


def test_predict_images_answers_each_for_itself(client: httpx.Client, cat: bytes) -> None:
    images = [encode(cat), "!!!", encode(b"no image"), encode(cat)]
    answer = client.post("/predict", json={"images": images, "top_k": 1})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result.get("code") for result in results] == [None, "bad_image", "bad_image", None]
    assert results[0]["predictions"] == results[3]["predictions"]
    assert [set(result) for result in results[:2]] == [{"predictions", "prediction_id"}, {"error", "code"}]
    assert results[0]["predictions"][0]["label"] == "tiger cat"


@pytest.mark.parametrize("count", [1, 3])
def test_predict_images_that_all_fail_give_the_first_error_status(client: httpx.Client, count: int) -> None:
    answer = client.post("/predict", json={"images": ["!!!"] * count})
    assert answer.status_code == 400
    body = answer.json()
    assert body["code"] == "bad_image"
    assert "not base64" in body["error"]
    assert [result["code"] for result in body["results"]] == ["bad_image"] * count


def test_predict_multipart_with_several_files_is_plural(client: httpx.Client, cat: bytes) -> None:
    files = [("image", ("a.jpg", cat, "image/jpeg")), ("image", ("b.jpg", cat, "image/jpeg"))]
    assert len(client.post("/predict", files=files).json()["results"]) == 2


def test_predict_inputs_reads_digits(client: httpx.Client) -> None:
    pixels, labels = load_digits(return_X_y=True)
    answer = client.post("/predict", json={"inputs": pixels[:50].tolist(), "model": "digits", "top_k": 2})
    assert answer.status_code == 200
    results = answer.json()["results"]
    read = [int(result["predictions"][0]["label"]) for result in results]
    assert np.mean(np.array(read) == labels[:50]) >= 0.96
    by_name = client.post("/predict", json={"inputs": {"pixels": pixels[:50].tolist()}, "model": "digits", "top_k": 2})
    again = [result["predictions"] for result in by_name.json()["results"]]
    assert again == [result["predictions"] for result in results]


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_predict_names_the_exact_version(client: httpx.Client, version: str) -> None:
    answer = client.post("/predict", json={"inputs": [[0.0] * 64], "model": f"digits@{version}"}).json()
    assert (answer["version"], answer["alias"]) == (version, None)
    assert answer["model"] == "digits"


def test_predict_by_a_cascade(client: httpx.Client) -> None:
    """Each row is answered as by one of its steps; nobody is charged for them apart."""
    rows = load_digits(return_X_y=True)[0][:60].tolist()
    answers = {
        model: client.post("/predict", json={"inputs": rows, "model": model, "top_k": 10}).json()
        for model in ("digits-cascade", "digits@1.0.0", "digits@1.1.0")
    }
    cascade = answers["digits-cascade"]
    assert (cascade["model"], cascade["version"], cascade["alias"]) == ("digits-cascade", "1.0.0", "stable")
    chosen = set()
    for number, result in enumerate(cascade["results"]):
        first, second = (
            answers[f"digits@{version}"]["results"][number]["predictions"] for version in ("1.0.0", "1.1.0")
        )
        is_sure = first[0]["confidence"] >= 0.75
        chosen.add(is_sure)
        for found, expected in zip(result["predictions"], first if is_sure else second, strict=True):
            assert found["confidence"] == pytest.approx(expected["confidence"], abs=1e-5)
    assert chosen == {True, False}
    text = client.get("/metrics").text
    for step in ("digits@1.0.0", "digits@1.1.0"):
        labels = f'{{model="digits-cascade",step="{step}",version="1.0.0"}}'
        assert f"headway_cascade_answers_total{labels}" in text
    assert client.get("/models/digits-cascade/1.0.0").json()["manifest"]["composition"]["type"] == "cascade"


def test_predict_signs_each_row_for_itself(server: RunningServer, client: httpx.Client) -> None:
    """Workers have the one secret that stands in the file; what they sign is what they answer."""
    before_ms = time.time_ns() // 1_000_000
    rows = load_digits(return_X_y=True)[0][:20].tolist()
    answers = [
        client.post("/predict", json={"inputs": rows, "model": model, "top_k": 7}).json()
        for model in ("digits", "digits@1.0.0")
    ]
    now_ms = time.time_ns() // 1_000_000
    ids = PredictionIds(load_keys((), server.data_dir), max_age_seconds=3600)
    found = [[ids.verify(result["prediction_id"], now_ms) for result in answer["results"]] for answer in answers]
    assert len({prediction.nonce for predictions in found for prediction in predictions}) == 40
    for answer, predictions in zip(answers, found, strict=True):
        assert len({prediction.at_ms for prediction in predictions}) == 1
        for result, prediction in zip(answer["results"], predictions, strict=True):
            names = (prediction.model, prediction.version, prediction.alias)
            assert names == (answer["model"], answer["version"], answer["alias"])
            assert prediction.indices == tuple(one["index"] for one in result["predictions"][:5])
            assert prediction.confidence == pytest.approx(result["predictions"][0]["confidence"], abs=1e-5)
            assert before_ms <= prediction.at_ms <= now_ms


def test_predict_signs_values_and_no_tensors(tmp_path: Path) -> None:
    for kind in ("sum", "transpose"):
        write_model(tmp_path / "models", kind, kind=kind)
    settings = {"HEADWAY_MODELS": str(tmp_path / "models"), "HEADWAY_SECRET": f"1:{SECRET}:verify-only,9:{SECRET}"}
    with running_server(tmp_path / "log", workers=1, **settings) as server:
        value, not_finite, tensors = (
            server.client.post(
                f"{server.url}/predict?model={model}", content=np.array(row, "<f4").tobytes(), headers=RAW
            )
            for model, row in (("sum", [1, 2, 4]), ("sum", [np.nan, 0, 0]), ("transpose", range(6)))
        )
        assert not (server.data_dir / "secret").exists()
    ids = PredictionIds(SigningKeys.parse([f"9:{SECRET}"]), max_age_seconds=3600)
    now_ms = time.time_ns() // 1_000_000
    assert ids.verify(value.json()["results"][0]["prediction_id"], now_ms).value == 7
    assert ids.verify(not_finite.json()["results"][0]["prediction_id"], now_ms).value is None
    assert "outputs" in tensors.json()
    assert "prediction_id" not in tensors.text


def test_predict_without_a_secret_answers_without_ids(tmp_path: Path) -> None:
    words = "can be neither read nor made"
    write_model(tmp_path / "models", "sum", kind="sum")
    (tmp_path / "file").touch()
    settings = {"HEADWAY_MODELS": str(tmp_path / "models"), "HEADWAY_DATA_DIR": str(tmp_path / "file")}
    with running_server(tmp_path / "log", workers=2, **settings) as server:
        answer = server.client.post(f"{server.url}/predict", json={"inputs": [[1, 2, 4]], "model": "sum"})
        assert answer.json()["results"] == [{"value": 7}]
        limit = time.monotonic() + PATIENCE_SECONDS
        while words not in server.log.read_text() and time.monotonic() < limit:  # by the first of the workers
            time.sleep(0.02)
    log = (tmp_path / "log").read_text()
    assert log.count("answers have no prediction_id") == log.count(words) == 1


def test_server_with_a_wrong_secret_does_not_start() -> None:
    environment = os.environ | {"HEADWAY_SECRET": "1:short"}
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1
    assert "HEADWAY_SECRET: entry 1: the secret has 5 bytes; it must have 16 at least" in done.stderr


def test_predict_documents_the_id(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for schema in ("PredictResponse", "ItemRead"):
        assert document["components"]["schemas"][schema]["properties"]["prediction_id"]["description"]
    examples = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["examples"]
    for example in examples.values():
        PredictResponse.model_validate(example["value"])
    assert "prediction_id" in examples["image"]["value"]
    assert "prediction_id" in examples["inputs"]["value"]["results"][0]


def test_predict_rows_equal_each_alone(client: httpx.Client) -> None:
    rows = load_digits(return_X_y=True)[0][:7].tolist()
    together = client.post("/predict", json={"inputs": rows, "model": "digits"}).json()["results"]
    for row, expected in zip(rows, together, strict=True):
        alone = client.post("/predict", json={"inputs": [row], "model": "digits"}).json()["results"][0]
        for one, other in zip(alone["predictions"], expected["predictions"], strict=True):
            assert one["label"] == other["label"]
            assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-5)


def test_predict_without_rows_has_no_results(client: httpx.Client) -> None:
    answer = client.post("/predict", json={"inputs": {"pixels": []}, "model": "digits"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad_tensor"


def test_predict_server_timing_has_every_stage(client: httpx.Client, cat: bytes) -> None:
    answer = client.post("/predict", content=cat, headers={"content-type": "image/jpeg"})
    found = re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])
    assert [name for name, _ in found] == STAGES
    durations = {name: float(value) for name, value in found}
    assert all(value >= 0 for value in durations.values())
    assert sum(value for name, value in durations.items() if name != "total") <= durations["total"]


def test_predict_request_id_is_the_callers_where_it_is_safe(client: httpx.Client) -> None:
    body = {"inputs": [[0.0] * 64]}
    answer = client.post("/predict", json=body, headers={"x-request-id": "order-7/a.b~c"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "order-7/a.b~c"
    for unsafe in ("a b", "x" * 129, 'quote"'):
        answer = client.post("/predict", json=body, headers={"x-request-id": unsafe})
        assert re.fullmatch(r"[0-9a-f]{32}", answer.json()["request_id"])


def test_predict_routing_key_is_taken(client: httpx.Client) -> None:
    answer = client.post("/predict", json={"inputs": [[0.0] * 64]}, headers={"headway-routing-key": "customer-7"})
    assert answer.json()["alias"] == "stable"


@pytest.mark.parametrize("size", [(1, 1), (3000, 10), (10, 3000), (224, 224)])
def test_predict_takes_any_shape_of_image(client: httpx.Client, size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "green").save(buffer, "PNG")
    answer = client.post("/predict", content=buffer.getvalue(), headers={"content-type": "image/png"})
    assert answer.status_code == 200


def test_predict_knows_labelled_photos_of_imagenet(client: httpx.Client) -> None:
    """20 labelled photos that came with another package, through real sockets and workers."""
    photos = foolbox_photos()
    body = {"images": [encode(photo.read_bytes()) for photo in photos], "top_k": 1}
    results = client.post("/predict", json=body).json()["results"]
    right = [
        result["predictions"][0]["index"] == int(photo.stem.split("_")[-1])
        for result, photo in zip(results, photos, strict=True)
    ]
    assert len(right) == 20
    assert sum(right) >= 17
