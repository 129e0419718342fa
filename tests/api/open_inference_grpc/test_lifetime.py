"""The gRPC port of a server with several workers: its beginning, its end, and what happens when a worker dies."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from app.api.open_inference_grpc.stubs import open_inference_pb2 as messages
from app.api.open_inference_grpc.stubs.health_pb2 import HealthCheckResponse
from tests.api.open_inference_grpc.conftest import (
    INFER,
    OPTIONS,
    address_of,
    counting,
    in_flight,
    inferring,
    request,
    wait_until,
)
from tests.api.open_inference_grpc.test_health import check, watch
from tests.running import MODELS, PATIENCE_SECONDS, ROOT, RunningServer, running_server

STREAM = INFER.replace("ModelInfer", "ModelStreamInfer")
CERTIFICATE = ROOT / "tests" / "server" / "localhost.pem"
# Long enough to be seen running, short enough for all of them in one worker.
STEPS = 300_000


def listeners(server: RunningServer) -> set[int]:
    """The workers that listen on the gRPC port."""
    port = int(address_of(server).rpartition(":")[2])
    found = set()
    for pid in server.worker_pids():
        tables = "".join(Path(f"/proc/{pid}/net/{kind}").read_text() for kind in ("tcp", "tcp6"))
        lines = [line.split() for line in tables.splitlines() if ":" in line]
        sockets = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "0A"}
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(descriptor) in sockets:
                    found.add(pid)
            except FileNotFoundError:
                continue
    return found


def test_every_worker_answers_and_a_killed_ones_channel_comes_back(models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", "--grpc-port", "0", HEADWAY_MODELS=str(models)) as server:
        wait_until(lambda: len(listeners(server)) == 2, "both workers listen")
        with grpc.insecure_channel(address_of(server), OPTIONS) as channel:
            invoke = inferring(channel)
            for victim in server.worker_pids():  # one of them has the channel
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda gone=victim: gone not in server.worker_pids(), "it is dead")  # type: ignore[misc]
                answer = invoke(request("scores"), wait_for_ready=True, timeout=PATIENCE_SECONDS)
                assert answer.model_name == "scores"
                wait_until(lambda: len(listeners(server)) == 2, "its place is taken")
        assert server.stop() == 0


def test_sigterm_answers_what_is_running_and_ends_streams(models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", "--grpc-port", "0", HEADWAY_MODELS=str(models)) as server:
        channels = [grpc.insecure_channel(address_of(server), OPTIONS) for _ in range(4)]
        calls = [inferring(each).future(counting(STEPS), timeout=PATIENCE_SECONDS) for each in channels]
        wait_until(lambda: in_flight(server) == 4, "all are there")
        asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stream = channels[0].stream_stream(
            STREAM, messages.ModelInferRequest.SerializeToString, messages.ModelStreamInferResponse.FromString
        )
        answers = stream(iter(asked.get, None), timeout=PATIENCE_SECONDS)
        asked.put(request("scores"))
        assert next(answers).infer_response.model_name == "scores"
        server.process.send_signal(signal.SIGTERM)
        for call in calls:
            assert call.result().raw_output_contents == [STEPS.to_bytes(8, "little")]
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        asked.put(None)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.process.wait(PATIENCE_SECONDS) == 0
        for each in channels:
            each.close()
    assert "Traceback" not in server.log.read_text()


def test_a_drain_says_so_and_still_answers_p17(models: Path, tmp_path: Path) -> None:
    environment = {"HEADWAY_MODELS": str(models), "HEADWAY_DRAIN_SECONDS": "25"}
    with (
        running_server(tmp_path / "log", "--grpc-port", "0", workers=1, **environment) as server,
        grpc.insecure_channel(address_of(server), OPTIONS) as channel,
    ):
        watching = watch(channel)
        assert next(watching).status == HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watching).status == HealthCheckResponse.NOT_SERVING
        assert check(channel, "") == HealthCheckResponse.NOT_SERVING
        ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        assert not messages.ServerReadyResponse.FromString(ready(b"")).ready
        assert inferring(channel)(request("scores")).model_name == "scores"
        server.process.send_signal(signal.SIGTERM)  # the second one ends the window
        assert list(watching) == []
        assert server.process.wait(PATIENCE_SECONDS) == 0


def test_sigint_does_not_wait_for_what_runs(models: Path, tmp_path: Path) -> None:
    environment = {"HEADWAY_MODELS": str(models), "HEADWAY_DEADLINE_MS": "60000"}
    with (
        running_server(tmp_path / "log", "--grpc-port", "0", workers=1, **environment) as server,
        grpc.insecure_channel(address_of(server), OPTIONS) as channel,
    ):
        call = inferring(channel).future(counting(10**12), timeout=PATIENCE_SECONDS)
        wait_until(lambda: in_flight(server) == 1, "it runs")
        assert server.stop(signal.SIGINT) == 0
        assert call.exception() is not None
        assert "killed" not in server.log.read_text()


def test_a_reload_loses_no_call(models: Path, tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "log", "--grpc-port", "0", HEADWAY_MODELS=str(models)) as server,
        grpc.insecure_channel(address_of(server), OPTIONS) as channel,
    ):
        invoke = inferring(channel)
        before = set(server.worker_pids())
        server.process.send_signal(signal.SIGHUP)
        count = 0
        while before & set(server.worker_pids()):
            assert invoke(request("scores"), timeout=PATIENCE_SECONDS).model_name == "scores"
            count += 1
        assert count > 0
        assert invoke(request("scores"), timeout=PATIENCE_SECONDS).model_name == "scores"


def test_tls_as_https(models: Path, tmp_path: Path) -> None:
    environment = {"HEADWAY_MODELS": str(models), "HEADWAY_SSL_CERTFILE": str(CERTIFICATE)}
    environment["HEADWAY_SSL_KEYFILE"] = str(CERTIFICATE)
    with running_server(tmp_path / "log", "--grpc-port", "0", workers=1, **environment) as server:
        credentials = grpc.ssl_channel_credentials(CERTIFICATE.read_bytes())
        options = [*OPTIONS, ("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(address_of(server), credentials, options) as channel:
            assert inferring(channel)(request("scores"), timeout=PATIENCE_SECONDS).model_name == "scores"
        assert "gRPC at grpcs://" in server.log.read_text()


def serve(*flags: str, port: int, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0", "--grpc-port", str(port), *flags]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=env | {"HEADWAY_MODELS": str(MODELS)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_a_taken_port_is_not_shared_with_another_server(grpc_server: RunningServer) -> None:
    port = int(address_of(grpc_server).rpartition(":")[2])
    done = serve(port=port)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken: stop the other server or choose another with --grpc-port" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "is taken" in serve(port=other.getsockname()[1]).stderr


def test_without_grpc_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['grpc'] = None\n")
    done = serve(port=0, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install 'headway[grpc]'" in done.stderr


def test_grpc_is_imported_only_after_the_fork_and_only_where_asked_for(server: RunningServer) -> None:
    """No fork keeps gRPC's threads; and without a port it costs nothing."""
    code = "import sys, app.main, app.cli.serve, app.server.master; print([m for m in sys.modules if 'grpc' in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for pid in server.worker_pids():
        assert "cygrpc" not in Path(f"/proc/{pid}/maps").read_text()


def test_the_master_holds_the_port_and_has_no_grpc(grpc_server: RunningServer) -> None:
    assert "cygrpc" not in Path(f"/proc/{grpc_server.process.pid}/maps").read_text()
    assert all("cygrpc" in Path(f"/proc/{pid}/maps").read_text() for pid in grpc_server.worker_pids())
    assert re.search(r"gRPC at grpc://127\.0\.0\.1:\d+", grpc_server.log.read_text())
    assert httpx.get(f"{grpc_server.url}/health/ready").status_code == 200
