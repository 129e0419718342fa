"""Connections are spread evenly over the workers."""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

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
    for client, _ in opened:
        client.socket.close()
    return max(counts.values()) - (min(counts.values()) if len(counts) == workers else 0)


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
    try:
        opened = [two_workers.connect() for _ in range(30)]
        assert {client.get("/").json["slot"] for client in opened} == {1 - first["slot"]}
    finally:
        os.kill(first["pid"], signal.SIGCONT)
