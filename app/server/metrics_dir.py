"""The directory for prometheus_client's multiprocess files: one for each start, in memory if it has room.

The files are named by worker slot, so their number does not grow as workers are replaced, and are allocated
in full before they are mapped: a sparse file on a full file system kills the process that writes to it
(SIGBUS). What is in the files is up to the metrics; which processes live is known by a lock, not by a
process id, since ids of another container on the same storage mean nothing here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

FILE_BYTES = 1 << 20
_PREFIX = "headway-metrics-"
_LOCK = "lock"
# A directory that has no lock yet is being made by someone, unless it is as old as this.
_UNLOCKED_SECONDS = 3600.0

logger = logging.getLogger("headway.server")


def allocate(path: Path, size: int) -> None:
    """An all-zero file of that size whose blocks exist; replaces what stood there in one step."""
    staged = path.with_suffix(".new")
    try:
        with open(staged, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.write(bytes(size))
        os.replace(staged, path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise


class MetricsDir:
    """The directory at `path`, held by this process (and those it forks) until `remove` or its end."""

    def __init__(self, path: Path, files: tuple[str, ...], lock: int) -> None:
        self.path = path
        self._files = files
        self._lock = lock

    def prepare(self, slot: int) -> None:
        """Before a worker starts: what the slot's last worker counted goes on, its live gauges are gone."""
        for name in self._files:
            path = self.path / f"{name}_{slot}.db"
            if not path.exists() or name.startswith("gauge_live"):
                self._allocate(path)

    def reset_live(self, slot: int) -> None:
        """After a worker's end. Each file is replaced in one step, so a scrape sees the old or the new."""
        for name in self._files:
            if name.startswith("gauge_live"):
                self._allocate(self.path / f"{name}_{slot}.db")

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def _allocate(self, path: Path) -> None:
        try:
            allocate(path, FILE_BYTES)
        except OSError as exc:
            logger.warning("no space for the metrics file %s: %s", path.name, exc.strerror)


def create_metrics_dir(files: tuple[str, ...], slots: int, bases: tuple[Path, ...] | None = None) -> MetricsDir | None:
    """Sweep what dead servers left, then make a fresh directory in the first of `bases` that has the room.

    None, with a warning, if no base can be written: the server then runs without metrics of all workers.
    """
    needed = len(files) * slots * FILE_BYTES
    reason = "no directory to put it in"
    for base in bases if bases is not None else (Path("/dev/shm"), Path(tempfile.gettempdir())):
        try:
            sweep(base)
            if _count_free_bytes(base) < needed:
                raise OSError(errno.ENOSPC, f"less than {needed >> 20} MiB free")
            return _create_in(base, files)
        except OSError as exc:
            reason = f"{base}: {exc.strerror}"
            logger.debug("metrics directory not made in %s", reason)
    logger.warning("no metrics directory (%s): /metrics will show one worker at a time", reason)
    return None


def sweep(base: Path) -> None:
    """Remove the directories in `base` whose server has ended without removing them."""
    for path in base.glob(f"{_PREFIX}*"):
        if not _is_held(path):
            shutil.rmtree(path, ignore_errors=True)
            logger.debug("removed the metrics directory %s of a dead server", path)


def _count_free_bytes(base: Path) -> int:
    stat = os.statvfs(base)
    return stat.f_bavail * stat.f_frsize


def _create_in(base: Path, files: tuple[str, ...]) -> MetricsDir:
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-{int(time.time())}-", dir=base))
    staged = path / f"{_LOCK}.new"
    lock = os.open(staged, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.replace(staged, path / _LOCK)  # only now can a sweep take it for a finished one
    except OSError:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)
        raise
    return MetricsDir(path, files, lock)


def _is_held(path: Path) -> bool:
    try:
        lock = os.open(path / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return time.time() - _get_modified(path) < _UNLOCKED_SECONDS
    except OSError:
        return True  # someone else's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _get_modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
