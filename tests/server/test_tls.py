"""HTTPS, with a certificate made for these tests alone (localhost.pem: key and certificate)."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path
from typing import Any

import pytest

CERTIFICATE = str(Path(__file__).with_name("localhost.pem"))


@pytest.fixture(scope="module")
def server(start_shared: Any) -> Any:
    return start_shared(certfile=CERTIFICATE, workers=2, header_timeout_seconds=1.0)


def connect(server: Any) -> Any:
    client = server.connect()
    context = ssl.create_default_context(cafile=CERTIFICATE)
    client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
    return client


def test_requests(server: Any) -> None:
    assert "READY https://127.0.0.1:" in server.read_out()
    client = connect(server)
    for _ in range(20):
        assert client.get("/", b"b" * 1000).json["bytes"] == 1000


def test_silent_handshake_is_cut_off(server: Any) -> None:
    assert server.connect().is_closed_by_server()


def test_plain_http_is_hung_up_on(server: Any) -> None:
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    try:
        assert client.is_closed_by_server()
    except ConnectionResetError:
        return


def test_failed_handshakes_leave_no_load(server: Any) -> None:
    """Or the worker would be taken for a busy one for ever."""
    for _ in range(20):
        client = server.connect()
        client.send(b"no handshake")
        client.socket.close()
    clients = [connect(server) for _ in range(8)]
    assert len({client.get("/").json["slot"] for client in clients}) == 2


def test_sigterm_answers_what_is_running(start: Any) -> None:
    server = start(certfile=CERTIFICATE)
    client = connect(server)
    client.get("/")
    client.ask("/sleep/1")
    server.tell(signal.SIGTERM)
    assert client.read().status == 200
    assert server.wait() == 0
