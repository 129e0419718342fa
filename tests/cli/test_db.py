"""`headway db …` on SQLite in the data directory and on a real PostgreSQL."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from app.storage.database import open_database
from app.storage.feedback import FeedbackRow, FeedbackStore
from app.storage.schema import Schema
from tests.cli.conftest import Headway
from tests.fixtures_postgresql import PASSWORD, Postgresql
from tests.fixtures_postgresql import postgresql as postgresql
from tests.running import ROOT

HEAD = Schema().head


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings that name an empty database."""
    place = {"HEADWAY_DATA_DIR": str(tmp_path / "data")}
    if request.param == "postgresql":
        place["HEADWAY_DATABASE_URL"] = request.getfixturevalue("postgresql").new_url()
    return place


def _status(headway: Headway, place: dict[str, str]) -> dict[str, Any]:
    done = headway("db", "status", "--json", **place)
    assert (done.code, done.err) == (0, "")
    assert PASSWORD not in done.out
    shown: dict[str, Any] = json.loads(done.out)
    return shown


def test_upgrade_and_status(headway: Headway, place: dict[str, str]) -> None:
    shown = _status(headway, place)
    assert (shown["revision"], shown["rows"]) == (None, None)
    assert shown["fault"] == "it has no tables of Headway; run: headway db upgrade"
    done = headway("db", "upgrade", **place)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(f": the schema is {HEAD}, it was empty\n")
    assert PASSWORD not in done.out
    assert json.loads(headway("db", "upgrade", "--json", **place).out)["before"] == HEAD
    with open_database(place.get("HEADWAY_DATABASE_URL"), Path(place["HEADWAY_DATA_DIR"])) as database:
        times = (1_700_000_000_000, 1_700_000_060_999)
        FeedbackStore(database).add([FeedbackRow(at.to_bytes(10), "m", "1.0.0", None, at, at) for at in times])
    shown = _status(headway, place)
    assert (shown["revision"], shown["fault"], shown["rows"]) == (HEAD, None, 2)
    assert (shown["oldest"], shown["newest"]) == ("2023-11-14T22:13:20+00:00", "2023-11-14T22:14:20+00:00")
    table = headway("db", "status", **place).out
    assert re.search(r"^rows +2 *$", table, re.MULTILINE)
    assert ("postgres:***@127.0.0.1" in table) == ("HEADWAY_DATABASE_URL" in place)


def test_status_leaves_no_file(headway: Headway, tmp_path: Path) -> None:
    assert "run: headway db upgrade" in headway("db", "status", HEADWAY_DATA_DIR=str(tmp_path / "data")).out
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["status", "upgrade"])
def test_server_that_is_not_there(headway: Headway, command: str) -> None:
    done = headway("db", command, HEADWAY_DATABASE_URL=f"postgresql://ann:{PASSWORD}@127.0.0.1:1/headway")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: postgresql://ann:***@127.0.0.1:1/headway cannot be used (")
    assert done.err.endswith("); check HEADWAY_DATABASE_URL and that the server runs\n")


def test_commands_of_the_guide_work(headway: Headway, postgresql: Postgresql) -> None:
    guide = (ROOT / "docs/guides/database.md").read_text(encoding="utf-8")
    commands = re.findall(r"^headway (db .*)$", guide, re.MULTILINE)
    assert len(commands) >= 2
    url = postgresql.new_url()
    for command in commands:
        done = headway(*shlex.split(command), HEADWAY_DATABASE_URL=url)
        assert (done.code, done.err) == (0, ""), command
