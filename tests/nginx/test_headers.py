"""What a replica is told of a request, and what the access log keeps of it."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.nginx.balancer import Nginx, Replica, list_replicas, running_nginx, wait_for

pytestmark = pytest.mark.xdist_group("nginx")  # one set of replicas

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ROW = {"model": "m", "inputs": [[0, 0, 1]]}


class _Mirror(BaseHTTPRequestHandler):
    """Answers with the headers that it was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps([[name.lower(), value] for name, value in self.headers.items()]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the answer tells all."""


@pytest.fixture
def mirror() -> Iterator[str]:
    """The address of a server that shows what nginx sends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Mirror) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_headers_that_a_replica_gets(
    tmp_path: Path, mirror: str, certificates: Path, authority: ssl.SSLContext
) -> None:
    traceparent = f"00-{TRACE}-00f067aa0ba902b7-01"
    given = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "evil",
        "Forwarded": "for=6.6.6.6",
        "X-Request-ID": "mine",
        "traceparent": traceparent,
        "Headway-Timeout-Ms": "5",
        "Authorization": "Bearer b",
        "Connection": "keep-alive, X-Gone",
    }
    with running_nginx(tmp_path, list_replicas([mirror]), certificates) as nginx:
        host = f"localhost:{nginx.port}"
        got = httpx.get(f"https://{host}/x", headers=given, verify=authority).json()
    names = [name for name, _ in got]
    assert len(names) == len(set(names))
    assert dict(got) == {
        "host": host,
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": host,
        "x-request-id": "mine",
        "traceparent": traceparent,
        "headway-timeout-ms": "5",
        "authorization": "Bearer b",
    } | {name: value for name, value in got if name in {"accept", "accept-encoding", "user-agent"}}


def test_what_ends_tls_is_believed_and_nobody_else(tmp_path: Path, mirror: str) -> None:
    given = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    with running_nginx(tmp_path / "1", list_replicas([mirror])) as nginx:
        answer = httpx.get(f"{nginx.url}/", headers=given)
    assert "strict-transport-security" not in answer.headers
    assert (dict(answer.json())["x-forwarded-for"], dict(answer.json())["x-forwarded-proto"]) == ("127.0.0.1", "http")
    near: tuple[tuple[str, str], ...] = (
        ("set_real_ip_from 10.0.0.0/8", "set_real_ip_from 127.0.0.0/8"),
        ("10.0.0.0/8 1", "127.0.0.0/8 1"),
    )
    with running_nginx(tmp_path / "2", list_replicas([mirror]) | {"site/front.conf": near}) as nginx:
        answer = httpx.get(f"{nginx.url}/", headers=given)
    assert "strict-transport-security" in answer.headers
    assert (dict(answer.json())["x-forwarded-for"], dict(answer.json())["x-forwarded-proto"]) == (
        "203.0.113.9",
        "https",
    )


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, 'quote"', "mine-~1"])
def test_request_id_is_the_same_everywhere(nginx: Nginx, replicas: list[Replica], given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    answer = httpx.post(f"{nginx.url}/predict", json=ROW, headers=headers)
    (request_id,) = answer.headers.get_list("x-request-id")
    assert (request_id == given) == (given == "mine-~1")
    assert answer.json()["request_id"] == request_id
    line = nginx.get_line(request_id)
    (replica,) = (each for each in replicas if each.address == line["upstream"])
    wait_for(lambda: request_id in {each["request_id"] for each in replica.read_requests()}, "its line")


def test_access_log(nginx: Nginx, replicas: list[Replica]) -> None:
    headers = {
        "X-Request-ID": "logged",
        "X-API-Key": "a secret",
        "User-Agent": 'quote" and \\ and \u00e9',
        "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
    }
    content = b'{"model": "m", "inputs": [[0, 0, 1]]}'
    raw = {name: value.encode() for name, value in headers.items()}
    httpx.post(f"{nginx.url}/predict?top_k=5&token=secret", content=content, headers=raw)  # type: ignore[arg-type]
    line = nginx.get_line("logged")
    assert (line["method"], line["path"], line["protocol"], line["tls"]) == ("POST", "/predict", "HTTP/1.1", "")
    assert (line["client"], line["trace_id"]) == ("127.0.0.1", TRACE)
    assert line["upstream"] in {replica.address for replica in replicas}
    assert line["user_agent"] == headers["User-Agent"]
    assert line["bytes_in"] > len(content)
    assert 0 <= float(line["upstream_header_s"]) <= float(line["upstream_response_s"]) <= line["duration_s"] + 0.002
    assert "secret" not in (nginx.directory / "access.log").read_text()
