"""The servers under test: how each is started, and what its process tree has used."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.workloads import ROOT

START_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Target:
    """`command(port)` starts it; `paths` renames a workload's path where this server has another."""

    name: str
    command: Callable[[int], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = "/health/ready"


@dataclass(slots=True)
class Running:
    target: Target
    process: subprocess.Popen[bytes]
    url: str
    ready_seconds: float

    def pids(self) -> list[int]:
        """The process and all its descendants."""
        pids = [self.process.pid]
        for pid in pids:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += [int(child) for child in (task / "children").read_text().split()]
        return list(dict.fromkeys(pids))

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree, of children that have ended too."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(int(value) for value in fields[11:13])
        return total / _TICKS

    def rss_bytes(self) -> dict[int, int]:
        sizes = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                sizes[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return sizes


def headway(models: Path, **environment: str) -> Target:
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port"]
    return Target(
        "Headway",
        lambda port: [*command, str(port)],
        {"HEADWAY_MODELS": str(models), "HEADWAY_DRAIN_SECONDS": "0", **environment},
    )


def plain_fastapi(models: Path, workers: int) -> Target:
    command = [sys.executable, "-m", "uvicorn", "bench.servers.plain_fastapi:app", "--workers", str(workers)]
    return Target(
        "plain FastAPI",
        lambda port: [*command, "--log-level", "warning", "--no-access-log", "--port", str(port)],
        {"BENCH_MODELS": str(models)},
        {"b": "/predict-raw"},
    )


@contextlib.contextmanager
def running(target: Target, log: Path) -> Iterator[Running]:
    """Start a target on a free port and wait until it is ready; `ready_seconds` is measured from the start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    started = time.monotonic()
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            target.command(port),
            cwd=ROOT,
            env=env | target.environment,
            stdout=stderr,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url + target.ready_path, started, log)
        yield Running(target, process, url, time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, started: float, log: Path) -> None:
    while time.monotonic() - started < START_SECONDS and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=1).status_code == 200:
                return
        time.sleep(0.01)
    raise RuntimeError(f"{' '.join(map(str, process.args))} is not ready:\n{log.read_text()[-2000:]}")  # type: ignore[arg-type]
