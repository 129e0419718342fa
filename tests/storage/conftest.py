"""Each test that takes `database` or `place` runs on SQLite in a file and on a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackRow, FeedbackStore
from tests.fixtures_postgresql import Postgresql
from tests.fixtures_postgresql import postgresql as postgresql
from tests.running import ROOT

# Begins the programs that tests run in processes of their own; arguments: URL or "", data directory.
OPEN = """
import sys
from pathlib import Path
from app.storage.database import open_database
from app.storage.feedback import FeedbackRow, FeedbackStore, Outcome
database = open_database(sys.argv[1] or None, Path(sys.argv[2]), wait_seconds=30)
store = FeedbackStore(database)

def row(number, **changes):
    named = {"nonce": number.to_bytes(10), "model": "m", "version": "1.0.0", "alias": None, "predicted_ms": 1}
    return FeedbackRow(**named | {"received_ms": 2} | changes)

"""


@dataclass(frozen=True)
class Place:
    """Where a database is, empty at first."""

    url: str | None
    data_dir: Path

    def open(self, wait_seconds: float = 5.0) -> Database:
        return open_database(self.url, self.data_dir, wait_seconds=wait_seconds)

    def start(self, program: str) -> subprocess.Popen[str]:
        """Run OPEN and `program` in another process."""
        return subprocess.Popen(
            [sys.executable, "-c", OPEN + program, self.url or "", str(self.data_dir)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def make_row(number: int = 0, /, **changes: object) -> FeedbackRow:
    """Feedback on prediction `number` of version 1.0.0 of model m, received at `number`."""
    named: dict[str, object] = {"nonce": number.to_bytes(10), "model": "m", "version": "1.0.0", "alias": "stable"}
    named |= {"predicted_ms": 1, "received_ms": number, "top": (3, 1, 2), "confidence": 0.5, "actual": 3}
    return FeedbackRow(**named | changes)  # type: ignore[arg-type]


@pytest.fixture
def sqlite_place(tmp_path: Path) -> Place:
    return Place(None, tmp_path / "data")


@pytest.fixture
def postgresql_place(postgresql: Postgresql, tmp_path: Path) -> Place:
    return Place(postgresql.new_url(), tmp_path / "data")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def database(place: Place) -> Iterator[Database]:
    """With its tables."""
    with place.open() as database:
        database.upgrade()
        yield database


@pytest.fixture
def store(database: Database) -> FeedbackStore:
    return FeedbackStore(database)
