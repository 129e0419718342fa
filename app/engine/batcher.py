"""The queue between the event loop and the threads that run models.

A thread takes what has waited longest. What nobody waits for any more (its deadline passed, its caller left)
is dropped before it is computed. The queue of each model is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import Gauge

from app.engine.deadlines import Deadlines
from app.errors import Overloaded
from app.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    model: str
    work: Callable[[float], Any]
    future: asyncio.Future[Any]
    deadline: float
    queued_at: float


class Batcher:
    """`threads` daemon threads and one queue. `submit` is called in the event loop; `close` ends the threads."""

    def __init__(self, threads: int, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        self._depths: dict[str, Gauge] = {}
        self._jobs: deque[_Job] = deque()
        self._waiting: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._deadlines = Deadlines()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"inference-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, model: str, works: Sequence[Callable[[float], Any]], deadline: float, limit: int
    ) -> list[asyncio.Future[Any]]:
        """Queue the works of one call, all or none; each is called in a thread with the seconds it waited.

        Raises Overloaded where more than `limit` works of `model` would wait.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        jobs = [_Job(model, work, loop.create_future(), deadline, now) for work in works]
        with self._changed:
            waiting = self._waiting[model]
            # A call with more items than the limit is let in when nothing else waits.
            if waiting and waiting + len(jobs) > limit:
                raise Overloaded(f"{waiting} requests already wait for {model!r}; try again in a second")
            self._waiting[model] += len(jobs)
            self._jobs.extend(jobs)
            self._changed.notify(len(jobs))
        self._count_waiting(model, len(jobs))
        for job in jobs:
            self._deadlines.watch(job.future, deadline)
        return [job.future for job in jobs]

    def _count_waiting(self, model: str, change: int) -> None:
        if self._metrics is None:
            return
        depth = self._depths.get(model)
        if depth is None:
            depth = self._depths[model] = self._metrics.queue_depth.labels(model)
        depth.inc(change)

    def close(self) -> None:
        """End the threads once they are idle; works that still wait are run first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def _work(self) -> None:
        while (job := self._take()) is not None:
            self._count_waiting(job.model, -1)
            now = time.monotonic()
            if job.future.done() or job.deadline <= now:
                continue  # the deadline's timer, or the caller, has settled the future or is about to
            try:
                result, error = job.work(now - job.queued_at), None
            except BaseException as exc:
                result, error = None, exc
            try:
                job.future.get_loop().call_soon_threadsafe(_settle, job.future, result, error)
            except RuntimeError:
                logger.info("an answer of %s came after the event loop had ended", job.model)

    def _take(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            job = self._jobs.popleft()
            self._waiting[job.model] -= 1
            return job


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):
        error = RuntimeError(f"a work raised {error!r}, which no future can carry")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
