"""Connections are spread evenly over the workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.server.acceptor import count_waiting

# A neighbour that gets no processor for 5 ms loses its turn, so on a busy machine one try may be uneven.
TRIES = 8


@pytest.fixture(scope="module")
def two_workers(start_shared: Any) -> Any:
    return start_shared(workers=2)


@pytest.fixture(scope="module")
def four_workers(start_shared: Any) -> Any:
    return start_shared(workers=4)


def spread(server: Any, connections: int, workers: int) -> int:
    """Open so many at once, and return by how much the workers differ."""

    def open_one(_: int) -> Any:
        client = server.connect()
        return client, client.get("/").json["slot"]

    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(open_one, range(connections)))
    counts = Counter(slot for _, slot in opened)
    for client, _ in opened:
        assert client.get("/again").status == 200
    close([client for client, _ in opened])
    return max(counts.values()) - (min(counts.values()) if len(counts) == workers else 0)


def close(clients: Sequence[Any]) -> None:
    for client in clients:
        client.socket.close()


@pytest.mark.parametrize("connections", [8, 16, 64])
def test_keepalive_connections_over_two_workers(two_workers: Any, connections: int) -> None:
    assert min(spread(two_workers, connections, 2) for _ in range(TRIES)) <= 1


@pytest.mark.parametrize("connections", [8, 16, 64])
def test_keepalive_connections_over_four_workers(four_workers: Any, connections: int) -> None:
    assert min(spread(four_workers, connections, 4) for _ in range(TRIES)) <= 1


def test_busy_neighbour_does_not_hold_up_connections(two_workers: Any) -> None:
    """With one worker stopped, the other takes all that come, though it soon has more than its share."""
    first = two_workers.get("/").json
    os.kill(first["pid"], signal.SIGSTOP)
    opened = [two_workers.connect() for _ in range(30)]
    try:
        assert {client.get("/").json["slot"] for client in opened} == {1 - first["slot"]}
    finally:
        os.kill(first["pid"], signal.SIGCONT)
        close(opened)


def spread_after_stop(server: Any, connections: int) -> int:
    """Stop all workers, let so many connect and ask, wake the workers; return by how much they differ."""
    workers = server.list_workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    opened = [server.connect() for _ in range(connections)]
    for client in opened:
        client.ask("/")
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    counts = Counter(client.read().json["slot"] for client in opened)
    close(opened)
    return abs(counts[0] - counts[1])


def test_connections_that_came_while_all_were_busy(two_workers: Any) -> None:
    """The one that is woken first may take a few of those that the other has not come to yet."""
    assert min(spread_after_stop(two_workers, 200) for _ in range(TRIES)) <= 20


def test_kernel_tells_how_many_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        for count in range(1, 6):
            stack.enter_context(socket.create_connection(listener.getsockname()))
            assert count_waiting(listener) == count
        listener.accept()[0].close()
        assert count_waiting(listener) == 4
