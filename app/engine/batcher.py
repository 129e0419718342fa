"""The queue between the event loop and the threads that run models.

A thread takes the model that has had the least of the threads' time, high priority first, and of what waits for it as
much as may share a run. What nobody waits for any more (its deadline passed, its caller left) is dropped before it is
computed. What takes less time than handing it to a thread is run in the event loop (`run_here`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from app.engine.admission import check_room, estimate_wait
from app.engine.deadlines import Deadlines
from app.engine.hold import Hold
from app.engine.lane import Executor, Job, Lane, Priority, Ticket, Work
from app.engine.run import Run
from app.engine.watchdog import Watchdog
from app.errors import ClientClosed, DeadlineExceeded
from app.metrics import Metrics
from app.runtimes.base import Cancellation

logger = logging.getLogger(__name__)

# A run in the event loop is ended after this time, and begun again in a thread.
_HERE_LIMIT_SECONDS = 0.25


class Batcher:
    """`threads` daemon threads over the lanes of all models. All but `close` and `forget` is called in the event loop.

    `on_stuck` is called, once, in a thread, with the name of a model whose run could not be ended: this process
    should be replaced.
    """

    def __init__(
        self, threads: int, metrics: Metrics | None = None, on_stuck: Callable[[str], None] | None = None
    ) -> None:
        self._metrics = metrics
        self._count = threads
        self._lanes: dict[Executor, Lane] = {}
        self._waiting: dict[Lane, None] = {}
        self._runs: dict[Run, None] = {}
        self._virtual_seconds = 0.0
        self._changed = threading.Condition()
        self._deadlines = Deadlines()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._watchdog = Watchdog(self._runs, self._changed, self._give_up, on_stuck or _log_stuck)
        for _ in range(threads):
            self._start_thread()

    def submit(
        self,
        executor: Executor,
        works: Sequence[Work],
        deadline: float,
        priority: Priority = Priority.NORMAL,
        *,
        is_admitted: bool = False,
    ) -> list[asyncio.Future[Any]]:
        """Queue the works of one call, all or none; a future for each.

        Raises Overloaded where `executor.queue_limit` calls wait, or where the first of the works could not be done
        before `deadline` (time.monotonic() seconds); never for a call that `is_admitted` as a part of another.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        ticket = Ticket(len(works))
        jobs = [Job(work, loop.create_future(), deadline, now, priority, ticket) for work in works]
        with self._changed:
            lane = self._lane(executor)
            if not is_admitted:
                self._check_room(lane, works[0].rows, deadline - now, priority, now)
            if lane.priority is None and not lane.runs:
                # Who was away has no claim on the time in which others worked.
                lane.used_seconds = max(lane.used_seconds, self._virtual_seconds)
            lane.push(jobs)
            self._waiting[lane] = None
            self._changed.notify(len(jobs))
        for job in jobs:
            self._deadlines.watch(job.future, deadline)
        return [job.future for job in jobs]

    def can_run_here(self, executor: Executor, works: Sequence[Work]) -> bool:
        """Whether the works are done sooner than a thread would have them."""
        lane = self._lane(executor)
        return (
            executor.is_steady
            and len(works) == 1
            and lane.hold.allows(works[0].rows, time.monotonic())
            and lane.priority is None
            and lane.has_free_run
        )

    def run_here(self, executor: Executor, work: Work, deadline: float) -> Any:
        """Run in the event loop. Returns the result, or the exception; None where the run took long and was ended."""
        started = time.monotonic()
        if deadline <= started:
            return DeadlineExceeded("the deadline had passed before the run began; allow more time")
        lane = self._lane(executor)
        run = Run(lane, [], work.rows, started, started + _HERE_LIMIT_SECONDS, 0.0, Cancellation())
        with self._changed:
            self._runs[run] = None
            lane.runs += 1
        try:
            (result,) = executor.run((work,), (0.0,), run.cancellation)
        finally:
            run.is_over = True
            with self._changed:
                del self._runs[run]
                lane.runs -= 1
        is_ended = run.cancellation.is_cancelled
        now = time.monotonic()
        # By the clock: asking for the CPU time of this thread twice costs more than the smallest runs.
        lane.hold.measure(now - started, now - started, work.rows, now)
        return None if is_ended else result

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs. Read without the lock, as `is_busy` is."""
        return not self._waiting and not self._runs

    @property
    def is_busy(self) -> bool:
        """Whether anything waits. Read without the lock: a moment's error does no harm."""
        return bool(self._waiting)

    def check_room(self, executor: Executor, seconds: float, priority: Priority = Priority.NORMAL) -> None:
        """Raises Overloaded where `submit` of one row with so many seconds left would; without the lock, and reserving
        nothing: a refusal must not wait for what it refuses.
        """
        self._check_room(self._lane(executor), 1, seconds, priority, time.monotonic())

    def check_rooms(self, executors: Sequence[Executor], seconds: float, priority: Priority = Priority.NORMAL) -> None:
        """As `check_room`, of one row that needs all of `executors`, as if one ran after the other."""
        lanes = [self._lane(executor) for executor in executors]
        now, total = time.monotonic(), sum(lane.row_seconds for lane in lanes)
        for lane in lanes:
            self._check_room(lane, 1, seconds - (total - lane.row_seconds), priority, now)

    def forget(self, executor: Executor) -> None:
        """The executor's version is unloaded. Called in any thread; what still waits or runs is finished."""
        with self._changed:
            self._lanes.pop(executor, None)

    def close(self) -> None:
        """End the threads once they are idle; works that still wait are run first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in list(self._threads):
            thread.join(timeout=5)
        self._watchdog.close()

    def _lane(self, executor: Executor) -> Lane:
        lane = self._lanes.get(executor)
        if lane is None:
            depth = self._metrics.queue_depth.labels(executor.model) if self._metrics is not None else None
            hold = Hold(executor.guess_seconds, self._count)
            lane = self._lanes[executor] = Lane(executor, hold, depth, row_seconds=executor.guess_seconds)
        return lane

    def _check_room(self, lane: Lane, rows: int, seconds: float, priority: Priority, now: float) -> None:
        # Copies, made at one go, since a look without the lock may meet a thread that changes them.
        wait_seconds = estimate_wait(lane, priority, list(self._waiting), list(self._runs), self._count, now)
        check_room(lane, rows, seconds, wait_seconds)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"inference-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        free_since = 0.0
        while (run := self._take()) is not None:
            # What lies between two runs is part of the time that the next in the queue waits.
            begun = run.started if run.lane.executor.max_wait_seconds else max(free_since, run.jobs[0].queued_at)
            cpu_started = time.thread_time()
            try:
                waited = [run.started - job.queued_at for job in run.jobs]
                results = run.lane.executor.run([job.work for job in run.jobs], waited, run.cancellation)
            except BaseException as exc:
                results = [exc] * len(run.jobs)
            if run.cancellation.is_cancelled:
                results = [_late(run)] * len(run.jobs)
            # Counted before the callers can know of it, so that their next requests find the estimate of this one.
            free_since = self._finish(run, begun, time.thread_time() - cpu_started)
            _settle(run.jobs, results)
            if run.is_lost:
                return

    def _take(self) -> Run | None:
        """Wait for the next run; None where there will be none any more."""
        with self._changed:
            while True:
                now = time.monotonic()
                lane, look_again_at = self._pick(now)
                if lane is not None:
                    jobs = lane.take(now)
                    if lane.priority is None:
                        del self._waiting[lane]
                    if jobs:
                        return self._begin(lane, jobs, now)
                elif self._closed and not self._waiting:
                    return None
                else:
                    self._changed.wait(None if look_again_at == math.inf else max(0.0, look_again_at - now))

    def _pick(self, now: float) -> tuple[Lane | None, float]:
        """The lane whose turn it is, high priority first, then who has used least; else when to look again.

        Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) by measured time.
        """
        best, best_rank, look_again_at = None, (len(Priority), math.inf), math.inf
        for lane in self._waiting:
            priority = lane.priority
            if priority is None or not lane.has_free_run:
                continue
            ripe_at = -math.inf if self._closed else lane.ripe_at()
            if ripe_at > now:
                look_again_at = min(look_again_at, ripe_at)
            elif (rank := (int(priority), lane.used_seconds)) < best_rank:
                best, best_rank = lane, rank
        return best, look_again_at

    def _begin(self, lane: Lane, jobs: list[Job], now: float) -> Run:
        rows = sum(job.work.rows for job in jobs)
        expected = rows * lane.row_seconds
        run = Run(lane, jobs, rows, now, now + lane.executor.max_run_seconds, expected, Cancellation())
        self._runs[run] = None
        lane.runs += 1
        self._virtual_seconds = max(self._virtual_seconds, lane.used_seconds)
        # Charged at once and corrected at the end: another thread that picks meanwhile counts it.
        lane.used_seconds += expected
        return run

    def _finish(self, run: Run, begun: float, cpu_seconds: float) -> float:
        """Count a run; returns when it ended."""
        ended = time.monotonic()
        seconds = ended - begun
        lane = run.lane
        with self._changed:
            run.is_over = True
            self._runs.pop(run, None)
            lane.runs -= 1
            lane.used_seconds += seconds - run.expected_seconds
            lane.measure(seconds, run.rows, was_ended=run.cancellation.is_cancelled)
            lane.hold.measure(cpu_seconds, ended - run.started, run.rows, ended)
            if self._closed:
                self._changed.notify_all()
            elif lane.executor.max_runs is not None and lane.priority is not None:
                self._changed.notify()
        return ended

    def _give_up(self, run: Run) -> None:
        """A run is overdue: its callers are answered, and another thread takes the place of its own."""
        if not run.jobs:
            return
        executor = run.lane.executor
        logger.error("a run of %s did not end within %g s (max_run_seconds)", executor.model, executor.max_run_seconds)
        with self._changed:
            if run.is_over:
                return
            run.is_lost = True
            del self._runs[run]
            self._threads.remove(run.thread)
            if not self._closed:
                self._start_thread()
        _settle(run.jobs, [_late(run)] * len(run.jobs))


def give_up(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Their caller has left: what has not begun is not computed."""
    for future in futures:
        if not future.done():
            future.set_exception(ClientClosed("the caller left before its answer was ready"))


def _late(run: Run) -> DeadlineExceeded:
    """What the callers of a run that was ended are told; those who have left are not told anything."""
    seconds = run.lane.executor.max_run_seconds
    return DeadlineExceeded(f"the model did not answer within {seconds:g} s (max_run_seconds); send it less at once")


def _settle(jobs: Sequence[Job], results: Sequence[Any]) -> None:
    """Give each caller its result; one hand-over for all of an event loop."""
    try:
        jobs[0].future.get_loop().call_soon_threadsafe(_settle_here, jobs, results)
    except RuntimeError:
        logger.info("answers of a run came after the event loop had ended")


def _settle_here(jobs: Sequence[Job], results: Sequence[Any]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():
            continue
        if isinstance(result, StopIteration):
            result = RuntimeError(f"a run raised {result!r}, which no future can carry")
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)


def _log_stuck(model: str) -> None:
    logger.error("a run of %s cannot be ended and keeps its thread; restart the server", model)
