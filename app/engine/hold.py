"""Whether a model is run in the event loop: where handing a run to a thread costs more than the run itself."""

from __future__ import annotations

import math

# Handing a work to a thread and back costs about 0.1 ms of CPU (bench/hand_over.py, ADR 0014). A worker with one
# thread has one core, which a run keeps from the event loop wherever it runs; with several, long runs are spread.
_ONE_THREAD_SECONDS = 0.0005
_MANY_THREADS_SECONDS = 0.0001
# After a run in the event loop that took so much longer the model keeps to the threads for a while.
_FAR_TOO_LONG_SECONDS = 0.1
_KEEP_OFF_SECONDS = 30.0


class Hold:
    """What a run would hold the event loop up for; in a thread its CPU time, as there it waits for the interpreter too.

    A run that waits takes no CPU time, so that the quickest runs must have been quick by the clock too.
    """

    def __init__(self, guess_seconds: float, threads: int) -> None:
        self._limit_seconds = _ONE_THREAD_SECONDS if threads == 1 else _MANY_THREADS_SECONDS
        self._row_seconds = guess_seconds
        self._quickest_seconds = guess_seconds
        self._off_until = -math.inf

    def allows(self, rows: int, now: float) -> bool:
        return (
            0 < self._row_seconds * max(1, rows) <= self._limit_seconds
            and self._quickest_seconds <= 10 * self._limit_seconds
            and now >= self._off_until
        )

    def measure(self, cpu_seconds: float, seconds: float, rows: int, now: float) -> None:
        newest = cpu_seconds / max(1, rows)
        if self._row_seconds:
            # Clipped: a collection of garbage, or a neighbour on the core, in one run says nothing of the next.
            newest = self._row_seconds + 0.1 * (min(newest, 4 * self._row_seconds) - self._row_seconds)
        self._row_seconds = newest
        self._quickest_seconds = min(1.1 * self._quickest_seconds or seconds, seconds)
        if cpu_seconds > _FAR_TOO_LONG_SECONDS:
            self._off_until = now + _KEEP_OFF_SECONDS
