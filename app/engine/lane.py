"""What waits for one model version, what is known of its speed, and its fair share of the threads."""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import Gauge

from app.engine.hold import Hold
from app.runtimes.base import Cancellation

# The weight of the newest run in the moving average of the service time.
_NEWEST = 0.1
# After such a pause the average is stale: the machine may have changed, so the newest run replaces it.
_STALE_SECONDS = 10.0


class Priority(enum.IntEnum):
    HIGH = 0
    NORMAL = 1


@dataclass(slots=True)
class Work:
    """Rows of one caller that run together. Works of equal `signature` may share a run; None shares with nobody."""

    content: Any
    rows: int = 1
    signature: Hashable = None


class Executor(Protocol):
    """What a lane runs its works with. Attributes are read at each use."""

    model: str
    """The label in metrics and messages."""
    queue_limit: int
    """Calls that may wait."""
    max_rows: int
    """Rows of a run that several works share."""
    max_wait_seconds: float
    """How long a work may wait for others to share its run; 0: not at all."""
    max_runs: int | None
    """Runs at one time; None: as many as there are threads."""
    max_run_seconds: float
    guess_seconds: float
    """Taken for the time of a row until one was measured."""
    is_steady: bool
    """Whether all rows are of one size, so that one takes about as long as another."""

    def run(self, works: Sequence[Work], waited: Sequence[float], cancellation: Cancellation) -> Sequence[Any]:
        """Results in the order of `works`; for one that failed its exception. `waited`: seconds in the queue."""
        ...


@dataclass(slots=True)
class Ticket:
    """One call: it waits as long as one of its works does."""

    works_waiting: int


@dataclass(slots=True, eq=False)
class Job:
    """A work in the queue. `deadline` and `queued_at` are in time.monotonic() seconds."""

    work: Work
    future: asyncio.Future[Any]
    deadline: float
    queued_at: float
    priority: Priority
    ticket: Ticket

    def is_wanted(self, now: float) -> bool:
        """Else the deadline's timer, or the caller, has settled the future or is about to."""
        return self.deadline > now and not self.future.done()


@dataclass(slots=True, eq=False)
class Lane:
    """All but `executor` is guarded by the batcher's lock. `row_seconds` is measured at the batch size in use."""

    executor: Executor
    hold: Hold
    depth: Gauge | None = None
    calls_waiting: int = 0
    rows_waiting: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    runs: int = 0
    row_seconds: float = 0.0
    used_seconds: float = 0.0
    _queues: dict[Priority, deque[Job]] = field(default_factory=lambda: {priority: deque() for priority in Priority})
    _measured_at: float = -math.inf

    def push(self, jobs: Sequence[Job]) -> None:
        self.calls_waiting += 1
        for job in jobs:
            self._queues[job.priority].append(job)
            self.rows_waiting[job.priority] += job.work.rows
        if self.depth is not None:
            self.depth.inc(len(jobs))

    @property
    def priority(self) -> Priority | None:
        """The highest that waits; None where nothing does."""
        return next((priority for priority, queue in self._queues.items() if queue), None)

    @property
    def has_free_run(self) -> bool:
        return self.executor.max_runs is None or self.runs < self.executor.max_runs

    def ripe_at(self) -> float:
        """When what waits shall run: at once, unless a shared run could still grow."""
        executor = self.executor
        if not executor.max_wait_seconds or sum(self.rows_waiting.values()) >= executor.max_rows:
            return -math.inf
        return min(queue[0].queued_at for queue in self._queues.values() if queue) + executor.max_wait_seconds

    def take(self, now: float) -> list[Job]:
        """The next run: what has waited longest at the highest priority, and what may share its run.

        What nobody waits for any more is dropped on the way. Empty where nothing else was left.
        """
        taken: list[Job] = []
        rows = 0
        for queue in self._queues.values():
            while queue and (not taken or self._fits(taken[0], rows, queue[0])):
                job = queue.popleft()
                self._forget(job)
                if job.is_wanted(now):
                    taken.append(job)
                    rows += job.work.rows
        return taken

    def measure(self, seconds: float, rows: int, *, was_ended: bool) -> None:
        """Count a run. One that was ended took at least so long."""
        now = time.monotonic()
        row_seconds = seconds / max(1, rows)
        if was_ended:
            row_seconds = max(row_seconds, self.row_seconds)
        is_stale = now - self._measured_at > _STALE_SECONDS
        self.row_seconds += (1.0 if is_stale else _NEWEST) * (row_seconds - self.row_seconds)
        self._measured_at = now

    def _fits(self, first: Job, rows: int, job: Job) -> bool:
        return (
            job.work.signature is not None
            and job.work.signature == first.work.signature
            and rows + job.work.rows <= self.executor.max_rows
        )

    def _forget(self, job: Job) -> None:
        self.rows_waiting[job.priority] -= job.work.rows
        job.ticket.works_waiting -= 1
        if not job.ticket.works_waiting:
            self.calls_waiting -= 1
        if self.depth is not None:
            self.depth.dec()
