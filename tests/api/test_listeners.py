"""How a server can be reached: TLS, a unix socket, behind a path prefix; and what it says when it cannot start."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.running import MODELS, PATIENCE_SECONDS, ROOT, running_server

CERTIFICATE = ROOT / "tests" / "server" / "localhost.pem"
BODY = {"inputs": [[0.0] * 64]}


def test_tls_serves_https(tmp_path: Path) -> None:
    environment = {"HEADWAY_SSL_CERTFILE": str(CERTIFICATE), "HEADWAY_SSL_KEYFILE": str(CERTIFICATE)}
    with running_server(tmp_path / "log", workers=1, **environment) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(CERTIFICATE))
        context.check_hostname = False
        with httpx.Client(verify=context, timeout=PATIENCE_SECONDS) as client:
            assert client.post(f"{server.url}/predict", json=BODY).status_code == 200


def test_root_path_is_known_to_the_documentation(tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "log", workers=1, HEADWAY_ROOT_PATH="/ml") as server,
        httpx.Client(timeout=PATIENCE_SECONDS) as client,
    ):
        # A proxy may strip the prefix, or leave it.
        assert client.post(f"{server.url}/predict", json=BODY).status_code == 200
        assert client.post(f"{server.url}/ml/predict", json=BODY).status_code == 200
        assert client.get(f"{server.url}/openapi.json").json()["servers"] == [{"url": "/ml"}]


def start(*flags: str, management: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli.main", "serve", "--models", str(MODELS), *flags]
    env = dict(os.environ)
    if management is not None:
        env |= {"HEADWAY_ADMIN_TOKEN": "x", "HEADWAY_MANAGEMENT_BIND": management}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def test_a_taken_port_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = start("--port", str(port))
    assert result.returncode == 1
    assert f"port {port}" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_one_port_for_management_and_grpc_is_told_in_one_line() -> None:
    """Neither listens when the other binds: the workers would fail, and be replaced, for ever."""
    port = free_port()
    result = start("--port", "0", "--grpc-port", port, management=f"127.0.0.1:{port}")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip().count("\n") == 0
    assert f"port {port}" in result.stderr
    assert "--grpc-port" in result.stderr
    assert "HEADWAY_MANAGEMENT_BIND" in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models", "/nowhere"], "no such registry directory"),
        (["--port", "99999"], "--port"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_a_wrong_setting_is_misuse(flags: list[str], words: str) -> None:
    result = start(*flags)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_unix_socket_is_served(tmp_path: Path) -> None:
    path = tmp_path / "headway.sock"
    command = [sys.executable, "-m", "app.cli.main", "serve", "--models", str(MODELS), "--uds", str(path)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--workers", "1"], cwd=ROOT, stderr=log)
    try:
        while b"serves at" not in (tmp_path / "log").read_bytes() and process.poll() is None:
            time.sleep(0.05)
        transport = httpx.HTTPTransport(uds=str(path), retries=0)
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=PATIENCE_SECONDS) as client:
            answer = _post_when_there(client, process)
        assert answer.status_code == 200
    finally:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert not path.exists()


def _post_when_there(client: httpx.Client, process: subprocess.Popen[bytes]) -> httpx.Response:
    while process.poll() is None:
        try:
            return client.post("/predict", json=BODY)
        except httpx.ConnectError:
            time.sleep(0.05)
    raise AssertionError("the server has ended")


def test_uvicorn_serves_the_application(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client:
            assert _post_when_there(client, process).status_code == 200
            assert 'headway_requests_total{code="200"' in client.get("/metrics").text
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
