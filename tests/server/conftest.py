"""Servers under test: real processes with their options on the command line, and plain sockets to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# For what must come at all; the machine may be busy.
PATIENCE_SECONDS = 30.0

RUN = """
import json, logging, sys
from app.server.master import serve
from app.server.options import ServerOptions
logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
def on_ready(address):
    print("READY", address, flush=True)
def on_worker_exit(end):
    if end.status < 0:
        print("CRASH", end.slot, "thread", end.crashed_thread, "aborted", end.was_aborted, flush=True)
    print("EXIT", end.slot, end.status, flush=True)
options = json.loads(sys.argv[1])
options["also_bind"] = tuple(map(tuple, options.get("also_bind", ())))
sys.exit(serve(ServerOptions(on_ready=on_ready, on_worker_exit=on_worker_exit, **options)))
"""


def wait_for(claim: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = claim()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, with nothing between the test and the bytes."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.buffer = b""
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, path: str, body: bytes = b"") -> None:
        method = "POST" if body else "GET"
        self.send(f"{method} {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    def read(self) -> Answer:
        """The next answer; EOFError if the server hangs up instead."""
        while b"\r\n\r\n" not in self.buffer:
            self._read_more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        length = int(headers["content-length"])
        while len(self.buffer) < length:
            self._read_more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Answer(int(lines[0].split()[1]), headers, body)

    def get(self, path: str, body: bytes = b"") -> Answer:
        self.ask(path, body)
        return self.read()

    def is_closed_by_server(self) -> bool:
        """Waits for the end of the connection; what else comes is kept for `read`."""
        while data := self.socket.recv(65536):
            self.buffer += data
        return True

    def _read_more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("the server has hung up")
        self.buffer += data


@dataclass
class RunningServer:
    process: subprocess.Popen[str]
    flags: Path
    out: Path
    err: Path
    address: tuple[str, int] | str = ""
    clients: list[Client] = field(default_factory=list)

    def connect(self) -> Client:
        client = Client(self.address)
        self.clients.append(client)
        return client

    def get(self, path: str) -> Answer:
        with Client(self.address) as client:
            return client.get(path)

    def read_out(self) -> str:
        return self.out.read_text()

    def read_err(self) -> str:
        return self.err.read_text()

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        return self.process.wait(seconds)

    def list_workers(self) -> list[int]:
        """The process ids of the living workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def wait_until_ready(self) -> None:
        ready = wait_for(self._find_ready, "ready")
        if ready.startswith("unix:"):
            self.address = ready.removeprefix("unix:")
        else:
            host, _, port = ready.rpartition("//")[2].rpartition(":")
            self.address = (host, int(port))

    def wait_for_slots(self, count: int) -> None:
        """Until that many workers accept."""
        wait_for(lambda: self.read_err().count(" accepts after ") >= count, f"{count} workers accept")

    def wait_for(self, claim: Callable[[], Any], what: str) -> Any:
        return wait_for(claim, what)

    def _find_ready(self) -> str | None:
        assert self.process.poll() is None, self.read_err()
        lines = [line for line in self.read_out().splitlines() if line.startswith("READY ")]
        return lines[0].split()[1] if lines else None


class Starter:
    """Starts servers in one directory, and ends them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: list[RunningServer] = []

    def __call__(self, wait: bool = True, **options: Any) -> RunningServer:
        """A server with these options (default: any free port, one worker, no drain)."""
        options = {"app": "apps:make_app", "port": 0, "drain_seconds": 0.0, **options}
        number = len(self.servers)
        out, err = self.directory / f"out-{number}", self.directory / f"err-{number}"
        path = os.pathsep.join([str(ROOT), str(HERE)])
        with open(out, "w") as stdout, open(err, "w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", RUN, json.dumps(options)],
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "TEST_FLAGS": str(self.directory)},
            )
        server = RunningServer(process, self.directory, out, err)
        self.servers.append(server)
        if wait:
            server.wait_until_ready()
            server.wait_for_slots(options.get("workers", 1))
        return server

    def end(self) -> None:
        for server in self.servers:
            for client in server.clients:
                client.socket.close()
            server.tell(signal.SIGINT)  # nothing is left behind in the shared memory
        for server in self.servers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    starter.end()


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """For servers that all tests of a module may use."""
    starter = Starter(tmp_path_factory.mktemp("servers"))
    yield starter
    starter.end()
