"""One timer for all futures of a loop."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest

from app.engine.deadlines import Deadlines
from app.errors import DeadlineExceeded

pytestmark = pytest.mark.anyio


async def test_watch_fails_what_is_not_done() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    future = loop.create_future()
    deadline = time.monotonic() + 0.03
    deadlines.watch(future, deadline)
    with pytest.raises(DeadlineExceeded):
        await future
    assert time.monotonic() >= deadline


async def test_watch_in_any_order() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    now = time.monotonic()
    ended: list[int] = []
    futures = [loop.create_future() for _ in range(4)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: ended.append(number))
    for number, delay in ((0, 0.06), (1, 0.02), (2, 0.09), (3, 0.04)):
        deadlines.watch(futures[number], now + delay)
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert ended == [1, 3, 0, 2]
    assert all(isinstance(result, DeadlineExceeded) for result in results)


async def test_watch_leaves_what_is_done() -> None:
    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    answered, cancelled, last = (loop.create_future() for _ in range(3))
    for future, delay in ((answered, 0.01), (cancelled, 0.01), (last, 0.03)):
        deadlines.watch(future, time.monotonic() + delay)
    answered.set_result("answer")
    cancelled.cancel()
    with pytest.raises(DeadlineExceeded):
        await last
    assert await answered == "answer"
    assert cancelled.cancelled()


async def test_watch_a_deadline_that_has_passed() -> None:
    future = asyncio.get_running_loop().create_future()
    deadlines = Deadlines()
    deadlines.watch(future, time.monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        await future


async def test_watch_does_not_keep_an_answer_until_its_deadline() -> None:
    class Result:
        pass

    deadlines, loop = Deadlines(), asyncio.get_running_loop()
    result = Result()
    seen = weakref.ref(result)
    future = loop.create_future()
    deadlines.watch(future, time.monotonic() + 3600)
    future.set_result(result)
    del future, result
    gc.collect()
    assert seen() is None
