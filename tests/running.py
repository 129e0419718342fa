"""Real servers, started as users start them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"
CAT = ROOT / "examples" / "cat.jpg"
# For what must come at all; the machine may be busy.
PATIENCE_SECONDS = 60.0
_ADDRESS = re.compile(rb"serves at (http\S+)")
# linux/prctl.h, linux/capability.h
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1
_MANAGEMENT = re.compile(rb"management at (http\S+)")


@dataclass
class RunningServer:
    """`headway serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    workers: int
    client: httpx.Client = field(repr=False, default_factory=lambda: httpx.Client(timeout=PATIENCE_SECONDS))

    @property
    def data_dir(self) -> Path:
        """What it keeps, if it was not told otherwise."""
        return self.log.parent / "data"

    @property
    def management_url(self) -> str:
        """Of a server that has an admin token."""
        return _address(self.process, self.log, _MANAGEMENT)

    def worker_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self, by: int = signal.SIGTERM) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(by)
        return self.process.wait(PATIENCE_SECONDS)


@contextlib.contextmanager
def running_server(
    log: Path,
    *flags: str,
    workers: int = 2,
    heeds_rights: bool = False,
    through: Sequence[str] = (),
    **environment: str,
) -> Iterator[RunningServer]:
    """Start `headway serve` on a free port, wait until the first worker accepts, stop it at the end.

    What it keeps (HEADWAY_DATA_DIR) is in `data` beside the log, unless `environment` says otherwise.

    `heeds_rights`: it may not write where the rights of files forbid it, not even if the tests are run by root.
    `through`: a command before it, which becomes it (exec).
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    env |= {"HEADWAY_MODELS": str(MODELS), "HEADWAY_DATA_DIR": str(log.parent / "data"), "HEADWAY_DRAIN_SECONDS": "0"}
    env |= environment
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0", "--workers", str(workers), *flags]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*through, *command],
            cwd=ROOT,
            env=env,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            preexec_fn=heed_rights if heeds_rights else None,
        )
    try:
        server = RunningServer(process, _address(process, log, _ADDRESS), log, workers)
        try:
            yield server
        finally:
            server.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def heed_rights() -> None:
    """For a process before its program begins: drop what lets root write everywhere."""
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE) != 0:
        raise OSError(ctypes.get_errno(), "cannot drop CAP_DAC_OVERRIDE")


def _address(process: subprocess.Popen[bytes], log: Path, words: re.Pattern[bytes]) -> str:
    """What the server printed after `words`."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        if found := words.search(log.read_bytes()):
            return found[1].decode()
        time.sleep(0.02)
    raise AssertionError(f"headway serve did not start, or did not say {words.pattern!r}:\n{log.read_text()}")


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
