"""The queue: bounded, nothing computed that nobody waits for, no caller harmed by another."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.engine.batcher import Batcher
from app.engine.lane import Executor, Priority, Work
from app.errors import DeadlineExceeded, Overloaded
from tests.engine.executors import PATIENCE_SECONDS, Endless, Functions, Gate, sleeper, spinner

pytestmark = pytest.mark.anyio


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    """One thread."""
    batcher = Batcher(1)
    yield batcher
    batcher.close()


@pytest.fixture
def m() -> Functions:
    """A model."""
    return Functions()


def _submit(
    batcher: Batcher,
    executor: Executor,
    *functions: Callable[[float], Any],
    seconds: float = PATIENCE_SECONDS,
    priority: Priority = Priority.NORMAL,
    signature: Any = None,
) -> list[asyncio.Future[Any]]:
    works = [Work(function, signature=signature) for function in functions]
    return batcher.submit(executor, works, time.monotonic() + seconds, priority)


async def _enter(batcher: Batcher) -> tuple[Gate, asyncio.Future[Any]]:
    """Make the only thread busy."""
    gate = Gate()
    (future,) = _submit(batcher, Functions("gate"), gate)
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    return gate, future


async def test_submit_gives_each_its_result(batcher: Batcher, m: Functions) -> None:
    futures = _submit(batcher, m, *[lambda _, number=number: number * 2 for number in range(50)])
    assert await asyncio.gather(*futures) == [number * 2 for number in range(50)]


async def test_work_is_told_how_long_it_waited(batcher: Batcher, m: Functions) -> None:
    gate, _ = await _enter(batcher)
    (future,) = _submit(batcher, m, lambda waited: waited)
    await asyncio.sleep(0.05)
    gate.open()
    assert 0.05 <= await future < PATIENCE_SECONDS


async def test_submit_over_the_limit_is_overloaded(batcher: Batcher) -> None:
    """The limit is of calls, however many works each has."""
    m, other = Functions(queue_limit=3), Functions("other", queue_limit=1)
    gate, first = await _enter(batcher)
    waiting = _submit(batcher, m, *[lambda _: 1] * 10)
    waiting += _submit(batcher, m, lambda _: 2)
    waiting += _submit(batcher, m, lambda _: 3)
    with pytest.raises(Overloaded, match="3 requests already wait for 'm'; try again later"):
        _submit(batcher, m, lambda _: 4)
    # Another model has a limit of its own.
    (elsewhere,) = _submit(batcher, other, lambda _: "other")
    gate.open()
    assert await asyncio.gather(first, *waiting, elsewhere) == ["gate", *[1] * 10, 2, 3, "other"]
    (again,) = _submit(batcher, m, lambda _: 5)
    assert await again == 5


async def test_work_whose_deadline_passed_in_the_queue_is_not_computed(batcher: Batcher, m: Functions) -> None:
    computed: list[str] = []
    gate, _ = await _enter(batcher)
    (late,) = _submit(batcher, m, lambda _: computed.append("late"), seconds=0.05)
    (good,) = _submit(batcher, m, lambda _: computed.append("good"))
    with pytest.raises(DeadlineExceeded, match="before the deadline"):
        await late
    gate.open()
    await good
    assert computed == ["good"]


async def test_deadline_passes_while_the_work_runs(batcher: Batcher, m: Functions) -> None:
    gate = Gate()
    (future,) = _submit(batcher, m, gate, seconds=0.05)
    with pytest.raises(DeadlineExceeded):
        await future
    gate.open()
    (after,) = _submit(batcher, m, lambda _: "after")
    assert await after == "after"


async def test_cancelled_work_is_not_computed(batcher: Batcher, m: Functions) -> None:
    computed: list[str] = []
    gate, _ = await _enter(batcher)
    left, stayed = _submit(batcher, m, lambda _: computed.append("left"), lambda _: computed.append("stayed"))
    left.cancel()
    gate.open()
    await stayed
    assert computed == ["stayed"]


async def test_cancelled_while_it_runs_harms_nobody(batcher: Batcher, m: Functions) -> None:
    gate, future = await _enter(batcher)
    (neighbour,) = _submit(batcher, m, lambda _: "neighbour")
    future.cancel()
    gate.open()
    assert await neighbour == "neighbour"


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError("k"), SystemExit(3), MemoryError()])
async def test_exception_in_one_does_not_harm_others(batcher: Batcher, m: Functions, error: BaseException) -> None:
    def fail(_: float) -> None:
        raise error

    futures = _submit(batcher, m, lambda _: 1, fail, lambda _: 2)
    one, failed, two = await asyncio.gather(*futures, return_exceptions=True)
    assert (one, failed, two) == (1, error, 2)


async def test_executor_that_raises_is_told_to_its_callers(batcher: Batcher, m: Functions) -> None:
    class Broken(Functions):
        def run(self, *_: Any) -> list[Any]:
            raise ZeroDivisionError("a bug")

    futures = _submit(batcher, Broken("broken"), lambda _: 1, lambda _: 2)
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 2
    assert await _submit(batcher, m, lambda _: "after")[0] == "after"


async def test_stop_iteration_reaches_its_caller(batcher: Batcher, m: Functions) -> None:
    """No future takes it, and the caller would wait until the deadline."""
    (future,) = _submit(batcher, m, lambda _: next(iter(())))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await future


async def test_first_in_first_out(batcher: Batcher, m: Functions) -> None:
    order: list[int] = []
    gate, _ = await _enter(batcher)
    futures = [_submit(batcher, m, lambda _, n=n: order.append(n))[0] for n in range(30)]
    gate.open()
    await asyncio.gather(*futures)
    assert order == list(range(30))


async def test_threads_run_side_by_side(m: Functions) -> None:
    batcher, barrier = Batcher(3), threading.Barrier(3)
    futures = _submit(batcher, m, *[lambda _: barrier.wait(PATIENCE_SECONDS)] * 3)
    assert sorted(await asyncio.gather(*futures)) == [0, 1, 2]
    batcher.close()


async def test_model_runs_no_more_often_at_once_than_it_may() -> None:
    batcher, m, other = Batcher(3), Functions(max_runs=1), Functions("other")
    gate = Gate()
    futures = _submit(batcher, m, gate, lambda _: "second")
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    # Two threads are free, and serve whoever else comes.
    assert await _submit(batcher, other, lambda _: "other")[0] == "other"
    assert len(m.runs) == 1
    gate.open()
    assert await asyncio.gather(*futures) == ["gate", "second"]
    batcher.close()


async def test_close_runs_what_waits(m: Functions) -> None:
    batcher = Batcher(1)
    gate, first = await _enter(batcher)
    futures = _submit(batcher, m, lambda _: 1, lambda _: 2)
    gate.open()
    batcher.close()
    assert await asyncio.gather(first, *futures) == ["gate", 1, 2]


def test_close_of_an_idle_batcher_ends_its_threads() -> None:
    before = threading.active_count()
    batcher = Batcher(4)
    assert threading.active_count() == before + 5  # and the watchdog
    batcher.close()
    assert threading.active_count() == before


def test_answer_after_the_event_loop_has_ended_is_dropped(caplog: pytest.LogCaptureFixture, m: Functions) -> None:
    batcher, gate = Batcher(1), Gate()

    async def leave() -> None:
        _submit(batcher, m, gate)
        await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)

    caplog.set_level("INFO")
    asyncio.run(leave())
    gate.open()
    batcher.close()
    assert "came after the event loop had ended" in caplog.text


async def test_works_of_one_signature_share_a_run(batcher: Batcher) -> None:
    m = Functions(max_rows=4)
    gate, _ = await _enter(batcher)
    futures = [_submit(batcher, m, lambda _, n=n: n, signature="s")[0] for n in range(10)]
    gate.open()
    assert await asyncio.gather(*futures) == list(range(10))
    assert [len(run) for run in m.runs] == [4, 4, 2]


async def test_works_of_several_signatures_never_share_a_run(batcher: Batcher) -> None:
    m = Functions(max_rows=8)
    gate, _ = await _enter(batcher)
    choice = random.Random(3)
    signatures = [choice.choice(["a", "b", None]) for _ in range(60)]
    futures = [_submit(batcher, m, lambda _, n=n: n, signature=kind)[0] for n, kind in enumerate(signatures)]
    gate.open()
    assert await asyncio.gather(*futures) == list(range(60))
    assert all(len(set(run)) == 1 for run in m.runs)
    assert all(run == [None] for run in m.runs if None in run)
    assert [kind for run in m.runs for kind in run] == signatures


async def test_rows_of_a_shared_run_are_limited(batcher: Batcher) -> None:
    m = Functions(max_rows=5)
    gate, _ = await _enter(batcher)
    deadline = time.monotonic() + PATIENCE_SECONDS
    for rows in (3, 2, 4, 2, 5, 1):
        batcher.submit(m, [Work(lambda _: None, rows, "s")], deadline)
    gate.open()
    await _submit(batcher, m, lambda _: None, signature="last")[0]
    assert [len(run) for run in m.runs] == [2, 1, 1, 1, 1, 1]


async def test_idle_thread_waits_for_others_only_where_told_to(batcher: Batcher) -> None:
    m = Functions(max_rows=3, max_wait_seconds=PATIENCE_SECONDS)
    futures = [_submit(batcher, m, lambda _, n=n: n, signature="s")[0] for n in range(2)]
    await asyncio.sleep(0.05)
    assert m.runs == []
    futures += _submit(batcher, m, lambda _: 2, signature="s")
    assert await asyncio.gather(*futures) == [0, 1, 2]
    assert m.runs == [["s"] * 3]
    soon = Functions("soon", max_rows=100, max_wait_seconds=0.05)
    assert await _submit(batcher, soon, lambda _: "alone", signature="s")[0] == "alone"


async def test_left_and_late_works_take_no_place_in_a_shared_run(batcher: Batcher) -> None:
    m = Functions(max_rows=3)
    gate, _ = await _enter(batcher)
    futures = [_submit(batcher, m, lambda _, n=n: n, signature="s")[0] for n in range(6)]
    for left in (0, 2, 5):
        futures[left].cancel()
    gate.open()
    assert await asyncio.gather(*[futures[n] for n in (1, 3, 4)]) == [1, 3, 4]
    assert m.runs == [["s"] * 3]


async def test_what_cannot_meet_its_deadline_is_refused_at_once(batcher: Batcher) -> None:
    """With works of 50 ms a thread does six within 300 ms, and has one in hand: about five find room, not twenty."""
    m = Functions(guess_seconds=0.05)
    gate, _ = await _enter(batcher)
    admitted: list[asyncio.Future[Any]] = []
    refusals: list[Overloaded] = []
    for _ in range(20):
        try:
            admitted += _submit(batcher, m, lambda _: None, seconds=0.3)
        except Overloaded as exc:
            refusals.append(exc)
    assert 2 <= len(admitted) <= 6
    assert all(refusal.retry_after_seconds >= 1 for refusal in refusals)
    assert "try again later" in str(refusals[0])
    gate.open()
    await asyncio.gather(*admitted, return_exceptions=True)


async def test_run_is_counted_before_its_caller_knows_of_it(batcher: Batcher, m: Functions) -> None:
    """Else the next request of the same caller would find no estimate."""
    for _ in range(20):
        await _submit(batcher, m, sleeper(0.01))[0]
        gate, first = await _enter(batcher)
        waiting = _submit(batcher, m, *[lambda _: 1] * 10)
        with pytest.raises(Overloaded):
            batcher.check_room(m, 0.02)
        gate.open()
        await asyncio.gather(first, *waiting)
        batcher.forget(m)


async def test_burst_into_an_idle_server_is_let_in(batcher: Batcher) -> None:
    """One slow run, then quick ones: an estimate of the past must not refuse what there is room for."""
    m = Functions(queue_limit=1000)
    await _submit(batcher, m, sleeper(0.05))[0]
    futures = [_submit(batcher, m, lambda _: 1)[0] for _ in range(100)]
    assert await asyncio.gather(*futures) == [1] * 100


async def test_burst_of_a_thousand_is_not_all_let_in(batcher: Batcher) -> None:
    m = Functions(queue_limit=10_000, guess_seconds=0.05)
    gate, _ = await _enter(batcher)
    admitted: list[asyncio.Future[Any]] = []
    for _ in range(1000):
        with contextlib.suppress(Overloaded):
            admitted += _submit(batcher, m, lambda _: 1, seconds=10)
    assert 100 <= len(admitted) <= 250
    gate.open()
    await asyncio.gather(*admitted)


async def test_idle_server_tries_whatever_was_measured(batcher: Batcher) -> None:
    m = Functions(guess_seconds=100.0)
    batcher.check_room(m, 0.1)
    assert await _submit(batcher, m, lambda _: "quick", seconds=PATIENCE_SECONDS)[0] == "quick"


async def test_guess_counts_until_a_run_was_measured(batcher: Batcher) -> None:
    m = Functions(guess_seconds=2.0)
    gate, _ = await _enter(batcher)
    futures = _submit(batcher, m, lambda _: 1, seconds=5) + _submit(batcher, m, lambda _: 1, seconds=5)
    with pytest.raises(Overloaded, match="are left; try again later"):
        _submit(batcher, m, lambda _: 1, seconds=5)
    with pytest.raises(Overloaded):
        batcher.check_room(m, 5.0)
    gate.open()
    assert await asyncio.gather(*futures) == [1, 1]


async def test_high_priority_goes_first(batcher: Batcher, m: Functions) -> None:
    gate, _ = await _enter(batcher)
    order: list[str] = []
    normal = _submit(batcher, m, lambda _: order.append("normal"))
    other = _submit(batcher, Functions("other"), lambda _: order.append("other"), priority=Priority.HIGH)
    high = _submit(batcher, m, lambda _: order.append("high"), priority=Priority.HIGH)
    gate.open()
    await asyncio.gather(*normal, *other, *high)
    assert order[2] == "normal"


async def test_normal_work_does_not_take_the_room_of_high_work(batcher: Batcher) -> None:
    m = Functions(guess_seconds=5.0)
    gate, _ = await _enter(batcher)
    futures = _submit(batcher, m, *[lambda _: 1] * 3, seconds=30)
    with pytest.raises(Overloaded):
        batcher.check_room(m, 10.0)
    batcher.check_room(m, 10.0, Priority.HIGH)
    gate.open()
    await asyncio.gather(*futures)


async def test_long_queue_of_one_model_does_not_starve_another(batcher: Batcher) -> None:
    """Each gets the same time: of a quick model many works for one of a slow one."""
    slow, quick = Functions("slow"), Functions("quick")
    order: list[str] = []
    gate, _ = await _enter(batcher)

    def note(name: str, seconds: float) -> Callable[[float], None]:
        def run(_: float) -> None:
            time.sleep(seconds)
            order.append(name)

        return run

    futures = _submit(batcher, slow, *[note("slow", 0.05)] * 10)
    futures += _submit(batcher, quick, *[note("quick", 0.002)] * 20)
    gate.open()
    await asyncio.gather(*futures)
    last_quick = len(order) - order[::-1].index("quick")
    assert order[last_quick:].count("slow") >= 2


async def test_long_queue_of_another_model_refuses_nobody_whose_turn_comes_soon(batcher: Batcher) -> None:
    slow, quick = Functions("slow", guess_seconds=1.0), Functions("quick", guess_seconds=0.01)
    gate, _ = await _enter(batcher)
    futures = _submit(batcher, slow, *[lambda _: 1] * 50, seconds=100)
    futures += _submit(batcher, quick, lambda _: 1, seconds=1)
    with pytest.raises(Overloaded):
        batcher.check_room(slow, 1)
    gate.open()
    await asyncio.gather(*futures)


async def test_model_that_was_away_claims_no_time_of_the_past(batcher: Batcher) -> None:
    busy, late = Functions("busy"), Functions("late")
    for _ in range(5):
        await _submit(batcher, busy, sleeper(0.02))[0]
    gate, _ = await _enter(batcher)
    order: list[str] = []

    def note(name: str) -> Callable[[float], None]:
        def run(_: float) -> None:
            time.sleep(0.01)
            order.append(name)

        return run

    futures = _submit(batcher, busy, *[note("busy")] * 4) + _submit(batcher, late, *[note("late")] * 8)
    gate.open()
    await asyncio.gather(*futures)
    assert "busy" in order[:6]


async def test_run_that_nobody_waits_for_is_ended(batcher: Batcher, m: Functions) -> None:
    endless = Endless(max_run_seconds=PATIENCE_SECONDS)
    (future,) = _submit(batcher, endless, lambda _: None, seconds=0.1)
    with pytest.raises(DeadlineExceeded):
        await future
    assert await _submit(batcher, m, lambda _: "next")[0] == "next"
    assert endless.cancellations[0].is_cancelled


async def test_shared_run_goes_on_for_who_still_waits(batcher: Batcher) -> None:
    endless = Endless(max_run_seconds=PATIENCE_SECONDS, max_rows=2)
    gate, _ = await _enter(batcher)
    (leaver,) = _submit(batcher, endless, lambda _: None, signature="s")
    (stayer,) = _submit(batcher, endless, lambda _: None, signature="s")
    gate.open()
    await asyncio.to_thread(endless.gate.entered.wait, PATIENCE_SECONDS)
    leaver.cancel()
    await asyncio.sleep(0.3)
    assert not endless.cancellations[0].is_cancelled
    endless.gate.open()
    with pytest.raises(RuntimeError, match="ended"):
        await stayer


async def test_run_beyond_its_limit_is_ended_and_its_caller_told(batcher: Batcher, m: Functions) -> None:
    (future,) = _submit(batcher, Endless(), lambda _: None)
    with pytest.raises(DeadlineExceeded, match=r"the model did not answer within 0\.2 s"):
        await future
    assert await _submit(batcher, m, lambda _: "next")[0] == "next"


async def test_run_that_cannot_be_ended_holds_nobody_up_and_is_reported() -> None:
    stuck: list[str] = []
    batcher, endless, m = Batcher(1, on_stuck=stuck.append), Endless(is_deaf=True), Functions()
    (future,) = _submit(batcher, endless, lambda _: None)
    (neighbour,) = _submit(batcher, m, lambda _: "neighbour")
    with pytest.raises(DeadlineExceeded):
        await future
    assert await neighbour == "neighbour"
    for _ in range(200):
        await asyncio.sleep(0.05)
        if stuck:
            break
    assert stuck == ["endless"]
    endless.gate.open()
    batcher.close()


async def test_thread_that_hangs_is_not_counted_on(batcher: Batcher, m: Functions) -> None:
    """Who comes while the only thread hangs is refused, not kept waiting until its deadline."""
    gate, future = await _enter(batcher)
    batcher.check_room(m, 0.5)
    await asyncio.sleep(1.1)
    with pytest.raises(Overloaded):
        batcher.check_room(m, 0.5)
    gate.open()
    await future


async def test_quick_work_is_run_here(batcher: Batcher) -> None:
    m = Functions(guess_seconds=1e-5)
    work = Work(lambda _: threading.current_thread())
    assert batcher.can_run_here(m, [work])
    assert batcher.run_here(m, work, time.monotonic() + 1) is threading.current_thread()
    late = batcher.run_here(m, work, time.monotonic() - 1)
    assert isinstance(late, DeadlineExceeded)
    assert len(m.runs) == 1


async def test_work_is_not_run_here_where_that_would_take_long(batcher: Batcher) -> None:
    one = Work(lambda _: None)
    assert not batcher.can_run_here(Functions(guess_seconds=0.01), [one])
    assert not batcher.can_run_here(Functions(), [one])  # unknown
    assert not batcher.can_run_here(Functions(guess_seconds=1e-5, is_steady=False), [one])
    m = Functions(guess_seconds=1e-5)
    assert batcher.can_run_here(m, [one])
    assert not batcher.can_run_here(m, [one, one])
    assert not batcher.can_run_here(m, [Work(lambda _: None, rows=1000)])
    batcher.run_here(m, Work(spinner(0.11)), time.monotonic() + 1)
    assert not batcher.can_run_here(m, [one])


async def test_what_threads_measured_decides_too(batcher: Batcher) -> None:
    quick, busy, waiting = Functions(), Functions("busy"), Functions("waiting")
    for executor, function in ((quick, lambda _: None), (busy, spinner(0.01)), (waiting, sleeper(0.01))):
        for _ in range(5):
            await _submit(batcher, executor, function)[0]
    assert batcher.can_run_here(quick, [Work(lambda _: None)])
    assert not batcher.can_run_here(busy, [Work(lambda _: None)])
    assert not batcher.can_run_here(waiting, [Work(lambda _: None)])


async def test_work_is_not_run_here_before_those_that_wait(batcher: Batcher) -> None:
    m = Functions(guess_seconds=1e-5)
    gate, _ = await _enter(batcher)
    (waiting,) = _submit(batcher, m, lambda _: "first")
    assert not batcher.can_run_here(m, [Work(lambda _: "second")])
    gate.open()
    assert await waiting == "first"
    assert batcher.can_run_here(m, [Work(lambda _: "second")])


async def test_run_here_that_does_not_end_is_ended(batcher: Batcher) -> None:
    endless = Endless(guess_seconds=1e-5, max_run_seconds=PATIENCE_SECONDS)
    work = Work(lambda _: None)
    assert batcher.can_run_here(endless, [work])
    assert batcher.run_here(endless, work, time.monotonic() + PATIENCE_SECONDS) is None
    assert not batcher.can_run_here(endless, [work])


async def test_what_is_forgotten_while_it_runs_or_waits_is_finished(batcher: Batcher) -> None:
    m = Functions(guess_seconds=1e-5)
    assert batcher.can_run_here(m, [Work(lambda _: None)])
    assert batcher.run_here(m, Work(lambda _: batcher.forget(m) or "here"), time.monotonic() + 1) == "here"
    gate, _ = await _enter(batcher)
    (waiting,) = _submit(batcher, m, lambda _: "there")
    batcher.forget(m)
    gate.open()
    assert await waiting == "there"
