"""Replicas die, restart, drain and are replaced under 64 connections, and no caller of a prediction notices."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.nginx.balancer import Nginx, Replica, list_replicas, running_nginx, wait_for
from tests.nginx.callers import Callers, build_request, calling
from tests.running import PATIENCE_SECONDS, ROOT

pytestmark = pytest.mark.xdist_group("nginx")  # one set of replicas

ROW = {"model": "m", "inputs": [[0, 0, 1]]}
FEEDBACK = {"prediction_id": "none of ours", "label": "high"}
PREDICTION = build_request("/predict", ROW)
FAST = build_request("/predict", {"model": "slow", "inputs": {"to": 50}})
# 50 times as long.
SLOW = build_request("/predict", {"model": "slow", "inputs": {"to": 30_000}}, "x-request-id: slow")


def wait_for_answers(callers: Callers, count: int = 200) -> None:
    goal = callers.answered + count
    wait_for(lambda: callers.answered >= goal, f"{count} more answers")


def test_killed_replica_costs_nothing(nginx: Nginx, replicas: list[Replica]) -> None:
    with calling(nginx.port, PREDICTION) as callers:
        wait_for_answers(callers)
        replicas[0].kill()
        wait_for_answers(callers)
        replicas[0].start()
        wait_for_answers(callers)
    assert set(callers.outcomes) == {200}, callers.outcomes
    last = {line["upstream"] for line in nginx.read_log()[-100:]}
    assert replicas[0].address in last  # it was taken back at once


def test_drained_replica_costs_nothing(nginx: Nginx, replicas: list[Replica]) -> None:
    with calling(nginx.port, PREDICTION) as callers:
        wait_for_answers(callers)
        replicas[1].stop()
        wait_for_answers(callers)
        replicas[1].start()
        wait_for_answers(callers)
    assert set(callers.outcomes) == {200}, callers.outcomes


def test_replacing_all_replicas_costs_nothing(nginx: Nginx, replicas: list[Replica]) -> None:
    with calling(nginx.port, PREDICTION) as callers:
        for replica in replicas:
            replica.kill()
            replica.start()
        wait_for_answers(callers)
    assert set(callers.outcomes) == {200}, callers.outcomes


def test_prediction_is_repeated_and_feedback_is_not(tmp_path: Path, replicas: list[Replica]) -> None:
    first, second = replicas[:2]
    changes = list_replicas([first.address, second.address], "backup")
    with running_nginx(tmp_path, changes) as nginx, ThreadPoolExecutor() as pool:

        def ask_the_dying(path: str, content: Any) -> httpx.Response:
            """A whole request lies with a replica, which dies before it has answered."""
            first.pause()
            headers = {"X-Request-ID": f"dying{path}"}
            url = nginx.url + path
            asked = pool.submit(httpx.post, url, json=content, headers=headers, timeout=PATIENCE_SECONDS)
            wait_for(first.has_unread, "the request at the first replica")
            first.kill()
            return asked.result()

        answer = ask_the_dying("/predict", ROW)
        assert answer.status_code == 200
        line = nginx.get_line("dying/predict")
        assert line["upstream"] == f"{first.address}, {second.address}"
        # No connection is made, so nothing is sent twice: the other one gets it, and what it answers stands.
        answer = httpx.post(f"{nginx.url}/feedback", json=FEEDBACK)
        assert (answer.status_code, answer.json()["code"]) == (400, "forged_prediction")
        first.start()
        answer = ask_the_dying("/feedback", FEEDBACK)
        assert (answer.status_code, answer.json()["code"]) == (502, "no_replica")
        assert nginx.get_line("dying/feedback")["upstream"] == first.address
    wait_for(lambda: "dying/predict" in {line["request_id"] for line in second.read_requests()}, "its line")
    assert "dying/feedback" not in {line["request_id"] for line in second.read_requests()}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        ({"model": "broken", "inputs": [[0, 0, 1]]}, {}, 503),
        ({"model": "slow", "inputs": {"to": 300_000}}, {"Headway-Timeout-Ms": "1"}, 504),
    ],
)
def test_refusals_are_not_passed_on(nginx: Nginx, content: Any, headers: dict[str, str], status: int) -> None:
    answer = httpx.post(f"{nginx.url}/predict", json=content, headers=headers, timeout=PATIENCE_SECONDS)
    assert answer.status_code == status, answer.text
    line = nginx.get_line(answer.json()["request_id"])
    assert (line["upstream_status"], "," in line["upstream"]) == (str(status), False)


def test_requests_under_way_are_spread_evenly(nginx: Nginx, replicas: list[Replica]) -> None:
    """Nothing is answered while they are counted, so it does not matter how fast each replica is."""
    each = 4
    with paused(replicas), ThreadPoolExecutor(each * 3) as pool:
        asked = [pool.submit(ask, nginx) for _ in range(each * 3)]
        wait_for(lambda: sum(replica.count_unread() for replica in replicas) == each * 3, "all at the replicas")
        assert [replica.count_unread() for replica in replicas] == [each] * 3
        resume(replicas)
        assert {answer.result() for answer in asked} == {200}


def test_spread_follows_the_work_and_not_the_number(nginx: Nginx, replicas: list[Replica]) -> None:
    """One replica is busy with a request: all others go past it. Taking turns would give it a third of them."""
    busy = replicas[0]
    with paused([busy]), ThreadPoolExecutor() as pool:
        asked = []
        while not busy.count_unread():
            asked.append(pool.submit(ask, nginx))
            wait_for(lambda: busy.count_unread() or asked[-1].done(), "the request at a replica")
        for number in range(30):
            assert ask(nginx, f"past-{number}") == 200
        resume([busy])
        assert {answer.result() for answer in asked} == {200}
    taken = Counter(nginx.get_line(f"past-{number}")["upstream"] for number in range(30))
    assert taken == {replica.address: 15 for replica in replicas[1:]}


def ask(nginx: Nginx, request_id: str = "") -> int:
    headers = {"X-Request-ID": request_id} if request_id else {}
    return httpx.post(f"{nginx.url}/predict", json=ROW, headers=headers, timeout=PATIENCE_SECONDS).status_code


@contextlib.contextmanager
def paused(replicas: Sequence[Replica]) -> Iterator[None]:
    for replica in replicas:
        replica.pause()
    try:
        yield
    finally:
        resume(replicas)


def resume(replicas: Sequence[Replica]) -> None:
    for replica in replicas:
        replica.resume()


@pytest.mark.slow
def test_spread_is_even_over_fast_and_slow(nginx: Nginx, replicas: list[Replica]) -> None:
    """As even as the machine is to the replicas: a process that gets less of the CPU gets fewer requests."""
    count = 10_000
    draw = random.Random(7)
    requests = [SLOW if draw.random() < 0.1 else FAST for _ in range(count)]
    taken, slow = spread(nginx, requests)
    assert set(taken) == {replica.address for replica in replicas}
    for address in taken:
        assert 0.8 <= taken[address] * 3 / count <= 1.2, taken
        assert 0.8 <= slow[address] * 3 / slow.total() <= 1.2, slow


def spread(nginx: Nginx, requests: Sequence[bytes]) -> tuple[Counter[str], Counter[str]]:
    """How many requests each replica got of all, and of the slow ones."""
    callers = Callers(nginx.port, requests, 12, 0.002)
    callers.run()
    assert callers.outcomes == {200: len(requests)}
    wait_for(lambda: len(nginx.read_log()) == len(requests), "all lines")
    lines = nginx.read_log()
    slow = [line for line in lines if line["request_id"].startswith("slow")]
    return Counter(line["upstream"] for line in lines), Counter(line["upstream"] for line in slow)


def test_unix_sockets_are_replicas_too(tmp_path: Path, tiny_models: Path) -> None:
    socket = tmp_path / "socket"
    command = [sys.executable, "-m", "app.cli.main", "serve", "--uds", str(socket), "--workers", "1"]
    env = os.environ | {"HEADWAY_MODELS": str(tiny_models), "HEADWAY_DRAIN_SECONDS": "0"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stderr=log)
    try:
        wait_for(lambda: b"accepts after" in (tmp_path / "log").read_bytes(), "the server")
        with running_nginx(tmp_path / "nginx", list_replicas([f"unix:{socket}"])) as nginx:
            answer = httpx.post(f"{nginx.url}/predict", json=ROW, timeout=PATIENCE_SECONDS)
        assert answer.status_code == 200, answer.text
    finally:
        server.terminate()
        server.wait(PATIENCE_SECONDS)
