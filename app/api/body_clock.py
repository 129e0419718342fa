"""How long request bodies may take: all that are being received share one timer, which looks at them now and then.

A timer for each body costs as much as reading a small one.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from app.api.context import RequestContext
from app.errors import BodyTimeout

# A body that needs several retransmissions to get going is no attack.
GRACE_SHARE = 1 / 3
_LOOK_SECONDS = 1.0


class BodyClock:
    """Ends the reading of a body after `timeout_seconds`, or, once a third of them has passed, as soon as fewer than
    `min_bytes_per_second` have come on average since its beginning (0: no minimum). Used in the event loop's thread.
    """

    def __init__(self, timeout_seconds: float, min_bytes_per_second: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._min_bytes_per_second = min_bytes_per_second
        self._grace_seconds = timeout_seconds * GRACE_SHARE
        self._look_seconds = min(_LOOK_SECONDS, timeout_seconds / 10)
        self._readings: set[BodyReading] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, context: RequestContext) -> BodyReading:
        """To be entered for as long as the body is being read; `context.body_bytes` tells how much has come."""
        return BodyReading(self, context)

    def add(self, reading: BodyReading) -> None:
        self._readings.add(reading)
        if self._timer is None:
            self._arm()

    def remove(self, reading: BodyReading) -> None:
        self._readings.discard(reading)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for reading in self._readings:
            error = self._judge(now - reading.started, reading.received_bytes)
            if error is not None:
                reading.end(error)
        if self._readings:
            self._arm()

    def _judge(self, seconds: float, received: int) -> BodyTimeout | None:
        if seconds >= self._timeout_seconds:
            return BodyTimeout(
                f"the body was not complete within {self._timeout_seconds:g} seconds; send it faster or smaller"
            )
        if seconds >= self._grace_seconds and received < self._min_bytes_per_second * seconds:
            return BodyTimeout(
                f"the body came too slowly: {received:,} bytes in {seconds:.1f} seconds, where "
                f"{self._min_bytes_per_second:,g} a second are the least; send it faster"
            )
        return None


class BodyReading:
    """A context manager around the reading of one body: raises BodyTimeout from it when the clock says so."""

    __slots__ = ("_cancelling", "_clock", "_context", "_error", "_task", "started")

    def __init__(self, clock: BodyClock, context: RequestContext) -> None:
        self._clock = clock
        self._context = context
        self._error: BodyTimeout | None = None

    @property
    def received_bytes(self) -> int:
        return self._context.body_bytes

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self.started = time.monotonic()
        self._clock.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clock.remove(self)
        if self._error is not None and kind is asyncio.CancelledError and self._task.uncancel() <= self._cancelling:
            raise self._error from error

    def end(self, error: BodyTimeout) -> None:
        """Wake the task that waits for more, as `asyncio.timeout` does it."""
        if self._error is None:
            self._error = error
            self._task.cancel()
