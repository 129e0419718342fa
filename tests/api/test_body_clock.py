"""One timer for all bodies: what it ends, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from app.api.body_clock import BodyClock
from app.api.context import RequestContext
from app.errors import BodyTimeout

PATIENCE_SECONDS = 30.0


async def read(clock: BodyClock, more: Awaitable[object], received: int = 0) -> None:
    context = RequestContext("id", body_bytes=received)
    with clock.watch(context):
        await more


def test_a_body_past_its_time_is_ended() -> None:
    async def main() -> None:
        with pytest.raises(BodyTimeout, match=r"not complete within 0\.2 seconds"):
            await read(BodyClock(0.2, 0), asyncio.sleep(PATIENCE_SECONDS))
        await asyncio.sleep(0)  # the task goes on as if it had never been cancelled

    asyncio.run(main())


def test_a_body_below_the_pace_is_ended_and_its_neighbours_are_not() -> None:
    async def main() -> None:
        clock = BodyClock(PATIENCE_SECONDS / 100, 1000)
        enough = asyncio.Event()
        neighbours = [asyncio.create_task(read(clock, enough.wait(), 10_000)) for _ in range(5)]
        with pytest.raises(BodyTimeout, match="too slowly: 7 bytes in"):
            await read(clock, asyncio.sleep(PATIENCE_SECONDS), 7)
        enough.set()
        await asyncio.gather(*neighbours)

    asyncio.run(main())


def test_what_ends_a_task_for_another_reason_stays_what_it_is() -> None:
    async def main() -> None:
        clock = BodyClock(PATIENCE_SECONDS, 0)
        task = asyncio.create_task(read(clock, asyncio.sleep(PATIENCE_SECONDS)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ZeroDivisionError), clock.watch(RequestContext("id")):
            1 / 0  # noqa: B018

    asyncio.run(main())


def test_a_body_that_is_complete_is_forgotten() -> None:
    async def main() -> None:
        clock = BodyClock(0.1, 1_000_000)
        await read(clock, asyncio.sleep(0))
        await asyncio.sleep(0.3)

    asyncio.run(main())
