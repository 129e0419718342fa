"""Runs that fail, last too long or never end, on a real server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures_models import write_model, write_yaml
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

ENDLESS = 10**15


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """count takes as long as it is asked to, count-briefly at most half a second;
    cube cannot be ended, lookup fails beyond 2."""
    root = tmp_path_factory.mktemp("runs") / "models"
    write_model(root, "count", kind="count")
    write_model(root, "count-briefly", kind="count", limits={"max_run_seconds": 0.5})
    write_model(root, "cube", kind="cube", limits={"max_run_seconds": 0.5})
    for kind in ("scores", "lookup"):
        write_model(root, kind, kind=kind)
    write_yaml(root / "registry.yaml", {"schema": 1, "defaults": {"tensor": "scores"}})
    return root


@pytest.fixture(scope="module")
def single(models: Path) -> Iterator[RunningServer]:
    """One worker with one thread: who holds it holds everybody up."""
    log = models.parent / "log"
    with running_server(log, "--threads", "1", workers=1, HEADWAY_MODELS=str(models)) as server:
        yield server


def _post(server: RunningServer, model: str, inputs: object, **headers: str) -> httpx.Response:
    content = {"model": model, "inputs": inputs}
    return httpx.post(f"{server.url}/predict", json=content, headers=headers, timeout=PATIENCE_SECONDS)


def test_run_that_fails_is_its_callers_alone(single: RunningServer) -> None:
    answer = _post(single, "lookup", [9])
    assert (answer.status_code, answer.json()["code"]) == (500, "run_failed")
    assert _post(single, "lookup", [1]).json()["outputs"] == {"found": [20.0]}


def test_run_that_outlasts_its_callers_deadline_is_ended(single: RunningServer) -> None:
    """Its caller gets 504 at the deadline, and the thread is free for the next."""
    (worker,) = single.worker_pids()
    answer = _post(single, "count", {"to": ENDLESS}, **{"Headway-Timeout-Ms": "300"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert _post(single, "scores", [[1, 2, 3]]).status_code == 200
    assert _post(single, "count", {"to": 5}).json()["outputs"] == {"steps": 5}
    assert single.worker_pids() == [worker]


def test_run_beyond_max_run_seconds_is_ended(single: RunningServer) -> None:
    (worker,) = single.worker_pids()
    answer = _post(single, "count-briefly", {"to": ENDLESS})
    assert answer.status_code == 504
    assert "did not answer within 0.5 s (max_run_seconds)" in answer.json()["error"]
    assert _post(single, "count-briefly", {"to": 7}).json()["outputs"] == {"steps": 7}
    assert single.worker_pids() == [worker]


def test_run_whose_caller_left_is_ended(single: RunningServer) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{single.url}/predict", json={"model": "count", "inputs": {"to": ENDLESS}}, timeout=0.3)
    assert _post(single, "count", {"to": 3}).json()["outputs"] == {"steps": 3}


def test_neighbours_of_a_run_that_does_not_end_are_answered_or_told(single: RunningServer) -> None:
    """None waits for its own deadline: the run is ended at that of its caller."""
    codes: list[int] = []
    holder = threading.Thread(
        target=_post, args=(single, "count", {"to": ENDLESS}), kwargs={"Headway-Timeout-Ms": "1500"}
    )
    holder.start()
    time.sleep(0.2)
    for _ in range(5):
        codes.append(_post(single, "lookup", [0]).status_code)
    holder.join(PATIENCE_SECONDS)
    assert set(codes) <= {200, 503}
    assert _post(single, "lookup", [0]).status_code == 200


def test_worker_with_a_run_that_cannot_be_ended_is_replaced(models: Path, tmp_path: Path) -> None:
    """Its callers are told, its neighbours are answered all the time, and nobody waits for it to end."""
    with running_server(tmp_path / "log", "--threads", "1", workers=1, HEADWAY_MODELS=str(models)) as server:
        (worker,) = server.worker_pids()
        answer = _post(server, "cube", {"side": 3000})
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        limit = time.monotonic() + PATIENCE_SECONDS
        while server.worker_pids() in ([worker], []):
            assert time.monotonic() < limit, "the worker was not replaced"
            with contextlib.suppress(httpx.ConnectError):  # between the two
                assert _post(server, "lookup", [1]).status_code == 200
        assert _post(server, "cube", {"side": 3}).json()["outputs"] == {"steps": 27}
        log = server.log.read_text()
        assert "a run of cube did not end within 0.5 s (max_run_seconds)" in log
        assert "a run of cube cannot be ended; this worker answers what it has, and is replaced" in log
