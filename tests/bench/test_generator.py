"""The load generator against a small server that counts, closes and misbehaves as told."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.generator import BROKEN, CONNECT_ERROR, TIMED_OUT, Generator, read_traffic

HEADERS = {"content-type": "text/plain"}


class CountingServer:
    """Answers by path: /ok 200, /half every second one 503 and closes, /early 413 before the body, /vanish and
    /silent not at all. `bodies` counts what arrived whole."""

    def __init__(self) -> None:
        self.bodies: Counter[bytes] = Counter()
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        self._started.wait()

    async def _serve(self) -> None:
        self._closing = asyncio.Event()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0, limit=2**20)
        self.url = "http://{}:{}".format(*server.sockets[0].getsockname())
        self._started.set()
        await self._closing.wait()
        server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1]
        if path == b"/early":
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
            return False
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        self.bodies[await reader.readexactly(size)] += 1
        if path == b"/vanish":
            return False
        if path == b"/silent":
            await self._closing.wait()
        if path == b"/half" and self.bodies.total() % 2 == 0:
            writer.write(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 2\r\nConnection: Close\r\n\r\nno")
            return False
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes")
        return True

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()


@pytest.fixture
def server() -> Iterator[CountingServer]:
    server = CountingServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    if shutil.which("cc") is None:
        if os.environ.get("CI"):
            pytest.fail("cc is missing")
        pytest.skip("cc is not installed; on Debian: apt-get install gcc libc6-dev")
    return Generator(tmp_path_factory.mktemp("generator"))


def test_closed_loop_sends_every_body_in_turn(generator: Generator, server: CountingServer) -> None:
    bodies = [b"small", b"x" * 500_000, b""]
    traffic = generator.closed_loop(f"{server.url}/ok", bodies, HEADERS, requests=30, connections=4)
    assert traffic.count(200) == len(traffic.fate) == 30
    assert server.bodies == dict.fromkeys(bodies, 10)
    assert server.connections == traffic.dials == 4
    assert (traffic.done >= traffic.sent).all()


def test_open_loop_is_evenly_spaced(generator: Generator, server: CountingServer) -> None:
    traffic = generator.open_loop(f"{server.url}/ok", [b"x" * 100_000], HEADERS, per_second=50, seconds=2)
    assert traffic.count(200) == server.bodies.total() == 100
    assert np.diff(traffic.due) == pytest.approx(1 / 50, abs=2e-6)
    assert (traffic.sent >= traffic.due).all()
    assert np.median(np.diff(traffic.sent)) == pytest.approx(1 / 50, rel=0.5)


def test_open_loop_by_poisson_has_its_mean_rate_and_repeats(generator: Generator, server: CountingServer) -> None:
    first, second = (
        generator.open_loop(f"{server.url}/ok", [b"x"], HEADERS, per_second=2000, seconds=0.5, is_poisson=True)
        for _ in range(2)
    )
    gaps = np.diff(first.due)
    assert gaps.mean() == pytest.approx(1 / 2000, rel=0.15)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.2)  # as an exponential distribution has it
    assert (first.due == second.due).all()


def test_connection_closed_by_the_server_is_dialled_again(generator: Generator, server: CountingServer) -> None:
    traffic = generator.open_loop(f"{server.url}/half", [b"x" * 100_000], HEADERS, per_second=200, seconds=0.5)
    assert (traffic.count(200), traffic.count(503)) == (50, 50)
    assert server.bodies.total() == 100
    assert server.connections == traffic.dials >= 50


def test_answer_before_the_body_is_read(generator: Generator, server: CountingServer) -> None:
    traffic = generator.closed_loop(f"{server.url}/early", [b"x" * 5_000], HEADERS, requests=10, connections=2)
    assert traffic.count(413) + traffic.count(BROKEN) == 10  # a reset may overtake the answer
    assert traffic.count(413) > 0


def test_connection_closed_without_an_answer_is_broken(generator: Generator, server: CountingServer) -> None:
    traffic = generator.closed_loop(f"{server.url}/vanish", [b"x"], HEADERS, requests=10, connections=2)
    assert traffic.count(BROKEN) == server.bodies.total() == 10


def test_silence_is_timed_out(generator: Generator, server: CountingServer) -> None:
    traffic = generator.open_loop(
        f"{server.url}/silent", [b"x"], HEADERS, per_second=100, seconds=0.1, connections=4, timeout_seconds=0.5
    )
    assert traffic.count(TIMED_OUT) == 10  # four on a connection, six waiting for one


def test_closed_port_is_counted(generator: Generator) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        traffic = generator.open_loop(url, [b"x"], HEADERS, per_second=100, seconds=0.1)
    assert traffic.count(CONNECT_ERROR) == 10


def test_wrong_address_is_an_error(generator: Generator) -> None:
    with pytest.raises(RuntimeError, match="not an IPv4 address"):
        generator.closed_loop("http://localhost:1/", [b"x"], HEADERS, requests=1, connections=1)


def test_output_is_read_into_columns() -> None:
    text = json.dumps(
        {
            "seconds": 1.5,
            "cpu_seconds": 0.25,
            "dials": 2,
            "requests": [[0, 0.001, 0.01, 200], [0.5, 0.5, 0.6, 503], [1, 1, 1.5, -2]],
        }
    )
    traffic = read_traffic(text)
    assert traffic.due.tolist() == [0, 0.5, 1]
    assert traffic.done.tolist() == [0.01, 0.6, 1.5]
    assert [traffic.count(fate) for fate in (200, 503, BROKEN, TIMED_OUT)] == [1, 1, 1, 0]


def test_source_has_no_warnings(tmp_path: Path) -> None:
    Generator(tmp_path, "-Wall", "-Wextra", "-Wpedantic", "-Werror")
