"""docker/healthcheck.py against real servers, as a container's runtime calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.running import PATIENCE_SECONDS, ROOT, running_server

COMMAND = [sys.executable, "-I", "-S", str(ROOT / "docker" / "healthcheck.py")]


def check(**environment: str) -> int:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    return subprocess.run(COMMAND, env=env | environment, check=False).returncode


def test_ready_by_port(tmp_path: Path) -> None:
    with running_server(tmp_path / "log", workers=1) as server:
        port = server.url.rpartition(":")[2]
        assert check(HEADWAY_PORT=port) == 0
    assert check(HEADWAY_PORT=port) == 1


def test_ready_by_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert check(HEADWAY_UDS=str(path)) == 1
    env = os.environ | {"HEADWAY_DATA_DIR": str(tmp_path / "data")}
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--uds", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + PATIENCE_SECONDS
        while check(HEADWAY_UDS=str(path)) != 0:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def test_not_a_port() -> None:
    assert check(HEADWAY_PORT="eight") == 1
