"""The limits and the error shape of the HTTP protocol, on real sockets."""

from __future__ import annotations

import json
import select
import time
from typing import Any

import pytest

from tests.server.apps import LARGE_BYTES

KIB = 1024
HEADER = b"x-filler: " + b"a" * 990 + b"\r\n"


@pytest.fixture(scope="module")
def server(start_shared: Any) -> Any:
    return start_shared(header_timeout_seconds=1.0, keepalive_seconds=60)


def assert_refused(client: Any, status: int, code: str) -> None:
    answer = client.read()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["code"] == code
    assert answer.json["error"]
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert client.is_closed_by_server()


def test_headers_over_limit_in_one_request(server: Any) -> None:
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nhost: t\r\n" + HEADER * 80 + b"\r\n")
    assert_refused(client, 431, "headers_too_large")


def test_headers_under_limit_are_accepted(server: Any) -> None:
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nhost: t\r\n" + HEADER * 60 + b"\r\n")
    assert client.read().status == 200


def test_header_that_never_ends(server: Any) -> None:
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nhost: t\r\nx-endless: ")
    for _ in range(50):
        client.send(b"a" * 4 * KIB)
        if select.select([client.socket], [], [], 0)[0]:
            break
    assert client.read().status == 431


@pytest.mark.parametrize("body", [b"", b"b" * 100_000])
def test_headers_over_limit_in_pipelined_request(server: Any, body: bytes) -> None:
    client = server.connect()
    first = b"POST /one HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    client.send(first + b"GET /two HTTP/1.1\r\nhost: t\r\n" + HEADER * 80 + b"\r\n")
    assert client.read().json["path"] == "/one"
    assert_hung_up(client, "headers_too_large")


def assert_hung_up(client: Any, code: str) -> None:
    """A refusal behind another request: said if that one was answered by then, else only the end."""
    try:
        answer = client.read()
    except (EOFError, ConnectionResetError):
        return
    assert answer.json["code"] == code


def test_body_does_not_count_as_headers(server: Any) -> None:
    client = server.connect()
    for _ in range(3):
        assert client.get("/echo", b"b" * 2_000_000).json["bytes"] == 2_000_000


def test_long_headers_with_body_in_one_read(server: Any) -> None:
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 60000\r\n" + HEADER * 40 + b"\r\n" + b"b" * 60_000)
    assert client.read().json["bytes"] == 60_000


def test_chunked_body_with_tiny_chunks(server: Any) -> None:
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
    client.send(b"1\r\nb\r\n" * 50_000 + b"0\r\n\r\n")
    assert client.read().json["bytes"] == 50_000


def test_trailers_over_limit(server: Any) -> None:
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n")
    client.send(HEADER * 200)
    assert_refused(client, 431, "headers_too_large")


def test_half_header_times_out(server: Any) -> None:
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nhost:")
    assert_refused(client, 408, "header_timeout")


def test_header_byte_by_byte_times_out(server: Any) -> None:
    client = server.connect()
    client.socket.settimeout(0.1)
    received = b""
    for byte in b"GET / HTTP/1.1\r\nx-slow: " + b"a" * 1000:
        try:
            client.send(bytes([byte]))
            received = client.socket.recv(1)
        except TimeoutError:
            continue
        break
    client.buffer = received
    assert_refused(client, 408, "header_timeout")


def test_half_header_on_used_connection_times_out(server: Any) -> None:
    client = server.connect()
    assert client.get("/").status == 200
    client.send(b"GET / HTTP/1.1\r\nhost:")
    assert_refused(client, 408, "header_timeout")


def test_newlines_instead_of_request_time_out(server: Any) -> None:
    client = server.connect()
    assert client.get("/").status == 200
    client.send(b"\r\n")
    assert client.is_closed_by_server()


def test_silent_connection_is_closed_without_answer(server: Any) -> None:
    client = server.connect()
    assert client.is_closed_by_server()
    assert client.buffer == b""


def test_idle_connection_is_kept_past_header_timeout(server: Any) -> None:
    client = server.connect()
    assert client.get("/").status == 200
    assert client.get("/sleep/1.5").status == 200  # nor does it run during an answer
    client.socket.settimeout(1.5)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(30)
    assert client.get("/").status == 200


def test_idle_connection_is_closed_after_keepalive(start: Any) -> None:
    server = start(keepalive_seconds=1)
    client = server.connect()
    assert client.get("/").status == 200
    assert client.is_closed_by_server()
    assert client.buffer == b""


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"CONNECT t:80 HTTP/1.1\r\n\r\n",
        b"GET http://t HTTP/1.1\r\nhost: t\r\n\r\n",
    ],
    ids=["words", "tls", "version", "header", "length", "smuggled", "connect", "no-path"],
)
def test_malformed_request(server: Any, data: bytes) -> None:
    client = server.connect()
    client.send(data)
    assert_refused(client, 400, "malformed_http")


def test_malformed_body(server: Any) -> None:
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
    assert_refused(client, 400, "malformed_http")


def test_malformed_request_behind_good_one(server: Any) -> None:
    """What was asked before is answered; then the server hangs up."""
    client = server.connect()
    client.send(b"GET /sleep/0.3 HTTP/1.1\r\nhost: t\r\n\r\ngarbage\r\n\r\n")
    assert client.read().json["path"] == "/sleep/0.3"
    assert client.is_closed_by_server()


def test_many_requests_on_one_connection(server: Any) -> None:
    client = server.connect()
    for number in range(500):
        assert client.get(f"/{number}", b"b" * (number % 7)).json["path"] == f"/{number}"


def test_pipelined_requests_are_answered_in_order(server: Any) -> None:
    client = server.connect()
    paths = ["/sleep/0.2", "/b", "/sleep/0.1", "/d", "/e"]
    client.send(b"".join(f"GET {path} HTTP/1.1\r\nhost: t\r\n\r\n".encode() for path in paths))
    assert [client.read().json["path"] for _ in paths] == paths
    assert client.get("/after").status == 200


def test_bug_in_application(server: Any) -> None:
    client = server.connect()
    client.ask("/bug")
    assert_refused(client, 500, "internal")
    assert "RuntimeError: a bug" in server.read_err()


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_upgrade_is_answered_as_plain_http(server: Any, upgrade: str) -> None:
    client = server.connect()
    head = f"GET /up HTTP/1.1\r\nhost: t\r\nconnection: Upgrade\r\nupgrade: {upgrade}\r\n"
    client.send(head.encode() + b"sec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n\r\n")
    assert client.read().status == 200
    client.send(head.encode() + b"\r\nGET /next HTTP/1.1\r\nhost: t\r\n\r\n")
    assert client.read().json["path"] == "/up"
    assert client.read().json["path"] == "/next"
    assert "WebSocket" not in server.read_err()


def test_many_upgrades_in_one_read(server: Any) -> None:
    client = server.connect()
    client.send(b"GET /up HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: x\r\n\r\n" * 1500)
    assert {client.read().status for _ in range(1500)} == {200}


def test_pipeline_that_the_server_does_not_read_is_not_timed(server: Any) -> None:
    """The last head is incomplete only because the server stops reading while it works."""
    client = server.connect()
    client.send(b"GET /sleep/1.5 HTTP/1.1\r\nhost: t\r\n\r\nGET /two HTTP/1.1\r\n\r\nGET /thr")
    client.send(b"ee HTTP/1.1\r\n\r\n")
    assert [client.read().json["path"] for _ in range(3)] == ["/sleep/1.5", "/two", "/three"]


def test_early_answer_is_not_lost_with_unread_body(server: Any) -> None:
    """An answer before the body is read, and `Connection: close`: a reset would take the answer with it."""
    client = server.connect()
    client.ask("/early", b"b" * 3_000_000)
    assert client.read().status == 413
    assert client.is_closed_by_server()


def test_headers_and_body_come_together(server: Any) -> None:
    client = server.connect()
    client.ask("/")
    head, _, body = client.socket.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["path"] == "/"


def test_answer_in_pieces(server: Any) -> None:
    client = server.connect()
    client.ask("/pieces")
    client.ask("/")
    while b"\r\n0\r\n\r\n" not in client.buffer:
        client._read_more()
    head, _, rest = client.buffer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    chunks, _, client.buffer = rest.partition(b"0\r\n\r\n")
    sizes, content = chunks.split(b"\r\n")[0::2], b"".join(chunks.split(b"\r\n")[1::2])
    assert next(int(size, 16) for size in sizes if size) == 5
    assert json.loads(content)["path"] == "/pieces"
    assert client.read().status == 200


def test_answer_to_head_has_no_body(server: Any) -> None:
    client = server.connect()
    client.send(b"HEAD / HTTP/1.1\r\nhost: t\r\n\r\n")
    while b"\r\n\r\n" not in client.buffer:
        client._read_more()
    assert client.buffer.endswith(b"\r\n\r\n")
    client.buffer = b""
    assert client.get("/").status == 200


@pytest.mark.parametrize("path", ["/split", "/short"])
def test_answer_that_would_not_be_one_is_never_sent(server: Any, path: str) -> None:
    """A value that ends its line, a body that is shorter than it says."""
    client = server.connect()
    client.ask(path)
    while True:
        try:
            client._read_more()
        except EOFError:
            break
    assert b"stolen" not in client.buffer
    assert b"200 OK" not in client.buffer or path == "/short"
    assert "RuntimeError" in server.read_err()


def test_large_answer(server: Any) -> None:
    client = server.connect()
    answer = client.get("/large")
    assert len(answer.body) == LARGE_BYTES
    assert answer.json["path"] == "/large"
    assert client.get("/after").status == 200


def test_body_that_comes_slowly_is_handed_over_on_the_way(server: Any) -> None:
    """And whole in the end: in a first part, some that are small, and the rest at once."""
    client = server.connect()
    client.send(b"POST /slowly HTTP/1.1\r\nhost: t\r\ncontent-length: 3000010\r\n\r\n" + b"a" * 100_000)
    for _ in range(10):
        time.sleep(0.06)
        client.send(b"b")
    client.send(b"c" * 2_900_000)
    found = client.read().json
    assert found["bytes"] == 3_000_010
    assert found["parts"] > 1
