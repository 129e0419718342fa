"""Leases on both databases: one of many has it, and it ends by itself where its holder does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.storage.database import Database
from app.storage.leases import Leases
from tests.running import PATIENCE_SECONDS
from tests.storage.conftest import Place

_NOW = 1_700_000_000_000


@pytest.fixture
def leases(database: Database) -> Leases:
    return Leases(database)


def test_lease_is_one_holder_s_until_it_runs_out(leases: Leases) -> None:
    assert leases.take("judge", "a", _NOW, seconds=10)
    assert not leases.take("judge", "b", _NOW)
    assert not leases.take("judge", "b", _NOW + 9_999)
    assert leases.take("judge", "b", _NOW + 10_000)
    assert not leases.take("judge", "a", _NOW + 10_001)


def test_lease_is_renewed_by_its_holder(leases: Leases) -> None:
    assert leases.take("judge", "a", _NOW, seconds=10)
    assert leases.take("judge", "a", _NOW + 9_000, seconds=10)
    assert not leases.take("judge", "b", _NOW + 18_999)
    assert leases.take("judge", "b", _NOW + 19_000)


def test_lease_that_ran_out_is_its_holder_s_again_if_nobody_took_it(leases: Leases) -> None:
    assert leases.take("judge", "a", _NOW)
    assert leases.take("judge", "a", _NOW + 3_600_000)
    assert not leases.take("judge", "b", _NOW + 3_600_001)


def test_lease_is_given_back_by_its_holder_alone(leases: Leases) -> None:
    leases.give_back("judge", "a")
    assert leases.take("judge", "a", _NOW)
    leases.give_back("judge", "b")
    assert not leases.take("judge", "b", _NOW + 1)
    leases.give_back("judge", "a")
    assert leases.take("judge", "b", _NOW + 1)


def test_leases_of_other_names_are_others(leases: Leases) -> None:
    assert leases.take("judge", "a", _NOW)
    assert leases.take("merge", "b", _NOW)
    leases.give_back("merge", "b")
    assert not leases.take("judge", "b", _NOW)


def test_one_of_eight_threads_has_it(leases: Leases) -> None:
    start = threading.Barrier(8)

    def ask(number: int) -> list[bool]:
        found = []
        for turn in range(10):
            start.wait(PATIENCE_SECONDS)
            # Free at first, and run out at each later turn.
            found.append(leases.take("judge", f"{turn} {number}", _NOW + turn * 30_000))
        return found

    with ThreadPoolExecutor(8) as threads:
        turns = list(zip(*threads.map(ask, range(8)), strict=True))
    assert [turn.count(True) for turn in turns] == [1] * 10


_RACE = """
from app.storage.leases import Leases
leases = Leases(database)
holder = sys.stdin.readline()
leases.give_back("nothing", holder)
print("ready", flush=True)
sys.stdin.readline()
print(*[int(leases.take(f"{number}", holder, 1)) for number in range(100)])
"""


def test_one_of_many_processes_has_it(place: Place) -> None:
    with place.open() as database:
        database.upgrade()
    processes = [place.start(_RACE) for _ in range(4)]
    for number, process in enumerate(processes):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=PATIENCE_SECONDS)[0].split() for process in processes]
    assert [turn.count("1") for turn in zip(*answers, strict=True)] == [1] * 100


_HOLD = f"""
from app.storage.leases import Leases
print(Leases(database).take("judge", "killed", {_NOW}, seconds=10), flush=True)
with database.writing() as connection:
    connection.exec_driver_sql("UPDATE leases SET holder = 'half'")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_lease_of_a_killed_process_runs_out(place: Place) -> None:
    """Killed while it holds one, and also in the middle of a change."""
    with place.open() as database:
        database.upgrade()
        with place.start(_HOLD) as process:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == ["True\n", "writing\n"]
            process.kill()
        leases = Leases(database)
        assert not leases.take("judge", "other", _NOW + 9_999)
        assert not leases.take("judge", "half", _NOW + 9_999)
        assert leases.take("judge", "other", _NOW + 10_000)
