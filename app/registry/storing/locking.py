"""Changes of the registry, one at a time for each model: between threads, processes, and machines that share it.

`fcntl.lockf`, which network file systems know too. It is held by a process, not by a thread, and is lost with the first
descriptor of the file that the process closes: so threads take turns before it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import Conflict, HeadwayError, RegistryBusy, RegistryFull, RegistryReadOnly

try:
    import fcntl
except ImportError:  # Windows, where a registry is served but not changed
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"
# A change holds the lock for some renames; an upload is unpacked and tried before it.
WAIT_SECONDS = 10.0

_PAUSE_SECONDS = 0.005
# EXDEV: a directory of an image's layer cannot be renamed on top of it.
_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EXDEV})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_turns: dict[str, threading.Lock] = {}
_turns_lock = threading.Lock()


@contextmanager
def changing(directory: Path, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of the model whose release.yaml lies in `directory` (made if it is not there).

    Whoever comes in must read again what it decides on. Raises RegistryBusy after `wait_seconds`, RegistryReadOnly
    where the directory cannot be written or the file system has no locks, RegistryFull.
    """
    deadline = time.monotonic() + wait_seconds
    turn = _turn_of(directory)
    if not turn.acquire(timeout=wait_seconds):
        raise _busy(directory)
    try:
        with writing(directory):
            descriptor = _lock(directory, deadline)
        try:
            yield
        finally:
            os.close(descriptor)  # and with it the lock
    finally:
        turn.release()


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Tell a registry that cannot be written, or that is full, in its own words: RegistryReadOnly, RegistryFull."""
    try:
        yield
    except OSError as exc:
        refusal = describe_write_error(directory, exc)
        if refusal is None:
            raise
        raise refusal from exc


def describe_write_error(directory: Path, exc: OSError) -> HeadwayError | None:
    if exc.errno in _NOT_WRITABLE or exc.errno in _NO_LOCKS:
        return RegistryReadOnly(
            f"{directory}: cannot be changed here ({exc.strerror}); make the change where the directory comes from "
            "(its Git repository, image or volume) and roll that out"
        )
    if exc.errno in _NO_SPACE:
        return RegistryFull(f"{directory}: has no space left ({exc.strerror}); nothing was changed; free some")
    return None


def remove_lock(directory: Path) -> None:
    """Remove the lock file and the directory, if that leaves it empty. Only by who holds the lock."""
    if os.listdir(directory) == [LOCK_NAME]:
        os.unlink(directory / LOCK_NAME)
        os.rmdir(directory)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` last: a rename is on the disk only after this."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(directory: Path, deadline: float) -> int:
    path = directory / LOCK_NAME
    directory.mkdir(exist_ok=True)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError as exc:
            raise Conflict(f"{directory}: was removed in this moment; try again") from exc
        try:
            _wait(descriptor, directory, deadline)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that was removed while we waited for it


def _wait(descriptor: int, directory: Path, deadline: float) -> None:
    while True:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "this system has no file locks")
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > deadline:
            raise _busy(directory)
        time.sleep(_PAUSE_SECONDS)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _turn_of(directory: Path) -> threading.Lock:
    with _turns_lock:
        return _turns.setdefault(os.path.realpath(directory), threading.Lock())


def _busy(directory: Path) -> RegistryBusy:
    return RegistryBusy(f"{directory}: another process is changing this model; try again in a second")


def hold(descriptor: int) -> None:
    """Lock an open file for as long as it is open, against other descriptors of this process too. Raises OSError."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no file locks")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
