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
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from bench import wires
from bench.workloads import ROOT, ROW, Workload, photo

START_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Target:
    """`command(port)` starts it. Where it has `wires` it takes those workloads in that form, else all as they are.

    `settings` says in words what it is configured to and why; `versions` are the packages of its own environment.
    """

    name: str
    command: Callable[[int], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = "/health/ready"
    wires: wires.Wires | None = None
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def adapt(self, case: Workload) -> Workload | None:
        """The workload in this server's own form; None where it has none."""
        if self.wires is None:
            return case
        if (wire := self.wires.get(case.key)) is None:
            return None
        body = wire.encode(ROW if case.key == "c" else photo())
        return replace(case, path=wire.path, content_type=wire.content_type, body=body)


class NotReady(RuntimeError):
    """A server that ended, or did not say that it is ready in time."""


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
                total += sum(int(value) for value in fields[11:15])
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
        wires=wires.PLAIN_FASTAPI,
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
        _kill_session(process.pid)
        process.wait()


def _kill_session(session: int) -> None:
    """End what a server has left running: all of it is in the session it was started in, in groups of its own too."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                os.kill(int(stat.parent.name), signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str, started: float, log: Path) -> None:
    while time.monotonic() - started < START_SECONDS and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=1).status_code == 200:
                return
        time.sleep(0.01)
    raise NotReady(f"{' '.join(map(str, process.args))} is not ready:\n{log.read_text()[-2000:]}")  # type: ignore[arg-type]
