from __future__ import annotations

import pytest

from app.server.respawn import LONGEST_PAUSE_AFTER_SERVING_SECONDS, LONGEST_PAUSE_SECONDS, RespawnPlan


def test_pause_grows_to_its_limit() -> None:
    plan = RespawnPlan()
    pauses = [plan.record_death(0, 0.5, True, 100.0) for _ in range(12)]
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_settled_worker_is_replaced_at_once() -> None:
    plan = RespawnPlan()
    for _ in range(5):
        plan.record_death(0, 0.5, True, 100.0)
    assert plan.record_death(0, 61.0, True, 200.0) == 0.0
    assert plan.record_death(0, 0.5, True, 300.0) == pytest.approx(0.1)


def test_orderly_exit_is_no_failure() -> None:
    assert RespawnPlan().record_death(0, 0.5, False, 100.0) == 0.0


def test_slots_do_not_wait_for_each_other() -> None:
    plan = RespawnPlan()
    for _ in range(8):
        plan.record_death(0, 0.5, True, 100.0)
    plan.record_death(1, 0.5, True, 100.0)
    assert plan.list_due(100.05) == []
    assert plan.list_due(101.0) == [1]
    assert set(plan.list_waiting()) == {0, 1}
    plan.fill(1)
    assert plan.list_waiting() == [0]
    assert plan.list_due(1000.0) == [0]
    plan.forget_waiting()
    assert plan.list_waiting() == []


def test_pause_stays_short_after_a_worker_that_served() -> None:
    plan = RespawnPlan()
    pauses = [plan.record_death(0, 0.5, True, 100.0, has_served=True) for _ in range(12)]
    assert pauses[0] == pytest.approx(0.1)
    assert max(pauses) == LONGEST_PAUSE_AFTER_SERVING_SECONDS
