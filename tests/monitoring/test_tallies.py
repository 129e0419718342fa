"""Counts of one process on their way to a real SQLite database; time is an argument."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.metrics import DURATION_BUCKETS
from app.monitoring.tallies import MINUTE_MS, Tallies
from app.storage.counts import CountsStore, RequestCounts
from app.storage.database import Database, open_database

START_MS = 1_800_000_000_000 // MINUTE_MS * MINUTE_MS
SLOTS = len(DURATION_BUCKETS) + 1


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(None, tmp_path / "data") as database:
        yield database


def _minute(store: CountsStore, number: int) -> list[RequestCounts]:
    since = START_MS + number * MINUTE_MS
    return sorted(store.requests("m", since, since + MINUTE_MS), key=lambda found: found.alias)


def test_each_minute_has_its_own(database: Database) -> None:
    store = CountsStore(database)
    tallies = Tallies(store, "this")
    for second, seconds in ((1, 0.0004), (11, 0.0005), (21, 0.00051), (59, 99.0), (61, 0.3), (62, None)):
        tallies.count_request("m", "1.0.0", "stable", seconds)
        tallies.count_request("m", "2.0.0", None, 0.1)
        tallies.write(START_MS + second * 1000)
    direct, stable = _minute(store, 0)
    assert (direct.version, direct.alias, direct.answered, direct.failed) == ("2.0.0", "", 4, 0)
    assert (stable.version, stable.answered, stable.failed) == ("1.0.0", 4, 0)
    assert stable.durations == (2, 1, *[0] * (SLOTS - 3), 1)
    later = _minute(store, 1)[1]
    assert (later.answered, later.failed, sum(later.durations)) == (2, 1, 1)


def test_bins_add_up_over_writes_and_processes(database: Database) -> None:
    store = CountsStore(database)
    for writer in ("this", "that"):
        tallies = Tallies(store, writer)
        for second in (5, 15, 25):
            tallies.add_bins("m", "1.0.0", {"x": np.array([1, 2, 0])})
            tallies.add_bins("m", "1.0.0", {"x": np.array([0, 1, 0]), "y": np.array([4, 0])})
            tallies.write(START_MS + second * 1000)
        tallies.write(START_MS + 30_000)  # nothing is new
    (found,) = store.bins("m", "1.0.0", START_MS, START_MS + MINUTE_MS)
    assert found.bins == {"x": (6, 18, 0), "y": (24, 0)}


def test_a_clock_that_is_set_back_takes_nothing_away(database: Database) -> None:
    store = CountsStore(database)
    tallies = Tallies(store, "this")
    for minute in (0, 1, 2, 0, 1):
        for _ in range(3 if minute == 2 else 2):
            tallies.count_request("m", "1.0.0", "stable", 0.1)
        tallies.write(START_MS + minute * MINUTE_MS)
    assert [_minute(store, minute)[0].answered for minute in range(3)] == [4, 4, 3]


def test_what_the_database_did_not_take_comes_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "data"
    folder.write_text("a file where the folder should be")
    with open_database(None, folder) as database, caplog.at_level(logging.ERROR):
        store = CountsStore(database)
        tallies = Tallies(store, "this")
        for minute in range(3):
            tallies.count_request("m", "1.0.0", "stable", 0.1)
            tallies.write(START_MS + minute * MINUTE_MS)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("counts cannot be kept: ")
        folder.unlink()
        tallies.count_request("m", "1.0.0", "stable", 0.1)
        tallies.write(START_MS + 2 * MINUTE_MS + 30_000)
        assert [_minute(store, minute)[0].answered for minute in range(3)] == [1, 1, 2]
        shutil.rmtree(folder)
        database.close()
        tallies.write(START_MS + 3 * MINUTE_MS)  # nothing is new, so nothing is written
        assert not folder.exists()


def test_an_hour_is_kept_at_most(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.write_text("a file where the folder should be")
    with open_database(None, folder) as database:
        store = CountsStore(database)
        tallies = Tallies(store, "this")
        for minute in range(100):
            tallies.count_request("m", "1.0.0", "stable", 0.1)
            tallies.write(START_MS + minute * MINUTE_MS)
        folder.unlink()
        tallies.write(START_MS + 99 * MINUTE_MS)
        (found,) = store.requests("m", START_MS, START_MS + 100 * MINUTE_MS)
        assert found.answered == 61
