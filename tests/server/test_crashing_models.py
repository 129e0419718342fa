"""Models that take their process with them: real ONNX files, real signals, `headway serve` as users start it.

ONNX Runtime divides INT64 with no look at the one quotient that does not fit, -2⁶³ / -1: on x86 that is SIGFPE.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.fixtures_models import onnx_file, write_model
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no trap for this division")

FATAL = 6
HARMLESS = 5
SENTENCE = "{} crashed a worker 3 times and is quarantined; restart the server, or release another version"


def write_crashing(root: Path, name: str, fatal: int = FATAL) -> None:
    """found = -2⁶³ / (at - fatal - 1), which ends the process where `at` is `fatal`; zero is what warm-up tries."""
    nodes = [
        helper.make_node("Sub", ["at", "offset"], ["divisor"]),
        helper.make_node("Div", ["least", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["found"], to=TensorProto.FLOAT),
    ]
    constants = {"offset": np.array(fatal + 1), "least": np.array(np.iinfo(np.int64).min)}
    data = onnx_file(nodes, [("at", "INT64", [-1])], [("found", "FP32", [-1])], constants)
    write_model(root, name, kind="lookup", files={"model.onnx": data}, batch={"axis": None})


def write_slow(root: Path, name: str) -> None:
    """Some hundredths of a second a run."""
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["square"]),
        helper.make_node("MatMul", ["square", "square"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["twice"], keepdims=0),
    ]
    data = onnx_file(nodes, [("x", "FP32", [])], [("twice", "FP32", [])], {"size": np.array([1000, 1000])})
    write_model(root, name, kind="double", files={"model.onnx": data})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    write_model(path, "scores")
    return path


@contextlib.contextmanager
def serving(root: Path, workers: int = 2, **environment: str) -> Iterator[RunningServer]:
    """All workers accept."""
    log = root.parent / "log"
    with running_server(log, workers=workers, HEADWAY_MODELS=str(root), **environment) as server:
        wait_for(lambda: log.read_text().count(" accepts after ") >= workers, "the workers")
        yield server


def wait_for(claim: Callable[[], Any], what: str) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not claim():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def ask(server: RunningServer, model: str, inputs: Any) -> httpx.Response:
    """On a connection of its own. A connection that a worker took with it is made again."""
    while True:
        with contextlib.suppress(httpx.ConnectError):
            body = {"model": model, "inputs": inputs}
            return httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE_SECONDS)


def crash(server: RunningServer, model: str) -> None:
    """One worker ends of it, and is replaced."""
    log = server.log.read_text()
    with pytest.raises(httpx.TransportError):
        ask(server, model, [FATAL])
    wait_for(lambda: count(server, " accepts after ") > log.count(" accepts after "), "a replacement")


def count(server: RunningServer, text: str) -> int:
    return server.log.read_text().count(text)


def find_states(server: RunningServer) -> dict[str, dict[str, int]]:
    """Model to the number of workers in each state, from /metrics."""
    states: dict[str, dict[str, int]] = {}
    for line in httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text.splitlines():
        found = re.match(r'headway_model_state\{model="(.+?)",state="(.+?)",version="1.0.0"\} (\d+)', line)
        if found and found[3] != "0":
            states.setdefault(found[1], {})[found[2]] = int(found[3])
    return states


@contextlib.contextmanager
def load_on(server: RunningServer, model: str, inputs: Any, callers: int = 2) -> Iterator[list[int]]:
    """Callers that ask one model all the time; the statuses of their answers so far."""
    statuses: list[int] = []
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            with contextlib.suppress(httpx.TransportError):  # it was in flight in the worker that crashed
                statuses.append(ask(server, model, inputs).status_code)

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_third_crash_quarantines_a_model_and_the_others_go_on(root: Path) -> None:
    write_crashing(root, "bad")
    with serving(root, workers=4) as server, load_on(server, "scores", [[1, 2, 3]]) as statuses:
        at_first = set(server.worker_pids())
        for _ in range(3):
            assert ask(server, "bad", [HARMLESS]).json()["outputs"] == {"found": [2**62]}
            crash(server, "bad")
        assert at_first & set(server.worker_pids()), "one that never crashed must be left, or it proves nothing"

        # Every worker knows at once, the new and the old.
        for _ in range(20):
            answer = ask(server, "bad", [HARMLESS])
            assert (answer.status_code, answer.json()["code"]) == (503, "model_quarantined")
            assert answer.json()["error"] == SENTENCE.format("bad@1.0.0")
            assert int(answer.headers["retry-after"]) > 0

        answered = len(statuses)
        wait_for(lambda: len(statuses) > answered + 50, "answers of the other model")
        assert set(statuses) == {200}
        wait_for(lambda: find_states(server) == {"bad": {"quarantined": 4}, "scores": {"ready": 4}}, "the metrics")
        models = httpx.get(f"{server.url}/models", timeout=PATIENCE_SECONDS).json()["models"]
        (version,) = next(model["versions"] for model in models if model["name"] == "bad")
        assert (version["state"], version["error"]) == ("quarantined", SENTENCE.format("bad@1.0.0"))
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        assert count(server, "SIGFPE") == 3
        assert count(server, "bad@1.0.0 crashed a worker 3 times and is quarantined: no worker runs it") == 1
        assert count(server, "bad@1.0.0 was in flight as worker") == 2


def test_model_that_was_in_flight_in_another_thread_is_not_counted(root: Path) -> None:
    write_crashing(root, "bad")
    write_slow(root, "slow")
    with serving(root, workers=1, HEADWAY_THREADS="4") as server:
        with load_on(server, "slow", {"x": 1.0}, callers=4):
            for _ in range(3):
                crash(server, "bad")
        assert count(server, "slow@1.0.0 was in flight") == 0
        assert ask(server, "slow", {"x": 1.0}).status_code == 200
        assert ask(server, "bad", [HARMLESS]).status_code == 503


def test_two_models_that_crash_in_turn_are_both_quarantined(root: Path) -> None:
    write_crashing(root, "bad")
    write_crashing(root, "worse")
    with serving(root) as server:
        for _ in range(2):
            crash(server, "bad")
            crash(server, "worse")
        assert [ask(server, model, [HARMLESS]).status_code for model in ("bad", "worse")] == [200, 200]
        crash(server, "bad")
        assert [ask(server, model, [HARMLESS]).status_code for model in ("bad", "worse")] == [503, 200]
        crash(server, "worse")
        assert [ask(server, model, [HARMLESS]).status_code for model in ("bad", "worse")] == [503, 503]
        assert ask(server, "scores", [[1, 2, 3]]).status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_models_that_crash_while_loading_do_not_keep_the_server_down(root: Path, workers: int) -> None:
    write_crashing(root, "bad", fatal=0)
    write_crashing(root, "worse", fatal=0)
    with serving(root, workers=workers) as server:
        wait_for(lambda: find_states(server).get("scores") == {"ready": workers}, "the good model, in all workers")
        assert ask(server, "scores", [[1, 2, 3]]).status_code == 200
        for name in ("bad", "worse"):
            assert ask(server, name, [HARMLESS]).json()["error"] == SENTENCE.format(f"{name}@1.0.0")
        assert count(server, " and is quarantined: no worker runs it") == 2
        assert 6 <= count(server, "SIGFPE") <= 6 + 2 * (workers - 1)


def test_killed_workers_quarantine_nothing(root: Path) -> None:
    """An operator's SIGKILL, or the out-of-memory killer's, hits what is busiest."""
    write_slow(root, "slow")
    with serving(root, workers=4) as server, load_on(server, "slow", {"x": 1.0}):
        for round_ in range(1, 6):
            for pid in server.worker_pids():
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: count(server, " accepts after ") >= 4 + 4 * round_, "the replacements")  # noqa: B023
        assert count(server, "SIGKILL") == 20
        assert count(server, "was in flight") == 0
        wait_for(lambda: find_states(server) == {"slow": {"ready": 4}, "scores": {"ready": 4}}, "the metrics")
