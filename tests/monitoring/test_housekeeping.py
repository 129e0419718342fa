"""What one process of a machine does for all: real threads, real SQLite; the tasks' time is an argument."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import FeedbackUnavailable
from app.monitoring.housekeeping import Housekeeper, Sweeper, Task
from app.storage.counts import BinCounts, CountsStore, RequestCounts
from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackRow, FeedbackStore
from tests.running import ROOT

HOUR_MS = 3_600_000
NOW_MS = 1_800_000_000_000 // HOUR_MS * HOUR_MS
PATIENCE_SECONDS = 30


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(None, tmp_path) as database:
        yield database


def _feedback(number: int, hours_ago: float) -> FeedbackRow:
    at = NOW_MS - round(hours_ago * HOUR_MS)
    return FeedbackRow(number.to_bytes(10, "big"), "m", "1.0.0", "stable", at - 1000, at, (0,), 0.5, actual=0)


def test_what_is_old_is_merged_and_deleted(database: Database) -> None:
    FeedbackStore(database).add([_feedback(0, 23), _feedback(1, 25), _feedback(2, 500)])
    counts = CountsStore(database)
    for hours_ago in (0.1, 5, 25, 500):
        for minutes in (0, 1):
            at = NOW_MS - round(hours_ago * HOUR_MS) + minutes * 60_000
            requests = [RequestCounts("m", "1.0.0", "stable", at, 3, 1, (2, *[0] * 15))]
            counts.write("w", requests, [BinCounts("m", "1.0.0", at, {"brightness": (1, 2)})])
    sweeper = Sweeper(database, keep_days=1)
    sweeper.look(NOW_MS)
    sweeper.look(NOW_MS)
    assert FeedbackStore(database).summary().count == 1
    day = NOW_MS - 24 * HOUR_MS
    assert [found.answered for found in counts.requests("m", day, NOW_MS + 1)] == [12]
    steps = counts.bins("m", "1.0.0", day, NOW_MS + HOUR_MS, 60_000)
    assert [step.bins["brightness"] for step in steps] == [(2, 4), (1, 2), (1, 2)]  # an hour, and two minutes
    assert counts.bins("m", "1.0.0", 0, day) == []


def test_one_of_two_does_it_and_the_other_goes_on(database: Database, tmp_path: Path) -> None:
    FeedbackStore(database).add([_feedback(0, 1)])
    done: queue.Queue[str] = queue.Queue()
    first, second = (
        Housekeeper(database, [Task("work", lambda _, name=name: done.put(name), 0)], tmp_path) for name in "ab"
    )
    first.start()
    assert done.get(timeout=PATIENCE_SECONDS) == "a"
    second.start()
    try:
        assert not second._is_my_turn()
    finally:
        first.close()
        second.close()


def test_a_task_that_fails_is_told_once_and_spoils_no_other(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    FeedbackStore(database).add([_feedback(0, 1)])
    done: queue.Queue[int] = queue.Queue()

    def fail(_: int) -> None:
        raise FeedbackUnavailable("the database is gone")

    keeper = Housekeeper(database, [Task("this", fail, 0), Task("that", done.put, 0)], None)
    with caplog.at_level(logging.ERROR):
        keeper._run(keeper._tasks[0])
        keeper._run(keeper._tasks[0])
        keeper.start()
        assert done.get(timeout=PATIENCE_SECONDS) > NOW_MS / 2
        keeper.close()
    assert caplog.messages == ["this failed: the database is gone"]


def test_no_database_is_made_by_looking(tmp_path: Path) -> None:
    """A server without feedback touches no file, and does not load what it does not need."""
    code = f"""
import sys
from pathlib import Path
from app.monitoring.housekeeping import Housekeeper, Sweeper, Task
from app.storage.database import open_database
database = open_database(None, Path({str(tmp_path / "data")!r}))
keeper = Housekeeper(database, [Task("sweeping", Sweeper(database, 30).look, 1)], None)
keeper.start()
keeper.close()
print("sqlalchemy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    assert not (tmp_path / "data").exists()
