"""Databases that the release of revision 0001 made, each with three rows of feedback, as it was dumped then."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from app.errors import FeedbackUnavailable
from app.storage.counts import BinCounts, CountedVersion, CountsStore
from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackRow, FeedbackStore, Outcome
from app.storage.leases import Leases
from app.storage.schema import MIGRATIONS, Schema
from app.storage.sqlite import FILE_NAME
from tests.fixtures_postgresql import BINARIES
from tests.storage.conftest import Place, make_row

_HERE = Path(__file__).parent
# What was kept, and a second feedback on it.
_FIRST = FeedbackRow(
    (1).to_bytes(10), "digits", "1.0.0", "stable", 1_700_000_000_000, 1_700_000_060_000, (3, 8, 9), 0.75, 3, rating=5
)


@pytest.fixture
def old_place(place: Place) -> Place:
    """Holds the database of the release before."""
    if place.url is None:
        place.data_dir.mkdir()
        with closing(sqlite3.connect(place.data_dir / FILE_NAME)) as connection:
            connection.executescript((_HERE / "r0001_sqlite.sql").read_text())
    else:
        script = _HERE / "r0001_postgresql.sql"
        command = [str(BINARIES / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-f", str(script), place.url]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return place


def _open_old(place: Place, tmp_path: Path) -> Database:
    """As a server of the release before does."""
    directory = tmp_path / "migrations"
    directory.mkdir(exist_ok=True)
    shutil.copy(MIGRATIONS / "r0001_feedback.py", directory)
    return open_database(place.url, place.data_dir, migrations=directory)


def test_first_release_is_upgraded_with_its_rows(old_place: Place) -> None:
    with old_place.open() as database:
        store, counts = FeedbackStore(database), CountsStore(database)
        with pytest.raises(FeedbackUnavailable, match=r"is 0001, and this Headway needs .*; run: headway db upgrade"):
            counts.write("a", [], [BinCounts("digits", "1.0.0", 0, {"size": (1, 0)})])
        assert database.upgrade() == "0001"
        digits, wine = store.newest("digits"), store.newest("wine")
        assert (digits.versions, digits.aliases) == (["1.1.0", "1.0.0"], ["canary", "stable"])
        assert digits.top.tolist() == [[7, 1, -1, -1, -1], [3, 8, 9, -1, -1]]
        assert (digits.actual.tolist(), digits.rating.tolist()) == ([1, 3], [0, 5])
        assert (wine.versions, wine.aliases) == (["2.0.0-rc.1"], [None])
        assert (wine.predicted_value.tolist(), wine.actual_value.tolist()) == ([0.1], [0.1 + 0.2])
        assert store.add([_FIRST, make_row(9)]) == [Outcome.REPEATED, Outcome.RECORDED]
        assert store.tally("digits", 0) == {("1.0.0", "stable"): (1, 0), ("1.1.0", "canary"): (1, 1)}
        counts.write("a", [], [BinCounts("digits", "1.0.0", 0, {"size": (1, 0)})])
        assert counts.bin_versions("digits") == [CountedVersion("1.0.0", 0, 0)]
        assert Leases(database).take("judge", "a", 0)
        assert database.upgrade() == Schema().head


def test_server_of_the_release_before_goes_on(old_place: Place, tmp_path: Path) -> None:
    with _open_old(old_place, tmp_path) as old, old_place.open() as new:
        store = FeedbackStore(old)
        assert store.add([make_row(1, model="digits")]) == [Outcome.DOUBLE]
        assert new.upgrade() == "0001"
        assert store.add([_FIRST, make_row(7), make_row(8)]) == [Outcome.REPEATED] + [Outcome.RECORDED] * 2
        assert len(store.newest("digits")) == 2
        assert [group.version for group in store.groups("m")] == ["1.0.0"]
        assert store.delete_before(8, limit=10) == 1
        assert FeedbackStore(new).add([make_row(8)]) == [Outcome.REPEATED]
    # Started anew it cannot know what has changed.
    with _open_old(old_place, tmp_path) as old, pytest.raises(FeedbackUnavailable, match="made by a newer one"):
        FeedbackStore(old).add([make_row(9)])
