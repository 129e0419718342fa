from __future__ import annotations

import os

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


def test_only_the_least_loaded_is_so() -> None:
    slots = Slots(3)
    for slot, load in enumerate([2, 1, 1]):
        slots.claim(slot, age=1)
        slots.publish_load(slot, load)
    assert [slots.is_least_loaded(slot) for slot in range(3)] == [False, True, True]
    assert slots.count_connections() == [2, 1, 1]


def test_nobody_waits_for_the_dead_or_the_leaving() -> None:
    slots = Slots(3)
    for slot, load in enumerate([5, 0, 1]):
        slots.claim(slot, age=1)
        slots.publish_load(slot, load)
    slots.release(1)
    slots.withdraw(2)
    assert slots.is_least_loaded(0)
    assert not slots.is_accepting(1)
    assert not slots.is_accepting(2)


def test_a_starting_worker_is_not_waited_for() -> None:
    slots = Slots(2)
    slots.publish_load(0, 5)
    slots.claim(1, age=2)
    assert slots.is_least_loaded(0)


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
