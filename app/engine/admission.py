"""How long a call would wait, from measured service times: what cannot be answered in time is refused at once."""

from __future__ import annotations

from collections.abc import Iterable

from app.engine.lane import Lane, Priority
from app.engine.run import Run
from app.errors import Overloaded

# Runs take now less, now more than on average: without a margin a queue at the edge answers half of it too late.
_MARGIN = 1.15


def check_room(lane: Lane, rows: int, seconds: float, wait_seconds: float) -> None:
    """Raises Overloaded where the queue is full, or the answer would not be there within `seconds`."""
    executor = lane.executor
    # A call of any size is let in where none waits.
    if lane.calls_waiting >= executor.queue_limit:
        raise Overloaded(
            f"{lane.calls_waiting} requests already wait for {executor.model!r}; try again later", wait_seconds
        )
    needed = _MARGIN * (wait_seconds + min(rows, executor.max_rows) * lane.row_seconds)
    # An idle server tries, whatever was measured before.
    if wait_seconds and needed > seconds:
        raise Overloaded(
            f"the answer would take about {needed:.1f} s, and only {max(seconds, 0):.1f} s are left; try again later",
            wait_seconds,
        )


def estimate_wait(
    lane: Lane, priority: Priority, lanes: Iterable[Lane], runs: Iterable[Run], threads: int, now: float
) -> float:
    """Seconds until a thread is free for what comes now to `lane`.

    Lanes share the threads evenly, so a long queue of another model counts only as far as this lane's own queue
    reaches. A thread whose run overstays is not counted on; when none is left, the wait is taken to be as long
    again as the longest has lasted.
    """
    active = list(runs)
    lost = [now - run.started for run in active if run.overstays(now)]
    if len(lost) >= threads:
        return max(lost)
    if len(active) < threads and lane.has_free_run and all(other.priority is None for other in lanes):
        return 0.0
    ahead = _waiting_seconds(lane, priority)
    share = ahead + lane.row_seconds
    work = ahead + sum(min(_waiting_seconds(other, priority), share) for other in lanes if other is not lane)
    work += sum(run.remaining_seconds(now) for run in active)
    wait = work / (threads - len(lost))
    if lane.has_free_run or lane.executor.max_runs is None:
        return wait
    own = ahead + sum(run.remaining_seconds(now) for run in active if run.lane is lane)
    return max(wait, own / lane.executor.max_runs)


def _waiting_seconds(lane: Lane, priority: Priority) -> float:
    rows = sum(rows for level, rows in lane.rows_waiting.items() if level <= priority)
    return rows * lane.row_seconds
