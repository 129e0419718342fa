"""What nginx refuses itself has the app's shape; what the app refuses passes as it is."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.nginx.balancer import Nginx, Replica, find_port, list_replicas, running_nginx
from tests.running import PATIENCE_SECONDS, ROOT
from tests.tools import require_command

pytestmark = pytest.mark.xdist_group("nginx")  # one set of replicas

LIMIT = Settings.model_fields["max_body_bytes"].default
MANAGEMENT = re.findall(
    r"^\| `(\w+) (/\S+)` \|",
    (ROOT / "docs/reference/api.md").read_text().partition("## Management")[2].partition("\n## ")[0],
    re.MULTILINE,
)


def check(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()
    assert list(error) == ["error", "code", "request_id"]
    assert error["code"] == code
    assert error["error"]
    assert answer.headers.get_list("x-request-id") == [error["request_id"]]


def ask_raw(nginx: Nginx, request: bytes) -> httpx.Response:
    """One request that no client would write."""
    with socket.create_connection(("127.0.0.1", nginx.port), PATIENCE_SECONDS) as connection:
        connection.sendall(request)
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:])]
    return httpx.Response(int(lines[0].split()[1]), headers=headers, content=body)


def test_body_may_be_as_large_as_the_app_takes(secure: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    answer = secure.post("/predict?model=m", content=b" " * LIMIT, headers=headers)
    assert answer.json()["code"] == "malformed_request"  # the app's own word: it has read all of it
    answer = secure.post("/predict?model=m", content=b" " * (LIMIT + 1), headers=headers)
    check(answer, 413, "body_too_large")
    assert "strict-transport-security" in answer.headers


def test_oversized_body_in_chunks(secure: httpx.Client, secure_nginx: Nginx) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(LIMIT // 1_000_000 + 1):
            yield b" " * 1_000_000

    answer = secure.post("/predict", content=chunks(), headers={"X-Request-ID": "chunks"})
    check(answer, 413, "body_too_large")
    line = secure_nginx.get_line("chunks")
    assert (line["method"], line["path"], line["status"], line["upstream"]) == ("POST", "/predict", 413, "")


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_http"),  # no host
        (b"GET / HTTP/9.1\r\nhost: t\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: gzip\r\n\r\n", 400, "malformed_http"),
        (b"TRACE / HTTP/1.1\r\nhost: t\r\n\r\n", 405, "method_not_allowed"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: t\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nhost: t\r\na: " + b"a" * 20_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /headway-error HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n", 404, "not_found"),
    ],
)
def test_what_is_no_request(nginx: Nginx, request_: bytes, status: int, code: str) -> None:
    check(ask_raw(nginx, request_), status, code)


def test_plain_http_on_the_port_of_tls(secure_nginx: Nginx) -> None:
    check(ask_raw(secure_nginx, b"GET / HTTP/1.1\r\nhost: t\r\n\r\n"), 400, "malformed_http")


@pytest.mark.parametrize(("method", "path"), [*MANAGEMENT, ("DELETE", "/models/m"), ("GET", "/models/m/%72elease")])
def test_management_is_not_there(secure: httpx.Client, secure_nginx: Nginx, method: str, path: str) -> None:
    assert len(MANAGEMENT) >= 5
    request_id = f"management:{method}:{path.replace('%', '~')}".replace("{", "").replace("}", "")
    path = path.replace("{name}", "m").replace("{version}", "1.0.0")
    check(secure.request(method, path, headers={"X-Request-ID": request_id}), 404, "not_found")
    assert secure_nginx.get_line(request_id)["upstream"] == ""


@pytest.mark.parametrize("path", ["/metrics", "/health/ready", "/health/live"])
def test_operators_routes_are_theirs(secure_nginx: Nginx, secure: httpx.Client, certificates: Path, path: str) -> None:
    assert secure.get(path).status_code == 200  # from 127.0.0.1
    curl = require_command("curl", "curl")
    url = f"https://127.0.0.1:{secure_nginx.port}{path}"
    command = [curl, "-s", "--cacert", str(certificates / "ca.pem"), "--interface", "127.0.0.2", url]
    assert b'"not_found"' in subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/predict", b"{"),
        ("POST", "/predict", b'{"model": "nobody", "inputs": [[1]]}'),
        ("POST", "/predict", b'{"model": "broken", "inputs": [[0, 0, 1]]}'),
        ("GET", "/predict", b""),
        ("GET", "/nowhere", b""),
        ("POST", "/feedback", b'{"prediction_id": "none", "label": "high"}'),
    ],
)
def test_errors_of_the_app_pass_untouched(
    secure: httpx.Client, replicas: list[Replica], method: str, path: str, content: bytes
) -> None:
    headers = {"X-Request-ID": "the-same", "Content-Type": "application/json"}
    straight = httpx.request(method, replicas[0].url + path, content=content, headers=headers)
    through = secure.request(method, path, content=content, headers=headers)
    assert through.status_code == straight.status_code
    assert through.content == straight.content
    for name in ("content-type", "retry-after", "allow", "x-request-id"):
        assert through.headers.get_list(name) == straight.headers.get_list(name), name


def test_no_replica(tmp_path: Path) -> None:
    with running_nginx(tmp_path, list_replicas([f"127.0.0.1:{find_port()}", f"127.0.0.1:{find_port()}"])) as nginx:
        answer = httpx.post(f"{nginx.url}/predict", json={})
    check(answer, 502, "no_replica")
    assert answer.headers["retry-after"] == "1"


def test_replica_that_hangs(tmp_path: Path, replicas: list[Replica]) -> None:
    changes = list_replicas([replicas[0].address]) | {"headway/proxy.conf": [("read_timeout 65s", "read_timeout 1s")]}
    with running_nginx(tmp_path, changes) as nginx:
        replicas[0].pause()
        try:
            answer = httpx.post(f"{nginx.url}/predict", json={}, timeout=PATIENCE_SECONDS)
        finally:
            replicas[0].resume()
    check(answer, 504, "deadline_exceeded")
