"""Deadlines of everything that waits in one event loop: one heap and one timer, not a task for each request."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
import weakref
from typing import Any

from app.errors import DeadlineExceeded


class Deadlines:
    """Fails futures with DeadlineExceeded when their time has come. Used from the event loop's thread only.

    Holds them weakly: an answer that was given in a millisecond must not stay in memory until its deadline.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, weakref.ref[asyncio.Future[Any]]]] = []
        self._ticket = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def watch(self, future: asyncio.Future[Any], deadline: float) -> None:
        """Fail `future` at `deadline` (time.monotonic() seconds) unless it is done by then."""
        heapq.heappush(self._heap, (deadline, next(self._ticket), weakref.ref(future)))
        if deadline < self._timer_at:
            self._arm(future.get_loop(), deadline)

    def _arm(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._timer_at = None, float("inf")
        now = time.monotonic()
        while self._heap and (self._heap[0][0] <= now or _is_done(self._heap[0][2]())):
            future = heapq.heappop(self._heap)[2]()
            if future is not None and not future.done():
                future.set_exception(DeadlineExceeded("the answer was not ready before the deadline; try again"))
        if self._heap:
            self._arm(loop, self._heap[0][0])


def _is_done(future: asyncio.Future[Any] | None) -> bool:
    return future is None or future.done()
