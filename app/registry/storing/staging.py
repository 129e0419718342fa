"""Places in the registry directory where a version waits until it is complete: `.staging-…`, which no reader looks at.

A place is locked while its process lives; what a killed one has left is swept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from app.errors import Conflict
from app.registry.storing.locking import hold, writing

PREFIX = ".staging-"
_HELD = ".held"
# Between the making of a place and its lock.
_FRESH_SECONDS = 60.0


class Staging:
    """One place, of this process until `discard` or the process's end."""

    def __init__(self, root: Path) -> None:
        """Raises Conflict and its kin where nothing can be written to `root`."""
        if not root.is_dir():
            raise Conflict(f"{root}: there is no such registry directory; make it first")
        with writing(root):
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
            # flock, not lockf: a process must not take its own place for one that was left behind.
            self._descriptor = os.open(self.path / _HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            hold(self._descriptor)

    def discard(self) -> None:
        """Remove the place with all that is left in it. May be called more than once, and never fails."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def sweep_staging(root: Path, now: float) -> int:
    """Remove the places whose process is gone; returns how many. `now` is in seconds since the epoch."""
    swept = 0
    for path in root.glob(f"{PREFIX}*"):
        try:
            is_left = now - path.stat().st_mtime > _FRESH_SECONDS and not _is_held(path)
        except FileNotFoundError:
            continue  # discarded in this moment
        if is_left:
            shutil.rmtree(path, ignore_errors=True)
            swept += 1
    return swept


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path / _HELD, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        hold(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
