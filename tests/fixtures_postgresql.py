"""A real PostgreSQL for the tests: a cluster in a temporary directory, on a free port, stopped at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

BINARIES = Path("/usr/lib/postgresql/15/bin")
PASSWORD = "Sesame-4711"


@dataclass
class Postgresql:
    """Trusts every password. `stop` and `start` may be called in turn; the data and the port stay."""

    directory: Path
    port: int
    _numbers: Iterator[int] = field(default_factory=count, repr=False)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.directory} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._control("start", "-w", "-l", str(self.directory / "log"), "-o", options)

    def stop(self) -> None:
        """At once: whoever is connected is cut off."""
        self._control("stop", "-w", "-m", "immediate")

    def new_url(self) -> str:
        """An empty database, as the user postgres with PASSWORD."""
        name = f"test_{next(self._numbers)}"
        self.run_sql(f"CREATE DATABASE {name}")
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def run_sql(self, sql: str) -> str:
        """What psql prints, without headings."""
        command = [
            str(BINARIES / "psql"),
            "-h",
            str(self.directory),
            "-p",
            str(self.port),
            "-U",
            "postgres",
            "-Atqc",
            sql,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _control(self, *arguments: str) -> None:
        run_as_owner([str(BINARIES / "pg_ctl"), "-D", str(self.directory / "data"), "-s", *arguments])


@contextmanager
def running_postgresql() -> Iterator[Postgresql]:
    """Skips the test where PostgreSQL is not installed; in CI that is a failure."""
    if not (BINARIES / "pg_ctl").exists():
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL 15 is not installed; on Debian: apt-get install postgresql")
        pytest.skip("PostgreSQL 15 is not installed; on Debian: apt-get install postgresql")
    # Not under pytest's directory, which other users may not enter.
    directory = Path(tempfile.mkdtemp(prefix="headway-postgresql-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres")
        run_as_owner(
            [str(BINARIES / "initdb"), "-D", str(directory / "data"), "-A", "trust", "-U", "postgres", "--no-sync"]
        )
        server = Postgresql(directory, _find_free_port())
        server.start()
        try:
            yield server
        finally:
            if (directory / "data" / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Postgresql]:
    with running_postgresql() as server:
        yield server


def run_as_owner(command: list[str]) -> None:
    """PostgreSQL refuses to run as root; then the user of Debian's package does it."""
    if os.geteuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    # The server keeps what it inherits open: a pipe would never end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
        output.seek(0)
        assert done.returncode == 0, output.read().decode()


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
