"""What hostile images cost their neighbours, and what bodies cost in memory. Run by `make verify`."""

from __future__ import annotations

import contextlib
import io
import random
import socket
import statistics
import struct
import threading
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.running import PATIENCE_SECONDS, RunningServer, rss_bytes, running_server

pytestmark = pytest.mark.slow


def progressive_jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", progressive=True, quality=90)
    return buffer.getvalue()


def gif_of_many_frames() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (10_000, 16, 16), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in pixels]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=10)
    return buffer.getvalue()


def png_with_a_text_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    png = buffer.getvalue()
    return png[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 100_000_000)) + png[33:]


def tiff_of_many_directories() -> bytes:
    one = struct.pack("<H", 0)
    count, data = 1_000_000, [b"II*\0", struct.pack("<I", 8)]
    offset = 8
    for number in range(count):
        offset += len(one) + 4
        data += [one, struct.pack("<I", offset if number < count - 1 else 0)]
    return b"".join(data)


HOSTILE = (progressive_jpeg, gif_of_many_frames, png_with_a_text_bomb, tiff_of_many_directories)


def latencies(url: str, photo: bytes, count: int) -> list[float]:
    seconds = []
    with httpx.Client(timeout=PATIENCE_SECONDS) as client:
        for _ in range(count):
            started = time.perf_counter()
            answer = client.post(f"{url}/predict", content=photo, headers={"content-type": "image/jpeg"})
            seconds.append(time.perf_counter() - started)
            assert answer.status_code == 200
            time.sleep(random.random() / 100)
    return seconds


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def test_hostile_images_do_not_slow_a_neighbour(tmp_path: Path, cat: bytes) -> None:
    """The neighbour's p99 beside each hostile kind stays under 3 × its p99 beside ordinary photos at the same rate.

    The median of three rounds, each with both in turn: the machine may be busy with something else.
    """
    with running_server(tmp_path / "log", workers=2) as server:
        for make in HOSTILE:
            hostile = make()
            ratios = [p99(beside(server, hostile, cat)) / p99(beside(server, cat, cat)) for _ in range(3)]
            ratio = statistics.median(ratios)
            print(f"p99 beside {make.__name__} ({len(hostile):,} bytes): {ratio:.2f} × that beside photos")
            assert ratio < 3, make.__name__


def beside(server: RunningServer, other: bytes, photo: bytes) -> list[float]:
    """The latencies of good requests while one other caller sends `other` twenty times a second."""
    stop = threading.Event()

    def pester() -> None:
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:
            while not stop.is_set():
                with contextlib.suppress(httpx.TransportError):
                    client.post(f"{server.url}/predict", content=other, headers={"content-type": "image/x"})
                time.sleep(0.05)

    thread = threading.Thread(target=pester)
    thread.start()
    try:
        return latencies(server.url, photo, 200)
    finally:
        stop.set()
        thread.join()


def test_500_bodies_of_10_megabytes_do_not_pass_the_limit(tmp_path: Path) -> None:
    """500 connections send 10 MB each; the workers together hold at most 200 MB of bodies, and their RSS shows it."""
    limit = 200_000_000
    with running_server(tmp_path / "log", workers=2, HEADWAY_MAX_INFLIGHT_BYTES=str(limit)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        before = sum(map(rss_bytes, server.worker_pids()))
        with contextlib.ExitStack() as stack:
            sockets = []
            for _ in range(500):
                connection = stack.enter_context(socket.create_connection((host, int(port))))
                connection.settimeout(0.2)
                connection.sendall(
                    b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: image/jpeg\r\ncontent-length: 10000000\r\n\r\n"
                )
                sockets.append(connection)
            peak = 0
            chunk = b"x" * 1_000_000
            for _ in range(9):  # never the tenth: no body becomes complete
                for connection in sockets:
                    with contextlib.suppress(OSError):
                        connection.sendall(chunk)
                peak = max(peak, sum(map(rss_bytes, server.worker_pids())))
            grown = (peak - before) / 1e6
            print(f"500 × 9 MB sent: the workers grew by {grown:.0f} MB; the limit is {limit / 1e6:.0f} MB")
            assert peak - before < 1.5 * limit
        assert httpx.get(f"{server.url}/health/ready", timeout=PATIENCE_SECONDS).status_code == 200
