"""Ends runs that nobody waits for any more, and runs that last longer than their model may."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from app.engine.run import Run

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.1
# What a run is given to return after it was told to end.
STUCK_SECONDS = 2.0


class Watchdog:
    """One thread that looks at all runs of a process every INTERVAL_SECONDS.

    `on_overdue` is called, in that thread, for each run that was told to end, `on_stuck` once, with the name of a
    model, where one has not returned STUCK_SECONDS later.
    """

    def __init__(
        self,
        runs: Mapping[Run, None],
        lock: threading.Condition,
        on_overdue: Callable[[Run], None],
        on_stuck: Callable[[str], None],
    ) -> None:
        self._runs = runs
        self._lock = lock
        self._on_overdue = on_overdue
        self._on_stuck = on_stuck
        self._overdue: list[Run] = []
        self._is_stuck = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._closing.wait(INTERVAL_SECONDS):
            with self._lock:
                runs = list(self._runs)
            now = time.monotonic()
            for run in runs:
                self._look(run, now)
            self._look_for_stuck(now)

    def _look(self, run: Run, now: float) -> None:
        if now >= run.overdue_at and not run.is_lost:
            run.cancellation.cancel()
            self._overdue.append(run)
            self._on_overdue(run)
        elif run.is_abandoned:
            run.cancellation.cancel()

    def _look_for_stuck(self, now: float) -> None:
        self._overdue = [run for run in self._overdue if not run.is_over]
        for run in self._overdue:
            if not self._is_stuck and now >= run.overdue_at + STUCK_SECONDS:
                self._is_stuck = True
                self._on_stuck(run.lane.executor.model)
