"""Probes, metrics, the catalogue, keys, CORS and the OpenAPI document, over real workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.running import PATIENCE_SECONDS, RunningServer, running_server

ROW = [0.0] * 64


def samples(server: RunningServer, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """One metric by its labels. A connection of its own: any worker may answer."""
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.parametrize(("probe", "status"), [("live", "live"), ("ready", "ready"), ("startup", "started")])
def test_probes_answer(client: httpx.Client, probe: str, status: str) -> None:
    assert client.get(f"/health/{probe}").json() == {"status": status}
    assert client.head(f"/health/{probe}").status_code == 200


def test_models_lists_what_is_served(client: httpx.Client) -> None:
    listed = client.get("/models").json()
    assert listed["defaults"] == {"image": "efficientnet-lite0", "text": "sentiment", "tensor": "digits"}
    models = {model["name"]: model for model in listed["models"]}
    assert models["digits"]["aliases"] == {"stable": "1.1.0"}
    assert models["digits"]["release"] == "explicit"
    versions = models["digits"]["versions"]
    assert [(version["version"], version["state"]) for version in versions] == [("1.0.0", "ready"), ("1.1.0", "ready")]
    assert all(set(version["workers"]) == {"ready"} for version in versions)
    assert models["digits"]["serving"] == {"stable": "1.1.0"}
    assert models["efficientnet-lite0"]["kind"] == "image"
    assert client.get("/models/digits").json()["task"] == "tabular-classification"


def test_model_version_shows_its_manifest(client: httpx.Client) -> None:
    detail = client.get("/models/efficientnet-lite0/stable").json()
    assert detail["version"] == "1.1.0"
    assert detail["manifest"]["inputs"][0]["shape"] == [-1, 224, 224, 3]
    assert detail["labels"][281] == "tabby cat"
    assert len(detail["labels"]) == 1000
    for path in ("/models/digits/9.9.9", "/models/digits/canary"):
        assert client.get(path).json()["code"] == "version_not_found"
    assert client.get("/models/nothing").json()["code"] == "model_not_found"


def test_openapi_documents_predict_with_examples_that_work(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["schema"]["properties"]) >= {"image", "images", "inputs", "model", "top_k"}
    for name, example in body["examples"].items():
        assert client.post("/predict", json=example["value"]).status_code == 200, name
    assert "swagger" in client.get("/docs").text.lower()


def test_metrics_count_answers_by_status(client: httpx.Client, server: RunningServer) -> None:
    labels = {"protocol": "predict", "model": "digits", "version": "1.0.0"}
    good, bad = (tuple(sorted((labels | {"code": code}).items())) for code in ("200", "400"))
    before = samples(server, "headway_requests_total")
    for _ in range(7):
        client.post("/predict", json={"inputs": [ROW], "model": "digits@1.0.0"})
    client.post("/predict", json={"inputs": [[1.0]], "model": "digits@1.0.0"})
    after = samples(server, "headway_requests_total")
    assert after[good] - before.get(good, 0) == 7
    assert after[bad] - before.get(bad, 0) == 1


def test_metrics_never_take_a_label_from_a_request(client: httpx.Client, server: RunningServer) -> None:
    client.post("/predict", json={"inputs": [ROW], "model": "made-up-by-a-caller"})
    client.post("/predict", content=b"{")
    counted = samples(server, "headway_requests_total")
    models = {dict(labels)["model"] for labels in counted}
    assert "unknown" in models
    assert models <= {"unknown", "digits", "digits-cascade", "efficientnet-lite0", "sentiment", "recommender"}


def test_metrics_have_the_names_of_the_contract(client: httpx.Client, server: RunningServer, cat: bytes) -> None:
    client.post("/predict", content=cat, headers={"content-type": "image/jpeg"})
    text = client.get("/metrics").text
    for name in (
        "headway_requests_total",
        "headway_request_duration_seconds_bucket",
        "headway_stage_duration_seconds_bucket",
        "headway_queue_depth",
        "headway_in_flight_requests",
        "headway_model_info",
        "headway_model_state",
        "headway_model_load_seconds",
    ):
        assert f"\n{name}" in text or text.startswith(name), name
    state = samples(server, "headway_model_state")
    assert state[(("model", "digits"), ("state", "ready"), ("version", "1.1.0"))] == server.workers
    stages = {dict(labels)["stage"] for labels in samples(server, "headway_stage_duration_seconds_count")}
    assert stages == {"decode", "preprocess", "queue", "inference", "postprocess"}


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_metrics_survive_killed_workers(tmp_path: Path, kills: int) -> None:
    """Workers are killed under load: no counter goes back, and at most one answer a kill is not counted."""
    with running_server(tmp_path / "log", workers=2) as server:
        answered: Counter[int] = Counter()
        lock, stop = threading.Lock(), threading.Event()

        def ask() -> None:
            while not stop.is_set():
                with httpx.Client(timeout=PATIENCE_SECONDS) as client:
                    try:
                        while not stop.is_set():
                            status = client.post(f"{server.url}/predict", json={"inputs": [ROW]}).status_code
                            with lock:
                                answered[status] += 1
                    except httpx.TransportError:
                        continue  # its worker was killed

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        counts = []
        try:
            for _ in range(kills):
                pids = wait_for_workers(server)
                os.kill(pids[0], signal.SIGKILL)
                time.sleep(0.05)
                counts.append(sum(samples(server, "headway_requests_total").values()))
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_SECONDS)
        wait_for_workers(server)
        total = sum(samples(server, "headway_requests_total").values())
        assert counts == sorted(counts)
        # 503: on a machine that is busy a worker may be behind.
        assert 200 in answered
        assert set(answered) <= {200, 503}
        assert total >= answered.total() - kills
        # A killed worker may have counted an answer that its caller never got: one for each of four connections.
        assert total <= answered.total() + 4 * kills


def wait_for_workers(server: RunningServer) -> list[int]:
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit:
        ready = samples(server, "headway_model_state").get(
            (("model", "digits"), ("state", "ready"), ("version", "1.1.0")), 0
        )
        if len(pids := server.worker_pids()) == server.workers and ready == server.workers:
            return pids
        time.sleep(0.02)
    raise AssertionError("the workers did not come back")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    environment = {"HEADWAY_API_KEYS": "first-key, second-key", "HEADWAY_CORS_ORIGINS": "https://shop.example"}
    with running_server(tmp_path_factory.mktemp("guarded") / "log", workers=1, **environment) as server:
        yield server


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"x-api-key": "first"}])
def test_keys_close_every_route_that_is_not_listed_as_open(guarded: RunningServer, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=PATIENCE_SECONDS) as client:
        paths = client.get("/openapi.json").json()["paths"]
        closed = {path for path in paths if not path.startswith(("/health/", "/v2/health/")) and path != "/metrics"}
        assert {"/predict", "/models"} <= closed
        for path in closed:
            for method in paths[path]:
                answer = client.request(method, path.replace("{name}", "digits").replace("{version}", "1.0.0"))
                assert answer.status_code == 401, path
                assert answer.json()["code"] == "unauthorized"
                assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/", "/docs", "/health/live", "/health/ready", "/metrics"):
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("headers", [{"authorization": "Bearer first-key"}, {"x-api-key": "second-key"}])
def test_keys_open(guarded: RunningServer, headers: dict[str, str]) -> None:
    answer = httpx.post(f"{guarded.url}/predict", json={"inputs": [ROW]}, headers=headers, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 200


def test_keys_are_never_logged(guarded: RunningServer) -> None:
    httpx.get(f"{guarded.url}/models", headers={"x-api-key": "first-key"}, timeout=PATIENCE_SECONDS)
    log = guarded.log.read_text()
    assert "first-key" not in log
    assert "second-key" not in log


def test_cors_allows_the_named_origin_only(guarded: RunningServer) -> None:
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    good = httpx.options(f"{guarded.url}/predict", headers={"origin": "https://shop.example", **preflight})
    assert good.headers["access-control-allow-origin"] == "https://shop.example"
    other = httpx.options(f"{guarded.url}/predict", headers={"origin": "https://other.example", **preflight})
    assert "access-control-allow-origin" not in other.headers


def test_sigterm_finishes_what_was_accepted(tmp_path: Path, cat: bytes) -> None:
    """While draining ready answers 503 and predictions go on; the exit code is 0 and nothing accepted is lost."""
    with running_server(tmp_path / "log", workers=2, HEADWAY_DRAIN_SECONDS="2") as server:
        statuses: Counter[int] = Counter()
        ready: Counter[int] = Counter()
        errors: list[Exception] = []
        lock, stop = threading.Lock(), threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    answer = httpx.post(
                        f"{server.url}/predict",
                        content=cat,
                        headers={"content-type": "image/jpeg"},
                        timeout=PATIENCE_SECONDS,
                    )
                    probe = httpx.get(f"{server.url}/health/ready", timeout=PATIENCE_SECONDS)
                except httpx.ConnectError:
                    return  # the listener has closed: nothing was accepted
                except httpx.TransportError as exc:
                    errors.append(exc)
                    return
                with lock:
                    statuses[answer.status_code] += 1
                    ready[probe.status_code] += 1

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        code = server.stop()
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert code == 0
        assert errors == []
        assert set(statuses) == {200}
        assert ready[503] > 0
