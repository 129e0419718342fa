"""The queue: bounded, nothing computed that nobody waits for, no caller harmed by another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.engine.batcher import Batcher, Priority
from app.errors import DeadlineExceeded, Overloaded

pytestmark = pytest.mark.anyio
PATIENCE_SECONDS = 30.0


class Gate:
    """A work that holds the thread until it is opened."""

    def __init__(self) -> None:
        self.entered, self._opened = threading.Event(), threading.Event()

    def __call__(self, _waited: float) -> str:
        self.entered.set()
        assert self._opened.wait(PATIENCE_SECONDS)
        return "gate"

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    """One thread."""
    batcher = Batcher(1)
    yield batcher
    batcher.close()


def _submit(
    batcher: Batcher,
    *works: Callable[[float], Any],
    model: str = "m",
    seconds: float = PATIENCE_SECONDS,
    limit: int = 99,
) -> list[asyncio.Future[Any]]:
    return batcher.submit(model, works, time.monotonic() + seconds, limit)


async def _enter(batcher: Batcher) -> tuple[Gate, asyncio.Future[Any]]:
    """Make the only thread busy."""
    gate = Gate()
    (future,) = _submit(batcher, gate, model="gate")
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    return gate, future


async def test_submit_gives_each_its_result(batcher: Batcher) -> None:
    futures = _submit(batcher, *[lambda _, number=number: number * 2 for number in range(50)])
    assert await asyncio.gather(*futures) == [number * 2 for number in range(50)]


async def test_work_is_told_how_long_it_waited(batcher: Batcher) -> None:
    gate, _ = await _enter(batcher)
    (future,) = _submit(batcher, lambda waited: waited)
    await asyncio.sleep(0.05)
    gate.open()
    assert 0.05 <= await future < PATIENCE_SECONDS


async def test_submit_over_the_limit_is_overloaded(batcher: Batcher) -> None:
    gate, first = await _enter(batcher)
    waiting = _submit(batcher, lambda _: 1, lambda _: 2, limit=3)
    waiting += _submit(batcher, lambda _: 3, limit=3)
    with pytest.raises(Overloaded, match="3 requests already wait for 'm'; try again later"):
        _submit(batcher, lambda _: 4, limit=3)
    # Another model has a limit of its own.
    (other,) = _submit(batcher, lambda _: "other", model="other", limit=1)
    gate.open()
    assert await asyncio.gather(first, *waiting, other) == ["gate", 1, 2, 3, "other"]
    (again,) = _submit(batcher, lambda _: 5, limit=1)
    assert await again == 5


async def test_submit_takes_all_works_of_a_call_or_none(batcher: Batcher) -> None:
    computed: list[int] = []
    gate, _ = await _enter(batcher)
    (first,) = _submit(batcher, lambda _: computed.append(1), limit=2)
    with pytest.raises(Overloaded):
        _submit(batcher, lambda _: computed.append(2), lambda _: computed.append(3), limit=2)
    gate.open()
    await first
    assert computed == [1]


async def test_submit_takes_a_large_call_where_nothing_waits(batcher: Batcher) -> None:
    futures = _submit(batcher, *[lambda _: 1] * 10, limit=3)
    assert await asyncio.gather(*futures) == [1] * 10


async def test_work_whose_deadline_passed_in_the_queue_is_not_computed(batcher: Batcher) -> None:
    computed: list[str] = []
    gate, _ = await _enter(batcher)
    (late,) = _submit(batcher, lambda _: computed.append("late"), seconds=0.05)
    (good,) = _submit(batcher, lambda _: computed.append("good"))
    with pytest.raises(DeadlineExceeded, match="before the deadline"):
        await late
    gate.open()
    await good
    assert computed == ["good"]


async def test_deadline_passes_while_the_work_runs(batcher: Batcher) -> None:
    gate = Gate()
    (future,) = _submit(batcher, gate, seconds=0.05)
    with pytest.raises(DeadlineExceeded):
        await future
    gate.open()
    (after,) = _submit(batcher, lambda _: "after")
    assert await after == "after"


async def test_cancelled_work_is_not_computed(batcher: Batcher) -> None:
    computed: list[str] = []
    gate, _ = await _enter(batcher)
    left, stayed = _submit(batcher, lambda _: computed.append("left"), lambda _: computed.append("stayed"))
    left.cancel()
    gate.open()
    await stayed
    assert computed == ["stayed"]


async def test_cancelled_while_it_runs_harms_nobody(batcher: Batcher) -> None:
    gate, future = await _enter(batcher)
    (neighbour,) = _submit(batcher, lambda _: "neighbour")
    future.cancel()
    gate.open()
    assert await neighbour == "neighbour"


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError("k"), SystemExit(3), MemoryError()])
async def test_exception_in_one_does_not_harm_others(batcher: Batcher, error: BaseException) -> None:
    def fail(_: float) -> None:
        raise error

    futures = _submit(batcher, lambda _: 1, fail, lambda _: 2)
    one, failed, two = await asyncio.gather(*futures, return_exceptions=True)
    assert (one, failed, two) == (1, error, 2)


async def test_stop_iteration_reaches_its_caller(batcher: Batcher) -> None:
    """No future takes it, and the caller would wait until the deadline."""
    (future,) = _submit(batcher, lambda _: next(iter(())))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await future


async def test_first_in_first_out(batcher: Batcher) -> None:
    order: list[int] = []
    gate, _ = await _enter(batcher)
    futures = [_submit(batcher, lambda _, n=n: order.append(n), model=f"m{n % 3}")[0] for n in range(30)]
    gate.open()
    await asyncio.gather(*futures)
    assert order == list(range(30))


async def test_threads_run_side_by_side() -> None:
    batcher, barrier = Batcher(3), threading.Barrier(3)
    futures = _submit(batcher, *[lambda _: barrier.wait(PATIENCE_SECONDS)] * 3)
    assert sorted(await asyncio.gather(*futures)) == [0, 1, 2]
    batcher.close()


async def test_close_runs_what_waits() -> None:
    batcher = Batcher(1)
    gate, first = await _enter(batcher)
    futures = _submit(batcher, lambda _: 1, lambda _: 2)
    gate.open()
    batcher.close()
    assert await asyncio.gather(first, *futures) == ["gate", 1, 2]


def test_close_of_an_idle_batcher_ends_its_threads() -> None:
    before = threading.active_count()
    batcher = Batcher(4)
    assert threading.active_count() == before + 4
    batcher.close()
    assert threading.active_count() == before


def test_answer_after_the_event_loop_has_ended_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    batcher, gate = Batcher(1), Gate()

    async def leave() -> None:
        _submit(batcher, gate)
        await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)

    caplog.set_level("INFO")
    asyncio.run(leave())
    gate.open()
    batcher.close()
    assert "came after the event loop had ended" in caplog.text


def _sleeper(seconds: float) -> Callable[[float], float]:
    def sleep(_: float) -> float:
        time.sleep(seconds)
        return seconds

    return sleep


async def test_what_cannot_meet_its_deadline_is_refused_at_once(batcher: Batcher) -> None:
    """Works of 50 ms on one thread: within 300 ms a few find room, not twenty, and what was let in is answered."""
    await _submit(batcher, _sleeper(0.05))[0]
    admitted: list[asyncio.Future[Any]] = []
    refusals: list[Overloaded] = []
    for _ in range(20):
        try:
            admitted += _submit(batcher, _sleeper(0.05), seconds=0.3, limit=1000)
        except Overloaded as exc:
            refusals.append(exc)
    assert 2 <= len(admitted) <= 6
    assert all(refusal.retry_after_seconds >= 1 for refusal in refusals)
    assert "try again later" in str(refusals[0])
    await asyncio.gather(*admitted, return_exceptions=True)


async def test_burst_into_an_idle_server_is_let_in(batcher: Batcher) -> None:
    """One slow run, then quick ones: an estimate of the past must not refuse what there is room for."""
    await _submit(batcher, _sleeper(0.05))[0]
    futures = [_submit(batcher, lambda _: 1, seconds=30, limit=1000)[0] for _ in range(100)]
    assert await asyncio.gather(*futures) == [1] * 100


async def test_idle_server_tries_whatever_was_measured(batcher: Batcher) -> None:
    await _submit(batcher, _sleeper(0.2))[0]
    await asyncio.sleep(0.05)  # the thread has counted its run
    batcher.check_room("m", 0.1, 10)
    (future,) = _submit(batcher, lambda _: "quick", seconds=0.1)
    assert await future == "quick"


async def test_guess_counts_until_a_run_was_measured(batcher: Batcher) -> None:
    gate, _ = await _enter(batcher)
    deadline = time.monotonic() + 5
    futures = batcher.submit("new", [lambda _: 1], deadline, 1000, guess_seconds=2.0)
    futures += batcher.submit("new", [lambda _: 1], deadline, 1000, guess_seconds=2.0)
    with pytest.raises(Overloaded, match="are left; try again later"):
        batcher.submit("new", [lambda _: 1], deadline, 1000, guess_seconds=2.0)
    with pytest.raises(Overloaded):
        batcher.check_room("new", 5.0, 1000)
    gate.open()
    assert await asyncio.gather(*futures) == [1, 1]


async def test_high_priority_goes_first(batcher: Batcher) -> None:
    gate, _ = await _enter(batcher)
    order: list[str] = []
    deadline = time.monotonic() + 30
    normal = batcher.submit("m", [lambda _: order.append("normal")], deadline, 10)
    high = batcher.submit("m", [lambda _: order.append("high")], deadline, 10, priority=Priority.HIGH)
    gate.open()
    await asyncio.gather(*normal, *high)
    assert order == ["high", "normal"]


async def test_normal_work_does_not_take_the_room_of_high_work(batcher: Batcher) -> None:
    gate, _ = await _enter(batcher)
    futures = batcher.submit("m", [lambda _: 1] * 3, time.monotonic() + 30, 10, guess_seconds=5.0)
    with pytest.raises(Overloaded):
        batcher.check_room("m", 10.0, 10)
    batcher.check_room("m", 10.0, 10, Priority.HIGH)
    gate.open()
    await asyncio.gather(*futures)
