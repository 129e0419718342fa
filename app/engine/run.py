"""A run in progress, as admission and the watchdog see it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from app.engine.lane import Job, Lane
from app.runtimes.base import Cancellation

# A run of so many times its expected time, and at least so many seconds, says nothing of when it will end.
_OVERSTAY_FACTOR = 4.0
_OVERSTAY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Run:
    """`jobs` is empty for a run in the event loop. Times in time.monotonic() seconds."""

    lane: Lane
    jobs: list[Job]
    rows: int
    started: float
    overdue_at: float
    expected_seconds: float
    cancellation: Cancellation
    thread: threading.Thread = field(default_factory=threading.current_thread)
    is_lost: bool = False
    """Given up for overdue, and its thread replaced."""
    is_over: bool = False

    def remaining_seconds(self, now: float) -> float:
        return max(0.0, self.expected_seconds - (now - self.started))

    def overstays(self, now: float) -> bool:
        return now - self.started > max(_OVERSTAY_SECONDS, _OVERSTAY_FACTOR * self.expected_seconds)

    @property
    def is_abandoned(self) -> bool:
        """Whether its callers have all left, or their deadlines have passed."""
        return bool(self.jobs) and all(job.future.done() for job in self.jobs)
