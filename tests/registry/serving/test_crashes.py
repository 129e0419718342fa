"""Who is counted for a crash, and when that is enough: by hand, with time as an argument."""

from __future__ import annotations

import random
from fractions import Fraction

from app.registry.serving.crashes import CRASH_LIMIT, WINDOW_SECONDS, CrashTally, InFlight, find_suspects


def running(*labels: str) -> list[InFlight]:
    return [InFlight(label, thread, is_loading=False) for thread, label in enumerate(labels, 1)]


def loading(label: str) -> list[InFlight]:
    """As in a trial run: the load and the run in it are both in flight, in one thread."""
    return [InFlight(label, 1, is_loading=True), InFlight(label, 1, is_loading=False)]


def test_third_crash_is_enough() -> None:
    tally = CrashTally()
    assert [tally.record(running("a@1"), now) for now in (0.0, 1.0, 2.0)] == [None, None, "a@1"]


def test_crash_with_nothing_in_flight_counts_for_nobody() -> None:
    tally = CrashTally()
    assert [tally.record([], float(now)) for now in range(10)] == [None] * 10


def test_crashes_of_two_models_in_turn_are_counted_apart() -> None:
    tally = CrashTally()
    found = [tally.record(running(label), float(now)) for now, label in enumerate(("a@1", "b@1") * 3)]
    assert found == [None] * 4 + ["a@1", "b@1"]


def test_versions_of_one_model_are_counted_apart() -> None:
    tally = CrashTally()
    assert [tally.record(running(label), 0.0) for label in ("a@1", "a@2", "a@1", "a@2")] == [None] * 4


def test_crash_expires_after_the_window() -> None:
    tally = CrashTally()
    times = (0.0, 1.0, WINDOW_SECONDS, WINDOW_SECONDS + 0.5)
    assert [tally.record(running("a@1"), now) for now in times] == [None, None, None, "a@1"]
    slowly = [float(number) * (WINDOW_SECONDS / 2 + 1) for number in range(20)]
    assert {tally.record(running("b@1"), now) for now in slowly} == {None}


def test_crash_while_loading_never_expires() -> None:
    """The next worker may need an hour to come so far again."""
    tally = CrashTally()
    assert [tally.record(loading("a@1"), hour * 3600.0) for hour in range(3)] == [None, None, "a@1"]


def test_crash_while_loading_beside_a_run_expires() -> None:
    tally = CrashTally()
    found = [tally.record(loading("a@1") + running("b@1"), hour * 3600.0) for hour in range(10)]
    assert set(found) == {None}


def test_several_in_flight_share_a_crash() -> None:
    tally = CrashTally()
    tally.record(running("a@1", "b@1", "b@1", "c@1"), 0.0)
    assert tally.count("a@1") == tally.count("b@1") == tally.count("c@1") == Fraction(1, 3)
    assert tally.count("d@1") == 0


def test_one_in_flight_every_time_is_found_beside_a_busy_neighbour() -> None:
    """The innocent was in flight in all crashes but one."""
    tally = CrashTally()
    tally.record(running("guilty@1"), 0.0)
    found = []
    while not found:
        found = [label for label in [tally.record(running("busy@1", "guilty@1"), 1.0)] if label]
    assert found == ["guilty@1"]
    assert tally.count("busy@1") == 0  # explained


def test_innocents_are_never_ahead_of_the_guilty() -> None:
    chance = random.Random(0)
    for _ in range(200):
        tally, found = CrashTally(), None
        odds = {f"m{number}@1": chance.random() for number in range(5)}
        for number in range(100):
            beside = [label for label, odd in odds.items() if chance.random() < odd]
            found = tally.record(running("a-guilty@1", *beside), float(number))
            if found:
                break
        assert found == "a-guilty@1"


def test_alike_suspects_are_quarantined_one_at_a_time() -> None:
    tally = CrashTally()
    found = [tally.record(running("a@1", "b@1"), 0.0) for _ in range(2 * CRASH_LIMIT)]
    assert found == [None] * (2 * CRASH_LIMIT - 1) + ["a@1"]
    assert [tally.record(running("b@1"), 0.0) for _ in range(CRASH_LIMIT)] == [None, None, "b@1"]


def test_known_thread_clears_the_others() -> None:
    in_flight = running("a@1", "b@1")
    assert find_suspects(in_flight, 2) == running("a@1", "b@1")[1:]
    assert find_suspects(in_flight, 99) == []  # it decoded a photo, say
    assert find_suspects(in_flight, None) == in_flight
