from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.server.slots import DrainFlag, Phase, Slots


def test_slot_is_taken_and_freed() -> None:
    slots = Slots(2)
    assert slots.list_free() == list(range(slots.total))
    slots.claim(0, age=7)
    assert 0 not in slots.list_free()
    assert slots.get_age(0) == 7
    slots.release(0)
    assert 0 in slots.list_free()


def test_there_is_room_for_a_reload() -> None:
    assert Slots(3).total >= 6


def _slots(loads: list[int]) -> Slots:
    slots = Slots(len(loads))
    for slot, load in enumerate(loads):
        slots.claim(slot, age=1)
        slots.publish_load(slot, load)
    return slots


@pytest.mark.parametrize(
    ("loads", "waiting", "shares"),
    [
        ([2, 1, 1], 1, [0, 1, 1]),
        ([0, 0], 8, [4, 4]),
        ([0, 0], 9, [5, 5]),
        ([10, 0, 3], 2, [0, 2, 0]),
        ([10, 0, 3], 5, [0, 4, 1]),
        ([10, 0, 3], 17, [0, 10, 7]),
        ([7], 3, [3]),
    ],
)
def test_share_of_what_waits(loads: list[int], waiting: int, shares: list[int]) -> None:
    slots = _slots(loads)
    assert [slots.share(slot, waiting) for slot in range(len(loads))] == shares
    assert slots.count_connections() == loads


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_shares_leave_no_worker_behind(loads: list[int], waiting: int) -> None:
    """Whoever comes first takes its share; those who have none wait only for others who have."""
    slots = _slots(loads)
    left = waiting
    while left:
        shares = [slots.share(slot, left) for slot in range(len(loads))]
        slot = max(range(len(loads)), key=lambda number: shares[number])
        assert shares[slot]
        slots.publish_load(slot, slots.count_connections()[slot] + shares[slot])
        left -= shares[slot]
    after = slots.count_connections()
    took = [now for now, before in zip(after, loads, strict=True) if now > before]
    assert max(took) <= min(after) + 1
    assert sum(after) == sum(loads) + waiting


def test_nobody_waits_for_the_dead_or_the_leaving() -> None:
    slots = _slots([5, 0, 1])
    slots.release(1)
    slots.withdraw(2)
    assert slots.share(0, 1) == 1
    assert not slots.is_accepting(1)
    assert not slots.is_accepting(2)


def test_a_starting_worker_is_not_waited_for() -> None:
    slots = Slots(2)
    slots.publish_load(0, 5)
    slots.claim(1, age=2)
    assert slots.share(0, 1) == 1


def test_phase_only_rises() -> None:
    slots = Slots(1)
    flag = DrainFlag(slots)
    assert not flag.is_set()
    slots.advance(Phase.LEAVING)
    slots.advance(Phase.DRAINING)
    assert slots.phase == Phase.LEAVING
    assert flag.is_set()


def test_what_a_child_writes_is_seen() -> None:
    slots = Slots(1)
    pid = os.fork()
    if pid == 0:
        slots.publish_load(0, 3)
        slots.report("the directory ü is not there")
        os._exit(0)
    os.waitpid(pid, 0)
    assert slots.count_connections() == [3]
    assert slots.read_report() == "the directory ü is not there"


def test_long_report_is_cut() -> None:
    slots = Slots(1)
    slots.report("x" * 10_000)
    assert 1000 < len(slots.read_report()) < 5000
