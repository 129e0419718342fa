"""Too many requests, too many at one time, and callers who are slow."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.nginx.balancer import Changes, Replica, list_replicas, running_nginx, wait_for
from tests.running import PATIENCE_SECONDS

pytestmark = pytest.mark.xdist_group("nginx")  # one set of replicas

ROW = {"model": "m", "inputs": [[0, 0, 1]]}
HEAD = b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
SLOW_CALLERS, ANSWERS = 100, 20


def allow(replicas: list[Replica], *changes: tuple[str, str]) -> Changes:
    return list_replicas([replica.address for replica in replicas]) | {"site/limits.conf": changes}


def check_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 429
    assert answer.json()["code"] == "too_many_requests"
    assert answer.headers["retry-after"] == "1"


def test_each_key_has_a_rate_of_its_own(tmp_path: Path, replicas: list[Replica]) -> None:
    changes = allow(replicas, ("rate=500r/s", "rate=1r/m"), ("burst=1000", "burst=2"))
    with running_nginx(tmp_path, changes) as nginx, httpx.Client(base_url=nginx.url) as client:
        for headers in ({}, {"X-API-Key": "a"}, {"Authorization": "Bearer b"}, {"X-API-Key": "c" * 129}):
            statuses = [client.post("/predict", json=ROW, headers=headers).status_code for _ in range(3)]
            if "c" in headers.get("X-API-Key", ""):  # too long to be one: it counts as its address, which is used up
                assert statuses == [429] * 3
            else:
                assert statuses == [200] * 3
            check_refused(client.post("/predict", json=ROW, headers=headers))
        assert nginx.read_log()[-1]["limited"].startswith("REJECTED")
        assert nginx.read_log()[-1]["upstream"] == ""


def test_invented_keys_do_not_evade_the_rate_of_the_address(tmp_path: Path, replicas: list[Replica]) -> None:
    changes = allow(replicas, ("rate=1000r/s", "rate=1r/m"), ("burst=2000", "burst=4"))
    with running_nginx(tmp_path, changes) as nginx, httpx.Client(base_url=nginx.url) as client:
        answers = [client.post("/predict", json=ROW, headers={"X-API-Key": f"k{number}"}) for number in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]


def test_requests_at_one_time_are_limited(tmp_path: Path, replicas: list[Replica]) -> None:
    changes = allow(replicas, ("headway_caller_connections 256", "headway_caller_connections 2"))
    with running_nginx(tmp_path, changes) as nginx, ThreadPoolExecutor() as pool:
        for replica in replicas:
            replica.pause()
        try:
            url = f"{nginx.url}/predict"
            asked = [pool.submit(httpx.post, url, json=ROW, timeout=PATIENCE_SECONDS) for _ in range(2)]
            wait_for(lambda: sum(replica.has_unread() for replica in replicas) == 2, "two at the replicas")
            check_refused(httpx.post(url, json=ROW))
            assert httpx.post(url, json=ROW, headers={"X-API-Key": "a"}, timeout=0.5) is None
        except httpx.ReadTimeout:
            pass  # another caller's is let in, and waits
        finally:
            for replica in replicas:
                replica.resume()
        assert [each.result().status_code for each in asked] == [200, 200]


def test_slow_callers_hold_no_worker(tmp_path: Path, replicas: list[Replica]) -> None:
    changes = allow(replicas)
    with running_nginx(tmp_path, changes) as nginx, contextlib.ExitStack() as stack:
        drips = []
        for number in range(SLOW_CALLERS):
            connection = socket.create_connection(("127.0.0.1", nginx.port), PATIENCE_SECONDS)
            drips.append(stack.enter_context(contextlib.closing(connection)))
            connection.sendall(HEAD if number % 2 else HEAD + b"content-length: 100000\r\n\r\n{")
        connections = sum(replica.count_connections() for replica in replicas)
        with httpx.Client(base_url=nginx.url) as client:
            for _ in range(ANSWERS):
                for number, connection in enumerate(drips):
                    connection.sendall(b"a: b\r\n" if number % 2 else b" ")
                assert client.post("/predict", json=ROW).status_code == 200
        # Only the answers can have opened any: half of the slow callers' headers are whole, and not even those did.
        assert sum(replica.count_connections() for replica in replicas) <= connections + ANSWERS < SLOW_CALLERS / 2
        for connection in drips[::2]:  # those whose headers are whole get their turn once the body is
            connection.sendall(b" " * (99_999 - ANSWERS))
        for connection in drips[::2]:
            assert connection.recv(100).startswith(b"HTTP/1.1 4")


def test_slow_readers_hold_no_worker(tmp_path: Path, replicas: list[Replica]) -> None:
    """An answer of more than the sockets' buffers is taken off the replica's hands at once."""
    body = b'{"model": "m", "inputs": [' + b",".join([b"[0,0,1]"] * 20_000) + b"]}"
    replica = replicas[0]

    def is_answered(request_id: str) -> bool:
        return any(line["request_id"] == request_id for line in replica.read_requests())

    with running_nginx(tmp_path, list_replicas([replica.address])) as nginx, contextlib.ExitStack() as stack:
        for request_id in ("reader-1", "reader-2"):
            lines = f"x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n"
            connection = stack.enter_context(contextlib.closing(socket.socket()))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", nginx.port))
            connection.sendall(HEAD + lines.encode() + body)
            wait_for(partial(is_answered, request_id), "the end of its answer")
        assert nginx.read_log() == []  # which nginx has not given off yet
    (found,) = (line for line in replica.read_requests() if line["request_id"] == "reader-2")
    assert (found["status"], found["bytes_out"] > 4_000_000) == (200, True)
