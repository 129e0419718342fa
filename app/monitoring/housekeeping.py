"""What is done again and again beside the requests, by one process of a machine for all of them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from app.errors import FeedbackUnavailable
from app.storage.counts import CountsStore
from app.storage.database import Database
from app.storage.feedback import FeedbackStore

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
SWEEP_SECONDS = 600.0
# So that nobody who writes waits long.
_SWEPT_AT_ONCE = 20_000
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


@dataclass(frozen=True, slots=True)
class Task:
    """`run` is given the time (Unix, ms) and may raise FeedbackUnavailable. `name` completes "… failed"."""

    name: str
    run: Callable[[int], object]
    every_seconds: float


class Sweeper:
    """Keeps the database small. `keep_days`: how long feedback and counts are kept."""

    def __init__(self, database: Database, keep_days: float) -> None:
        self._feedback = FeedbackStore(database)
        self._counts = CountsStore(database)
        self._keep_ms = round(keep_days * _DAY_MS)

    def look(self, now_ms: int) -> None:
        """Make hours of old minutes, and delete what is older than it is kept. Raises FeedbackUnavailable."""
        # A merged hour is in a sum whole or not at all: a canary's requests are counted from the minute it began.
        self._counts.merge(now_ms - 2 * _HOUR_MS, _SWEPT_AT_ONCE, requests_before_ms=now_ms - _DAY_MS)
        self._feedback.delete_before(now_ms - self._keep_ms, _SWEPT_AT_ONCE)
        self._counts.delete_before(now_ms - self._keep_ms, _SWEPT_AT_ONCE)


class Housekeeper:
    """A thread that runs the tasks once there is a database. `run_dir` is shared by the processes of this machine."""

    def __init__(self, database: Database, tasks: Sequence[Task], run_dir: Path | None) -> None:
        self._database = database
        self._tasks = tasks
        self._run_dir = run_dir
        self._due = dict.fromkeys((task.name for task in tasks), 0.0)
        self._failing: set[str] = set()
        self._lock_file: IO[bytes] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """A task that runs is not waited for."""
        self._closing.set()
        self._thread.join(timeout=0.5)

    def _work(self) -> None:
        while not self._closing.is_set():
            if self._is_my_turn() and self._has_database():
                for task in self._tasks:
                    if time.monotonic() >= self._due[task.name]:
                        self._run(task)
                        self._due[task.name] = time.monotonic() + task.every_seconds
            self._closing.wait(LOOK_SECONDS)
        if self._lock_file is not None:
            self._lock_file.close()

    def _run(self, task: Task) -> None:
        """What fails is told when it begins to fail."""
        try:
            task.run(time.time_ns() // 1_000_000)
        except FeedbackUnavailable as exc:
            if task.name not in self._failing:
                logger.error("%s failed: %s", task.name, exc)
            self._failing.add(task.name)
        except Exception:
            logger.exception("%s failed; it is tried again", task.name)
        else:
            if task.name in self._failing:
                logger.info("%s works again", task.name)
            self._failing.discard(task.name)

    def _has_database(self) -> bool:
        try:
            return self._database.exists()
        except OSError:
            return True  # the tasks will say what is wrong

    def _is_my_turn(self) -> bool:
        """Whether this process is the one that does it: whoever has the lock keeps it until it ends."""
        if self._run_dir is None or self._lock_file is not None:
            return True
        import fcntl  # not on Windows, where there is one process and no run_dir

        try:
            file = (self._run_dir / "housekeeping.lock").open("ab")
        except OSError as exc:
            if "lock" not in self._failing:
                logger.error("housekeeping waits for its lock: %s", exc)
            self._failing.add("lock")
            return False
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock_file = file
            return True
        file.close()
        return False
