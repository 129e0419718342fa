"""Counts of requests and bins on both databases: what adds up, what is replaced, and what is left out."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event

from app.errors import InvalidContent
from app.storage.counts import BinCounts, CountedVersion, CountsStore, RequestCounts
from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackStore
from app.storage.leases import Leases
from app.storage.sums import HOUR_MS, MINUTE_MS
from tests.fixtures_postgresql import Postgresql
from tests.running import ROOT
from tests.storage.conftest import Place, make_row

_START = 1_700_000_000_000 // HOUR_MS * HOUR_MS
_ALWAYS = (0, 2**62)


def requests(minute: int = 0, answered: int = 1, **changes: Any) -> RequestCounts:
    """Of that minute of the hour that begins at _START."""
    named: dict[str, Any] = {"model": "m", "version": "1.0.0", "alias": "canary", "failed": 0}
    named |= {"minute_ms": _START + minute * MINUTE_MS, "answered": answered, "durations": (answered, 0)}
    return RequestCounts(**named | changes)


def bins(minute: int = 0, *, version: str = "1.0.0", model: str = "m", **features: tuple[int, ...]) -> BinCounts:
    return BinCounts(model, version, _START + minute * MINUTE_MS, features or {"size": (1, 2, 0)})


@pytest.fixture
def counts(database: Database) -> CountsStore:
    return CountsStore(database)


def test_same_call_twice_changes_nothing(counts: CountsStore) -> None:
    rows = [requests(minute, minute + 1, failed=1) for minute in range(3)]
    for _ in range(2):
        counts.write("a", rows, [bins(0), bins(1)])
    assert counts.requests("m", *_ALWAYS) == [
        RequestCounts("m", "1.0.0", "canary", 0, answered=6, failed=3, durations=(6, 0))
    ]
    assert counts.bins("m", "1.0.0", *_ALWAYS) == [BinCounts("m", "1.0.0", 0, {"size": (2, 4, 0)})]


def test_writer_counts_on_through_its_minute(counts: CountsStore) -> None:
    for answered in (1, 5, 7):
        counts.write("a", [requests(0, answered)], [bins(0, size=(answered, 0))])
    counts.write("a", [requests(1, 2)], [])
    (found,) = counts.requests("m", *_ALWAYS)
    assert (found.answered, found.durations) == (9, (9, 0))
    assert [found.bins for found in counts.bins("m", "1.0.0", *_ALWAYS)] == [{"size": (7, 0)}]


def test_writers_add_up(counts: CountsStore) -> None:
    for writer in ("a", "b", ""):
        counts.write(writer, [requests(0, 4)], [bins(0)])
    assert counts.requests("m", *_ALWAYS)[0].answered == 12
    assert counts.bins("m", "1.0.0", *_ALWAYS)[0].bins == {"size": (3, 6, 0)}


def test_versions_and_aliases_are_counted_apart(counts: CountsStore) -> None:
    rows = [
        requests(alias=alias, version=version, model=model)
        for model in ("m", "other")
        for version in ("2.0.0", "1.0.0")
        for alias in ("stable", "", "canary")
    ]
    counts.write("a", rows, [bins(0), bins(0, version="2.0.0", size=(5, 0, 0)), bins(0, model="other")])
    found = [(each.version, each.alias, each.answered) for each in counts.requests("m", *_ALWAYS)]
    assert found == [(version, alias, 1) for version in ("1.0.0", "2.0.0") for alias in ("", "canary", "stable")]
    assert counts.bins("m", "2.0.0", *_ALWAYS)[0].bins == {"size": (5, 0, 0)}
    assert (counts.requests("nothing", *_ALWAYS), counts.bins("m", "3.0.0", *_ALWAYS)) == ([], [])


def test_first_minute_is_in_and_the_last_is_not(counts: CountsStore) -> None:
    counts.write("a", [requests(minute) for minute in range(5)], [bins(minute) for minute in range(5)])
    since_ms, until_ms = _START + MINUTE_MS, _START + 3 * MINUTE_MS
    (found,) = counts.requests("m", since_ms, until_ms)
    assert (found.answered, found.minute_ms) == (2, since_ms)
    assert counts.bins("m", "1.0.0", since_ms, until_ms) == [BinCounts("m", "1.0.0", since_ms, {"size": (2, 4, 0)})]
    assert counts.bins("m", "1.0.0", until_ms, since_ms) == counts.requests("m", since_ms, since_ms) == []


@pytest.mark.parametrize("step_ms", [MINUTE_MS, 7 * MINUTE_MS, HOUR_MS, 10 * HOUR_MS])
def test_bins_by_step(counts: CountsStore, step_ms: int) -> None:
    """Against the same sums made by numpy, from a time that is no step's start."""
    generator = random.Random(5)
    written = {
        (writer, minute): (generator.randrange(9), generator.randrange(9), generator.randrange(2))
        for writer in "abc"
        for minute in generator.sample(range(300), 40)
    }
    for (writer, minute), row in written.items():
        counts.write(writer, [], [bins(minute, size=row)])
    since_ms, until_ms = _START + 3 * MINUTE_MS + 7, _START + 290 * MINUTE_MS
    wanted: dict[int, Any] = {}
    for (_, minute), row in written.items():
        minute_ms = _START + minute * MINUTE_MS
        if since_ms <= minute_ms < until_ms:
            start_ms = since_ms + (minute_ms - since_ms) // step_ms * step_ms
            wanted[start_ms] = wanted.get(start_ms, 0) + np.array(row)
    found = counts.bins("m", "1.0.0", since_ms, until_ms, step_ms)
    assert [(each.minute_ms, list(each.bins["size"])) for each in found] == [
        (start_ms, row.tolist()) for start_ms, row in sorted(wanted.items())
    ]


def test_features_that_not_all_rows_have(counts: CountsStore) -> None:
    counts.write("a", [], [bins(0, size=(1, 0), hue=(2, 0)), bins(1, size=(3, 1)), bins(2, **{"answer:value": (1, 1)})])
    (found,) = counts.bins("m", "1.0.0", *_ALWAYS)
    assert found.bins == {"size": (4, 1), "hue": (2, 0), "answer:value": (1, 1)}


def test_versions_that_have_bins(counts: CountsStore) -> None:
    minutes = {"1.0.0": (0, 3), "2.0.0": (1, 7, 2), "0.9.0": (3,)}
    rows = [bins(minute, version=version) for version, found in minutes.items() for minute in found]
    counts.write("a", [requests(99)], [*rows, bins(90, model="other")])
    assert counts.bin_versions("m") == [
        CountedVersion("2.0.0", _START + MINUTE_MS, _START + 7 * MINUTE_MS),
        CountedVersion("0.9.0", _START + 3 * MINUTE_MS, _START + 3 * MINUTE_MS),
        CountedVersion("1.0.0", _START, _START + 3 * MINUTE_MS),
    ]
    assert counts.bin_versions("nothing") == []


def test_rows_of_another_length_are_left_out_and_told(counts: CountsStore, caplog: pytest.LogCaptureFixture) -> None:
    usual = [bins(minute, size=(1, 0), kind=(1, 1, 0)) for minute in (0, 1, 3)]
    counts.write("a", [], [*usual, bins(2, size=(9, 9), kind=(9, 9, 9, 9)), bins(2, version="2.0.0", kind=(9, 9))])
    for _ in range(2):
        assert counts.bins("m", "1.0.0", *_ALWAYS) == [BinCounts("m", "1.0.0", 0, {"size": (3, 0), "kind": (3, 3, 0)})]
    steps = counts.bins("m", "1.0.0", _START, _START + HOUR_MS, MINUTE_MS)
    assert [step.minute_ms for step in steps] == [_START + minute * MINUTE_MS for minute in (0, 1, 3)]
    # Once, though they are read again and again.
    assert [record.getMessage() for record in caplog.records] == [
        "counts of m@1.0.0 are left out: some rows have another length than the others"
    ]
    assert counts.bins("m", "2.0.0", *_ALWAYS)[0].bins == {"kind": (9, 9)}


def test_of_two_lengths_the_later_counts_where_both_are_as_many(counts: CountsStore) -> None:
    counts.write("a", [], [bins(0, size=(1, 0, 0)), bins(1, size=(2, 0))])
    assert [found.bins for found in counts.bins("m", "1.0.0", *_ALWAYS)] == [{"size": (2, 0)}]
    counts.write("a", [], [bins(2, size=(1, 0, 0)), bins(3, size=(2, 0)), bins(4, size=(1, 0, 0))])
    assert [found.bins for found in counts.bins("m", "1.0.0", *_ALWAYS)] == [{"size": (3, 0, 0)}]


def test_durations_of_other_buckets_are_left_out(counts: CountsStore, caplog: pytest.LogCaptureFixture) -> None:
    rows = [requests(minute, alias=alias) for minute in range(2) for alias in ("", "canary")]
    counts.write("a", [*rows, requests(5, 7, durations=(7, 0, 0)), requests(5, alias="x", durations=(1,))], [])
    assert [(found.alias, found.answered) for found in counts.requests("m", *_ALWAYS)] == [("", 2), ("canary", 2)]
    assert [record.getMessage() for record in caplog.records] == [
        "counts of m are left out: some rows have another length than the others"
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"size":7}', '{"size":["a"]}', '{"size":[0.5]}', '{"a":[null]}'])
def test_rows_that_cannot_be_read_are_left_out(
    database: Database, counts: CountsStore, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    counts.write("a", [requests(0), requests(1)], [bins(0), bins(1)])
    with database.writing() as connection:
        for table in ("bin_counts", "request_counts"):
            change = f"UPDATE {table} SET counts = '{text}' WHERE minute_ms = {_START}"
            connection.exec_driver_sql(change)
    for _ in range(2):
        assert counts.bins("m", "1.0.0", *_ALWAYS)[0].bins == {"size": (1, 2, 0)}
        assert counts.requests("m", *_ALWAYS)[0].answered == 1
        counts.merge(_START + HOUR_MS, limit=10)
    assert {record.getMessage() for record in caplog.records} == {
        "counts of m@1.0.0 are left out: some rows cannot be read",
        f"counts of m@1.0.0 at {_START} are dropped: they cannot be read",
    }


@pytest.mark.parametrize(
    "row",
    [
        requests(answered=-1),
        requests(failed=2**53 + 1),
        requests(durations=(1, -1)),
        requests(minute_ms=-1),
        requests(model="\ud800"),
        bins(size=(1, -1)),
        bins(size=(2**70,)),
        bins(version="\ud800"),
        BinCounts("m", "1.0.0", 2**70, {}),
    ],
)
def test_what_counts_nothing_is_refused_and_nothing_kept(counts: CountsStore, row: Any) -> None:
    is_request = isinstance(row, RequestCounts)
    with pytest.raises(InvalidContent):
        counts.write("a", [requests(), *[row] * is_request], [bins(), *[row] * (not is_request)])
    assert (counts.requests("m", *_ALWAYS), counts.bin_versions("m")) == ([], [])


def test_numbers_of_numpy_and_names_of_any_kind(counts: CountsStore) -> None:
    name = 'a "b"\0\ud800 é'
    counts.write("'; --", [], [bins(0, **{name: tuple(np.array([1, 2]))}), bins(1, **{name: (2**53, 0)})])
    assert [found.bins for found in counts.bins("m", "1.0.0", *_ALWAYS)] == [{name: (2**53 + 1, 2)}]


def test_nothing_to_write(counts: CountsStore) -> None:
    counts.write("a", [], [])
    counts.write("a", [], [BinCounts("m", "1.0.0", _START, {})])
    assert [found.bins for found in counts.bins("m", "1.0.0", *_ALWAYS)] == [{}]


def test_deletion_takes_minutes_and_hours_that_are_over(counts: CountsStore) -> None:
    rows = [requests(minute) for minute in range(150)], [bins(minute) for minute in range(150)]
    counts.write("a", *rows)
    counts.merge(_START + HOUR_MS, limit=1000)
    # Only a part of the merged hour is over.
    assert counts.delete_before(_START + HOUR_MS - 1, limit=1000) == 0
    assert counts.delete_before(_START + HOUR_MS, limit=1) == 1
    assert counts.delete_before(_START + HOUR_MS, limit=1000) == 1
    assert counts.requests("m", *_ALWAYS)[0].answered == 90
    assert counts.delete_before(_START + 100 * MINUTE_MS, limit=30) == 30
    assert counts.delete_before(_START + 100 * MINUTE_MS, limit=1000) == 50
    assert counts.bin_versions("m")[0].first_ms == _START + 100 * MINUTE_MS
    assert counts.requests("m", *_ALWAYS)[0].answered == 50
    assert counts.delete_before(_START + 100 * MINUTE_MS, limit=0) == 0


def test_more_rows_than_go_in_one_transaction(counts: CountsStore) -> None:
    counts.write("a", [], [bins(minute) for minute in range(1100)])
    assert counts.delete_before(_START + 450 * MINUTE_MS, limit=10_000) == 450
    assert counts.merge(_START + 1080 * MINUTE_MS, limit=10_000) == 630
    assert counts.bins("m", "1.0.0", *_ALWAYS)[0].bins == {"size": (650, 1300, 0)}


@contextmanager
def _statements() -> Iterator[list[tuple[str, Any]]]:
    """What is executed meanwhile, with the parameters of the first execution."""
    found: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:
        found.append((statement, parameters[0] if is_many else parameters))

    event.listen(Engine, "before_cursor_execute", keep)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", keep)


def test_no_statement_looks_at_a_whole_table(database: Database, counts: CountsStore) -> None:
    feedback = FeedbackStore(database)
    counts.write("a", [requests(minute) for minute in range(70)], [bins(minute) for minute in range(70)])
    feedback.add([make_row(number) for number in range(1, 70)])
    with _statements() as executed:
        counts.write("a", [requests(0)], [bins(0)])
        counts.requests("m", *_ALWAYS)
        counts.bins("m", "1.0.0", *_ALWAYS)
        counts.bin_versions("m")
        counts.merge(_START + HOUR_MS, limit=10)
        counts.delete_before(_START + 5 * HOUR_MS, limit=10)
        feedback.tally("m", 10**12)
        leases = Leases(database)
        leases.take("judge", "a", 0)
        leases.give_back("judge", "a")
    looked = {(text, str(values)): (text, values) for text, values in executed if not text.startswith(("BEGIN", "SET"))}
    assert len(looked) > 12
    with database.reading() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        if not is_sqlite:
            # So few rows are read fastest one after the other; is there a way without?
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        for text, values in looked.values():
            explain = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
            plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(explain + text, values))
            assert "SCAN" not in plan, (text, plan)
            assert "Seq Scan" not in plan, (text, plan)
            assert is_sqlite or ("Index Cond" in plan) == ("Scan" in plan), (text, plan)


def test_sqlite_reads_the_latest_feedback_alone(sqlite_place: Place) -> None:
    """A tally walks the index of times, not all of a model's feedback."""
    with sqlite_place.open() as database, _statements() as executed:
        FeedbackStore(database).tally("m", 10**12)
        text, values = executed[-1]
        with database.reading() as connection:
            plan = " ".join(str(row[-1]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values))
    assert "feedback_by_model (model=? AND received_ms>?)" in plan


def test_rights_that_the_guide_names_are_enough(postgresql: Postgresql, postgresql_place: Place) -> None:
    assert postgresql_place.url is not None
    postgresql.run_sql("CREATE ROLE server LOGIN")
    with postgresql_place.open() as owner:
        owner.upgrade()
        with owner.writing() as connection:
            connection.exec_driver_sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO server")
    with open_database(postgresql_place.url.replace("//postgres:", "//server:"), postgresql_place.data_dir) as database:
        counts, feedback, leases = CountsStore(database), FeedbackStore(database), Leases(database)
        for _ in range(2):
            counts.write("a", [requests()], [bins()])
            assert leases.take("judge", "a", 0)
        assert counts.merge(_START + HOUR_MS, limit=10) == 2
        assert counts.delete_before(_START + HOUR_MS, limit=10) == 2
        leases.give_back("judge", "a")
        feedback.add([make_row(1)])
        assert feedback.delete_before(2, limit=1) == 1


def test_sqlalchemy_is_imported_by_the_first_use() -> None:
    program = (
        "import sys, app.storage.counts, app.storage.leases\nassert not {'sqlalchemy', 'alembic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
