"""What the access log says of the time a request took."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx

from tests.running import PATIENCE_SECONDS, RunningServer


def read_line(server: RunningServer, request_id: str) -> dict[str, Any]:
    """The line of a request, once it is written."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit:
        for line in server.log.read_text().splitlines():
            if request_id in line and '"headway.access"' in line:
                found: dict[str, Any] = json.loads(line)
                return found
        time.sleep(0.05)
    raise AssertionError(f"no line of {request_id}")


def test_our_own_time_starts_with_the_last_byte_of_the_body(server: RunningServer) -> None:
    """The first byte comes half a second before the last: that is the caller's time."""
    host, port = server.url.removeprefix("http://").split(":")
    head = "POST /predict HTTP/1.1\r\nhost: t\r\nx-request-id: slow-caller\r\ncontent-length: 2\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode() + b"{")
        time.sleep(0.5)
        connection.sendall(b"}")
        assert connection.recv(4096).startswith(b"HTTP/1.1 422")
    line = read_line(server, "slow-caller")
    assert line["duration_ms"] - line["after_body_ms"] > 250
    assert line["after_body_ms"] > 0


def test_request_without_a_body_has_it_too(server: RunningServer) -> None:
    headers = {"x-request-id": "no-body"}
    httpx.get(f"{server.url}/health/live", headers=headers, timeout=PATIENCE_SECONDS)
    line = read_line(server, "no-body")
    assert 0 < line["after_body_ms"] <= line["duration_ms"] + 1


def test_answer_before_the_body_has_no_such_time(server: RunningServer) -> None:
    """It is refused by its Content-Length alone."""
    host, port = server.url.removeprefix("http://").split(":")
    head = "POST /predict HTTP/1.1\r\nhost: t\r\nx-request-id: too-large\r\ncontent-length: 999999999\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    assert "after_body_ms" not in read_line(server, "too-large")
