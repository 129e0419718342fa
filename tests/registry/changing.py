"""Processes that change a release, for test_editor.py: `python -m tests.registry.changing race|crash ROOT …`.

race ROOT NAME COUNT   makes COUNT changes, each against the digest that was read; prints the revisions that it made
crash ROOT             makes one change again and again, each time killed after one more system call; prints what is
                       left on the disk each time, and what the next change makes of it
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from app.errors import ReleaseConflict
from app.registry.releases.changes import Promote, SetAlias
from app.registry.releases.editor import Note, ReleaseEditor
from app.registry.releases.release_file import FileCalls
from app.registry.store import Store


def race(root: Path, name: str, count: int) -> dict[str, Any]:
    editor = ReleaseEditor(Store(root))
    revisions: list[int] = []
    conflicts = 0
    while len(revisions) < count:
        seen = editor.read("m")
        change = SetAlias(name, "1.0.0", len(revisions) % 40 + 1)
        try:
            changed = editor.change("m", change, Note(name), seen=seen.digest)
        except ReleaseConflict:
            conflicts += 1
            continue
        assert changed.release is not None
        revisions.append(changed.release.revision)
    return {"revisions": revisions, "conflicts": conflicts}


class DyingCalls(FileCalls):
    """Does each call, then counts it, and kills the process at the last. What is written is written in pieces."""

    def __init__(self, calls: int) -> None:
        self._left = calls
        self._count(0)

    def _count(self, calls: int = 1) -> None:
        self._left -= calls
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def open(self, *args: Any) -> int:  # type: ignore[override]
        descriptor = os.open(*args)
        self._count()
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:  # type: ignore[override]
        written = os.write(descriptor, data[:100])
        self._count()
        return written

    def chmod(self, *args: Any) -> None:  # type: ignore[override]
        os.fchmod(*args)
        self._count()

    def fsync(self, descriptor: int) -> None:  # type: ignore[override]
        os.fsync(descriptor)
        self._count()

    def close(self, descriptor: int) -> None:  # type: ignore[override]
        os.close(descriptor)
        self._count()

    def replace(self, *args: Any) -> None:  # type: ignore[override]
        os.replace(*args)
        self._count()


def crash(root: Path) -> list[dict[str, Any]]:
    store = Store(root)
    path = store.release_path("m")
    before = path.read_bytes()
    found = []
    while True:
        path.write_bytes(before)
        pid = os.fork()
        if pid == 0:
            ReleaseEditor(store, DyingCalls(len(found))).change("m", Promote("2.0.0"), Note("child"), unverified=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise AssertionError(f"the child failed with {status}")
        left = path.read_text()
        after = ReleaseEditor(store).change("m", SetAlias("next", "1.0.0"), Note("parent")).release
        assert after is not None
        found.append({"was_killed": os.WIFSIGNALED(status), "left": left, "next_revision": after.revision})
        if not os.WIFSIGNALED(status):
            return found


if __name__ == "__main__":
    command, directory, *rest = sys.argv[1:]
    outcome = race(Path(directory), rest[0], int(rest[1])) if command == "race" else crash(Path(directory))
    sys.stdout.write(json.dumps(outcome))
