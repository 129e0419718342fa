"""The queue between the event loop and the threads that run models.

A thread takes what has waited longest, high priority first. What nobody waits for any more (its deadline passed, its
caller left) is dropped before it is computed. The queue of each model is bounded, and what cannot be answered before
its deadline is refused at once.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Gauge

from app.engine.deadlines import Deadlines
from app.errors import Overloaded
from app.metrics import Metrics

logger = logging.getLogger(__name__)

# The weight of the newest run in the moving average of a model's service time.
_NEWEST = 0.1
# After such a pause the average is stale: the machine may have changed, so the newest run replaces it.
_STALE_SECONDS = 10.0


class Priority(enum.IntEnum):
    HIGH = 0
    NORMAL = 1


@dataclass(slots=True)
class _Job:
    lane: _Lane
    work: Callable[[float], Any]
    future: asyncio.Future[Any]
    deadline: float
    queued_at: float


@dataclass(slots=True)
class _Lane:
    """What is known of one model: how many of its works wait and run, and how long one takes (0: not yet known)."""

    model: str
    depth: Gauge | None
    waiting: int = 0
    running: int = 0
    service_seconds: float = 0.0
    measured_at: float = field(default=-math.inf)

    def measure(self, seconds: float, now: float) -> None:
        is_stale = now - self.measured_at > _STALE_SECONDS
        self.service_seconds += (1.0 if is_stale else _NEWEST) * (seconds - self.service_seconds)
        self.measured_at = now


class Batcher:
    """`threads` daemon threads and one queue. `submit` is called in the event loop; `close` ends the threads."""

    def __init__(self, threads: int, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        self._lanes: dict[str, _Lane] = {}
        self._queues: dict[Priority, deque[_Job]] = {priority: deque() for priority in Priority}
        self._changed = threading.Condition()
        self._deadlines = Deadlines()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"inference-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        model: str,
        works: Sequence[Callable[[float], Any]],
        deadline: float,
        limit: int,
        *,
        priority: Priority = Priority.NORMAL,
        guess_seconds: float = 0.0,
    ) -> list[asyncio.Future[Any]]:
        """Queue the works of one call, all or none; each is called in a thread with the seconds it waited.

        `guess_seconds` is taken for the time of one work until one was measured. Raises Overloaded where more than
        `limit` works of `model` would wait, or where the first of these could not be done before `deadline`.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        with self._changed:
            lane = self._lane(model)
            if not lane.service_seconds:
                lane.service_seconds = guess_seconds
            self._check_room(lane, len(works), deadline - now, limit, priority)
            jobs = [_Job(lane, work, loop.create_future(), deadline, now) for work in works]
            lane.waiting += len(jobs)
            self._queues[priority].extend(jobs)
            self._changed.notify(len(jobs))
        if lane.depth is not None:
            lane.depth.inc(len(jobs))
        for job in jobs:
            self._deadlines.watch(job.future, deadline)
        return [job.future for job in jobs]

    @property
    def is_busy(self) -> bool:
        """Whether anything waits. Read without the lock: a moment's error does no harm."""
        return any(self._queues.values())

    def check_room(self, model: str, seconds: float, limit: int, priority: Priority = Priority.NORMAL) -> None:
        """Raises Overloaded where `submit` of one work with so many seconds left would; cheap, and reserves nothing."""
        with self._changed:
            self._check_room(self._lane(model), 1, seconds, limit, priority)

    def close(self) -> None:
        """End the threads once they are idle; works that still wait are run first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def _lane(self, model: str) -> _Lane:
        lane = self._lanes.get(model)
        if lane is None:
            depth = self._metrics.queue_depth.labels(model) if self._metrics is not None else None
            lane = self._lanes[model] = _Lane(model, depth)
        return lane

    def _check_room(self, lane: _Lane, count: int, seconds: float, limit: int, priority: Priority) -> None:
        # A call with more items than the limit is let in when nothing else waits.
        wait = self._estimate_wait(priority)
        if lane.waiting and lane.waiting + count > limit:
            raise Overloaded(f"{lane.waiting} requests already wait for {lane.model!r}; try again later", wait)
        # An idle server tries, whatever was measured before.
        if wait and wait + lane.service_seconds > seconds:
            raise Overloaded(
                f"the answer would take about {wait + lane.service_seconds:.1f} s, and only {max(seconds, 0):.1f} s "
                "are left; try again later",
                wait,
            )

    def _estimate_wait(self, priority: Priority) -> float:
        """Seconds until a thread is free for what comes now: what runs and waits before it, over all threads."""
        work = sum((lane.running + lane.waiting) * lane.service_seconds for lane in self._lanes.values())
        if priority is Priority.HIGH:
            work -= sum(job.lane.service_seconds for job in self._queues[Priority.NORMAL])
        return max(0.0, work / len(self._threads))

    def _work(self) -> None:
        while (job := self._take()) is not None:
            lane = job.lane
            if lane.depth is not None:
                lane.depth.dec()
            started = time.monotonic()
            # Else the deadline's timer, or the caller, has settled the future or is about to.
            if job.future.done() or job.deadline <= started:
                with self._changed:
                    lane.running -= 1
                continue
            try:
                result, error = job.work(started - job.queued_at), None
            except BaseException as exc:
                result, error = None, exc
            # Counted before the caller can know of it, so that its next request finds the estimate of this one.
            finished = time.monotonic()
            with self._changed:
                lane.running -= 1
                lane.measure(finished - started, finished)
            self._settle(job, result, error)

    def _settle(self, job: _Job, result: Any, error: BaseException | None) -> None:
        try:
            job.future.get_loop().call_soon_threadsafe(_settle, job.future, result, error)
        except RuntimeError:
            logger.info("an answer of %s came after the event loop had ended", job.lane.model)

    def _take(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: any(self._queues.values()) or self._closed)
            for queue in self._queues.values():
                if queue:
                    job = queue.popleft()
                    job.lane.waiting -= 1
                    job.lane.running += 1
                    return job
            return None


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):
        error = RuntimeError(f"a work raised {error!r}, which no future can carry")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
