"""What is served changes under traffic: no request fails, and each is answered by a version that was released."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import helper

from tests.fixtures_models import onnx_file, write_model, write_release
from tests.running import PATIENCE_SECONDS, RunningServer, rss_bytes, running_server

CALLERS = 8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        write_model(path, "m", version)
    (path / "m/3.0.0/labels.txt").write_text("damaged\n")
    release(path, "1.0.0")
    return path


@pytest.fixture
def server(root: Path) -> Iterator[RunningServer]:
    with running_server(root.parent / "log", workers=2, HEADWAY_MODELS=str(root)) as server:
        wait_for(lambda: server.log.read_text().count(" accepts after ") == 2, "both workers")
        yield server


def release(root: Path, version: str, **sections: Any) -> None:
    """As `git pull` does: another file in its place."""
    staged = write_release(root.parent / "staged", "m", version, **sections)
    (root / "m").mkdir(parents=True, exist_ok=True)
    os.replace(staged, root / "m/release.yaml")


def wait_for(claim: Any, what: str) -> Any:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not (found := claim()):
        assert time.monotonic() < limit, what
        time.sleep(0.05)
    return found


def read(server: RunningServer) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/models/m", timeout=PATIENCE_SECONDS).json()
    return found


def converge(server: RunningServer, version: str) -> None:
    def is_there() -> bool:
        model = read(server)
        return model["has_converged"] and model["serving"]["stable"] == version

    wait_for(is_there, f"all serve {version}")


@dataclass
class Traffic:
    """When each request was sent, and what answered: a status and a version."""

    answers: list[tuple[float, int, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def since(self, moment: float) -> set[tuple[int, str]]:
        return {(status, version) for sent, status, version in self.answers if sent > moment}


@contextlib.contextmanager
def traffic(server: RunningServer) -> Iterator[Traffic]:
    found, is_over = Traffic(), threading.Event()

    def call() -> None:
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:
            while not is_over.is_set():
                sent = time.monotonic()
                try:
                    answer = client.post(f"{server.url}/predict", json={"model": "m", "inputs": [[1, 2, 3]]})
                    found.answers.append((sent, answer.status_code, answer.json().get("version", answer.text)))
                except httpx.HTTPError as exc:
                    found.failures.append(repr(exc))

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        is_over.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


def test_releases_change_under_traffic(server: RunningServer, root: Path) -> None:
    with traffic(server) as found:
        for version in ("2.0.0", "1.0.0", "2.0.0"):
            release(root, version)
            converge(server, version)
            moment = time.monotonic()
            wait_for(lambda moment=moment: len(found.since(moment)) and len(found.answers), "answers")
            time.sleep(0.2)
            assert found.since(moment) == {(200, version)}
        # A version that cannot be served changes nothing, and everybody can read why.
        release(root, "3.0.0")
        wait_for(lambda: "failed" in {entry["state"] for entry in read(server)["versions"]}, "the failure")
        model = read(server)
        assert model["serving"] == {"stable": "2.0.0"}
        assert not model["has_converged"]
        assert any("labels.txt" in entry.get("error", "") for entry in model["versions"])
        # The directory goes, and comes back with another release.
        moved = root.with_name("elsewhere")
        root.rename(moved)
        time.sleep(1.5)
        release(moved, "1.0.0")
        moved.rename(root)
        converge(server, "1.0.0")
    assert found.failures == []
    assert {status for _, status, _ in found.answers} == {200}
    assert {version for _, _, version in found.answers} == {"1.0.0", "2.0.0"}


def test_canary_and_addresses(server: RunningServer, root: Path) -> None:
    release(root, "1.0.0", aliases={"canary": {"version": "2.0.0", "weight": 30}})
    wait_for(lambda: read(server)["serving"].get("canary") == "2.0.0" and read(server)["has_converged"], "the canary")

    def version(model: str = "m", **headers: str) -> str:
        content = {"model": model, "inputs": [[1, 2, 3]]}
        answer = httpx.post(f"{server.url}/predict", json=content, headers=headers, timeout=PATIENCE_SECONDS)
        return str(answer.json()["version"])

    by_key = {key: {version(**{"Headway-Routing-Key": key}) for _ in range(6)} for key in map(str, range(30))}
    assert all(len(versions) == 1 for versions in by_key.values())  # on whichever worker
    assert {"1.0.0", "2.0.0"} == {found for versions in by_key.values() for found in versions}
    key = next(key for key, versions in by_key.items() if versions == {"1.0.0"})
    assert version("m@canary", **{"Headway-Routing-Key": key}) == "2.0.0"
    assert version("m@2.0.0", **{"Headway-Routing-Key": key}) == "2.0.0"


def write_large(root: Path, name: str, version: str) -> None:
    """scores, by way of two matrices of 30 MB that undo each other's sign."""
    weights = np.zeros((3, 2_500_000), np.float32)
    weights[0, 0] = weights[1, 1] = weights[2, 2] = -1
    nodes = [
        helper.make_node("MatMul", ["x", "there"], ["wide"]),
        helper.make_node("MatMul", ["wide", "back"], ["scores"]),
    ]
    constants = {"there": weights, "back": weights.T.copy()}
    data = onnx_file(nodes, [("x", "FP32", [-1, 3])], [("scores", "FP32", [-1, 3])], constants)
    write_model(root, name, version, files={"model.onnx": data})


def test_memory_comes_back_after_an_unload(tmp_path: Path) -> None:
    """A version of 60 MB on disk, 200 MB loaded, released and taken back again and again."""
    root = tmp_path / "models"
    write_model(root, "m", "1.0.0")
    write_large(root, "m", "2.0.0")
    release(root, "1.0.0")
    with running_server(tmp_path / "log", workers=1, HEADWAY_MODELS=str(root)) as server:
        (worker,) = server.worker_pids()
        sizes: dict[str, list[float]] = {"1.0.0": [], "2.0.0": []}
        for version in ("2.0.0", "1.0.0") * 3:
            release(root, version)
            converge(server, version)
            time.sleep(2.5)
            sizes[version].append(rss_bytes(worker) / 1e6)
    loaded = min(sizes["2.0.0"]) - sizes["1.0.0"][0]
    assert loaded > 50, sizes
    assert max(sizes["1.0.0"]) - sizes["1.0.0"][0] < loaded / 4, sizes


def test_cold_request_waits_for_its_model_within_its_deadline(server: RunningServer, root: Path) -> None:
    write_model(root, "cold")
    write_release(root, "cold", "1.0.0", load="lazy")

    def is_known() -> bool:
        models = httpx.get(f"{server.url}/models", timeout=PATIENCE_SECONDS).json()["models"]
        states = {model["name"]: model["versions"][0].get("workers") for model in models}
        return states.get("cold") == {"unloaded": 2}

    wait_for(is_known, "the cold model")
    answer = httpx.post(
        f"{server.url}/predict", json={"model": "cold", "inputs": [[1, 2, 3]]}, timeout=PATIENCE_SECONDS
    )
    assert answer.status_code == 200
    content = {"model": "cold", "inputs": [[1, 2, 3]]}
    soon = httpx.post(f"{server.url}/predict", json=content, headers={"Headway-Timeout-Ms": "1"})
    assert soon.status_code in (200, 503, 504)
