"""Clients that behave badly on real sockets: each is dealt with, and nobody else notices.

What they do to headers stands in tests/server/test_protocol.py, callers that leave a queue in test_overload.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import resource
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import PATIENCE_SECONDS, RunningServer, rss_bytes, running_server

BODY = json.dumps({"inputs": [[0.0] * 64], "model": "digits"}).encode()
IDLE_CONNECTIONS = 1000


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One worker, so that everybody shares it: bodies up to 1 MB, 4 MB at one time, in 9 s, and 50 bytes a second
    once 3 s have passed."""
    limits = {
        "HEADWAY_MAX_BODY_BYTES": "1000000",
        "HEADWAY_MAX_INFLIGHT_BYTES": "4000000",
        "HEADWAY_BODY_TIMEOUT_SECONDS": "9",
        "HEADWAY_BODY_MIN_BYTES_PER_SECOND": "50",
    }
    with running_server(tmp_path_factory.mktemp("strict") / "log", workers=1, **limits) as server:
        yield server


def connect(server: RunningServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), PATIENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def head(length: int, content_type: str = "application/json") -> bytes:
    lines = ("POST /predict HTTP/1.1", "host: t", f"content-type: {content_type}", f"content-length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def read_answer(connection: socket.socket) -> tuple[int, Any]:
    response = http.client.HTTPResponse(connection, method="POST")
    response.begin()
    return response.status, json.loads(response.read())


def ask(connection: socket.socket) -> int:
    connection.sendall(head(len(BODY)) + BODY)
    return read_answer(connection)[0]


def ask_often(server: RunningServer, times: int) -> Counter[int]:
    """What a neighbour on a connection of its own is answered."""
    with contextlib.closing(connect(server)) as connection:
        return Counter(ask(connection) for _ in range(times))


def disconnected(server: RunningServer) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if 'reason="disconnected"' in line)


def wait_for(claim: Callable[[], Any], what: str) -> Any:
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit:
        if found := claim():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_SECONDS:g} s: {what}")


def assert_too_slow(connection: socket.socket) -> None:
    status, body = read_answer(connection)
    assert (status, body["code"]) == (408, "body_timeout")
    assert "too slowly" in body["error"]
    assert connection.recv(1) == b""  # the rest of the body will not be waited for


def test_half_a_body_and_silence_gets_408_while_others_are_answered(strict: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(strict)) for _ in range(50)]
        for number, connection in enumerate(silent):
            connection.sendall(head(len(BODY)) + BODY[: number % 20])
        assert ask_often(strict, 50) == {200: 50}
        for connection in silent:
            assert_too_slow(connection)


def test_half_a_body_and_the_end_gives_back_its_memory(strict: RunningServer) -> None:
    before = disconnected(strict)
    for times in range(1, 7):
        for _ in range(3):
            with contextlib.closing(connect(strict)) as connection:
                connection.sendall(head(1_000_000, "image/jpeg") + b"x" * 900_000)
        wait_for(lambda expected=before + 3 * times: disconnected(strict) == expected, "those who left are counted")
    assert ask_often(strict, 10) == {200: 10}


@pytest.mark.parametrize(("size", "pause_seconds"), [(1, 0.001), (100, 0.125)], ids=["by the byte", "for 4 seconds"])
def test_a_body_in_small_pieces_is_answered(strict: RunningServer, size: int, pause_seconds: float) -> None:
    body = BODY if size == 1 else BODY.replace(b"[[", b"[[" + b" " * (3200 - len(BODY)))
    with contextlib.closing(connect(strict)) as connection:
        connection.sendall(head(len(body)))
        for start in range(0, len(body), size):
            connection.sendall(body[start : start + size])
            time.sleep(pause_seconds)
        assert read_answer(connection)[0] == 200


def test_a_body_in_small_pieces_that_is_too_slow_gets_408(strict: RunningServer) -> None:
    """10 bytes a second, where 50 are the least: it ends long before the time for a whole body."""
    with contextlib.closing(connect(strict)) as connection:
        connection.sendall(head(len(BODY)))
        for byte in BODY:
            connection.sendall(bytes([byte]))
            if select.select([connection], [], [], 0.1)[0]:
                break
        assert_too_slow(connection)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the connections here and, since it is inherited, in the workers."""
    needed = IDLE_CONNECTIONS + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.fail(f"this test needs {needed} open files; the hard limit (ulimit -Hn) is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_thousand_idle_connections_harm_nobody(tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "log", workers=2, HEADWAY_KEEPALIVE_SECONDS="600") as server,
        contextlib.ExitStack() as stack,
    ):
        idle = [stack.enter_context(connect(server)) for _ in range(IDLE_CONNECTIONS)]
        assert Counter(map(ask, idle)) == {200: IDLE_CONNECTIONS}
        for _ in range(10):
            assert ask_often(server, 20) == {200: 20}
        assert Counter(map(ask, idle)) == {200: IDLE_CONNECTIONS}


def test_a_client_that_does_not_read_its_answers_harms_nobody(strict: RunningServer) -> None:
    """It asks 300 times for a long answer and takes none; when it reads at last, they are all there."""
    (pid,) = strict.worker_pids()
    ask_often(strict, 10)
    before = rss_bytes(pid)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(PATIENCE_SECONDS)
        host, port = strict.url.removeprefix("http://").split(":")
        slow.connect((host, int(port)))
        slow.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: t\r\n\r\n" * 299)
        slow.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
        assert ask_often(strict, 200) == {200: 200}
        assert rss_bytes(pid) - before < 30_000_000
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        received = b""
        while chunk := slow.recv(1 << 20):
            received += chunk
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 300
    assert ask_often(strict, 10) == {200: 10}


def test_garbage_harms_nobody(strict: RunningServer) -> None:
    pids = strict.worker_pids()
    source = random.Random(0)
    beginnings = (b"", b"GET ", b"POST /predict HTTP/1.1\r\n", head(1000), head(0), head(5, "\0"))
    for number in range(200):
        with contextlib.closing(connect(strict)) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(beginnings[number % len(beginnings)] + source.randbytes(source.randrange(1, 3000)))
        if number % 20 == 0:
            assert ask_often(strict, 5) == {200: 5}
    assert strict.worker_pids() == pids
    assert "this is a bug" not in strict.log.read_text()


class Caller(threading.Thread):
    """Asks for ever, and notes which worker had the connection where an answer failed to come."""

    def __init__(self, server: RunningServer) -> None:
        super().__init__()
        self.server = server
        self.stopping = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.failed_on: list[int | None] = []
        self.worker: int | None = None

    def run(self) -> None:
        while not self.stopping.is_set():
            self.worker = None
            with contextlib.closing(connect(self.server)) as connection:
                try:
                    while not self.stopping.is_set():
                        self.statuses[ask(connection)] += 1
                        self.worker = self.worker or find_worker(self.server, connection)
                except (ConnectionError, http.client.HTTPException):
                    self.failed_on.append(self.worker)


def find_worker(server: RunningServer, connection: socket.socket) -> int | None:
    """The process that holds the other end."""
    here, there = connection.getsockname()[1], connection.getpeername()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{there:04X}") and fields[2].endswith(f":{here:04X}"):
            wanted = f"socket:[{fields[9]}]"
            return next((pid for pid in server.worker_pids() if wanted in open_files(pid)), None)
    return None


def open_files(pid: int) -> list[str]:
    names = []
    with contextlib.suppress(OSError):  # it has ended
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.append(os.readlink(path))
    return names


def test_a_killed_worker_takes_only_what_was_in_flight_on_it(tmp_path: Path) -> None:
    with running_server(tmp_path / "log", workers=2) as server:
        wait_for(lambda: server.log.read_text().count(" accepts after ") == 2, "both workers accept")
        callers = [Caller(server) for _ in range(8)]
        for caller in callers:
            caller.start()
        try:
            wait_for(lambda: len({caller.worker for caller in callers} - {None}) == 2, "both workers are asked")
            wait_for(lambda: all(caller.worker for caller in callers), "each caller has a worker")
            pids = set(server.worker_pids())
            victim = max(pids)
            bereaved = sum(caller.worker == victim for caller in callers)
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: len(set(server.worker_pids()) - pids) == 1, "a replacement")
            (replacement,) = set(server.worker_pids()) - pids
            wait_for(lambda: is_answered_by(server, replacement), "the replacement answers")
            # The bereaved have come back, to whichever worker.
            wait_for(lambda: all(caller.worker not in (None, victim) for caller in callers), "all are asking again")
        finally:
            for caller in callers:
                caller.stopping.set()
            for caller in callers:
                caller.join(PATIENCE_SECONDS)
        failed_on = [worker for caller in callers for worker in caller.failed_on]
        assert set(failed_on) <= {victim}
        assert len(failed_on) <= bereaved
        assert max(len(caller.failed_on) for caller in callers) <= 1
        assert {status for caller in callers for status in caller.statuses} == {200}


def is_answered_by(server: RunningServer, worker: int) -> bool:
    with contextlib.closing(connect(server)) as connection:
        return ask(connection) == 200 and find_worker(server, connection) == worker
