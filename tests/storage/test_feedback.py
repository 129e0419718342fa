"""Feedback on both databases: what a double is, what is read back, what outlasts a kill."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from app.errors import InvalidContent
from app.storage.database import Database
from app.storage.feedback import FeedbackRow, FeedbackStore, Group, Outcome
from app.storage.queries import newest
from app.storage.rows import COLUMNS, FeedbackColumns
from tests.running import PATIENCE_SECONDS
from tests.storage.conftest import Place, make_row

RECORDED, REPEATED, DOUBLE = Outcome.RECORDED, Outcome.REPEATED, Outcome.DOUBLE


def test_first_feedback_stays(store: FeedbackStore) -> None:
    row = make_row(1, actual=7, rating=4)
    assert store.add([row]) == [RECORDED]
    assert store.add([make_row(1, actual=7, rating=4, received_ms=99)]) == [REPEATED]
    assert store.add([make_row(1, actual=8, rating=4)]) == [DOUBLE]
    assert store.add([make_row(1, actual=7, rating=5)]) == [DOUBLE]
    assert store.add([make_row(1, actual=7)]) == [DOUBLE]
    (actual,), (rating,), (received,) = _read(store, "actual", "rating", "received_ms")
    assert (actual, rating, received) == (7, 4, 1)


def test_rating_is_not_added_later(store: FeedbackStore) -> None:
    assert store.add([make_row(1, actual=7), make_row(2, actual=None, rating=3)]) == [RECORDED, RECORDED]
    assert store.add([make_row(1, actual=7, rating=4), make_row(2, actual=5, rating=3)]) == [DOUBLE, DOUBLE]


def test_values_are_compared_exactly(store: FeedbackStore) -> None:
    value = 0.1 + 0.2
    row = make_row(1, top=(), confidence=None, actual=None, predicted_value=0.3, actual_value=value)
    assert store.add([row]) == [RECORDED]
    assert store.add([row]) == [REPEATED]
    assert store.add([make_row(1, actual=None, actual_value=0.3)]) == [DOUBLE]
    assert _read(store, "actual_value", "predicted_value") == [[value], [0.3]]


def test_doubles_within_one_call(store: FeedbackStore) -> None:
    store.add([make_row(9, actual=1)])
    row = make_row(1, actual=7)
    rows = [
        row,
        make_row(2),
        make_row(1, actual=8),
        row,
        make_row(9, actual=1),
        make_row(9, actual=2),
        make_row(1, actual=8),
    ]
    assert store.add(rows) == [RECORDED, RECORDED, DOUBLE, REPEATED, REPEATED, DOUBLE, DOUBLE]
    assert store.add([]) == []


def test_many_rows_in_one_call(store: FeedbackStore) -> None:
    """More than a statement takes parameters."""
    rows = [make_row(number) for number in range(4000)]
    random.Random(1).shuffle(rows)
    assert set(store.add(rows[:2000])) == {RECORDED}
    outcomes = store.add(rows)
    assert (outcomes.count(REPEATED), outcomes.count(RECORDED)) == (2000, 2000)
    assert outcomes[:2000] == [REPEATED] * 2000
    assert len(store.newest("m")) == 4000


def test_all_columns_come_back(store: FeedbackStore) -> None:
    full = make_row(5, alias="canary", predicted_ms=2**53 + 1, top=(4, 2**32 - 1, 0, 9, 1), confidence=0.1, rating=5)
    bare = FeedbackRow(bytes(10), "m", "2.0.0-rc.1", None, 0, 4)
    value = make_row(3, top=(), confidence=None, actual=None, predicted_value=-1e300, actual_value=5e-324)
    store.add([bare, full, value])
    columns = store.newest("m")
    assert len(columns) == 3
    assert (columns.versions, columns.aliases) == (["1.0.0", "2.0.0-rc.1", "1.0.0"], ["canary", None, "stable"])
    assert columns.top.tolist() == [[4, 2**32 - 1, 0, 9, 1], [-1] * 5, [-1] * 5]
    assert columns.predicted.tolist() == [4, -1, -1]
    assert columns.actual.tolist() == [3, -1, -1]
    assert columns.rating.tolist() == [5, 0, 0]
    assert columns.predicted_ms.tolist() == [2**53 + 1, 0, 1]
    assert columns.received_ms.tolist() == [5, 4, 3]
    np.testing.assert_array_equal(columns.confidence, [0.1, np.nan, np.nan])
    np.testing.assert_array_equal(columns.predicted_value, [np.nan, np.nan, -1e300])
    np.testing.assert_array_equal(columns.actual_value, [np.nan, np.nan, 5e-324])
    dtypes = {columns.top.dtype, columns.actual.dtype, columns.rating.dtype, columns.received_ms.dtype}
    assert dtypes == {np.dtype(np.int64)}


def test_nothing_read_has_the_same_shape(store: FeedbackStore) -> None:
    columns = store.newest("nothing")
    assert (len(columns), columns.top.shape, columns.predicted.shape) == (0, (0, 5), (0,))
    assert columns.actual.dtype == np.int64
    assert columns.confidence.dtype == np.float64


def test_numbers_of_numpy_are_kept_as_numbers(store: FeedbackStore) -> None:
    row = make_row(1, actual=np.int64(7), top=tuple(np.array([7, 8])), confidence=np.float32(0.5), rating=np.int8(2))
    assert store.add([row]) == [RECORDED]
    assert store.add([make_row(1, actual=7, rating=2)]) == [REPEATED]
    assert store.newest("m").top[0].tolist() == [7, 8, -1, -1, -1]


def test_reading_by_model_version_alias_and_time(store: FeedbackStore) -> None:
    """Against the same choice made in Python, over random rows."""
    generator = random.Random(7)
    rows = [
        make_row(
            number,
            model=generator.choice(["m", "other"]),
            version=generator.choice(["1.0.0", "1.1.0"]),
            alias=generator.choice(["stable", "canary", None]),
            received_ms=number * 3 % 1000,
        )
        for number in range(1000)
    ]
    store.add(rows)
    for version in (None, "1.0.0", "1.1.0", "9.0.0"):
        for alias in (None, "canary"):
            wanted = [
                row.received_ms
                for row in sorted(rows, key=lambda row: -row.received_ms)
                if row.model == "m" and version in (None, row.version) and alias in (None, row.alias)
            ]
            assert store.newest("m", version, alias).received_ms.tolist() == wanted
            assert store.newest("m", version, alias, limit=10).received_ms.tolist() == wanted[:10]
            between = [at for at in wanted if 100 <= at < 700]
            assert store.since("m", 100, 700, version, alias).received_ms.tolist() == between
            assert store.since("m", 100, 700, version, alias, limit=5).received_ms.tolist() == between[:5]
    counted = [
        Group(version, alias, len(found), max(found))
        for version in ("1.0.0", "1.1.0")
        for alias in ("canary", "stable", None)
        if (found := [row.received_ms for row in rows if (row.model, row.version, row.alias) == ("m", version, alias)])
    ]
    assert sorted(store.groups("m"), key=repr) == sorted(counted, key=repr)
    assert store.groups("nothing") == []


def test_tally_of_labelled_answers(store: FeedbackStore) -> None:
    """Against the same sums made in Python; classes begin with the digits of others."""
    generator = random.Random(11)
    classes = [1, 3, 31, 313, 2**40]
    rows = [
        make_row(
            number,
            model=generator.choice(["m", "m", "other"]),
            version=generator.choice(["1.0.0", "1.1.0"]),
            alias=generator.choice(["stable", "canary", None]),
            predicted_ms=(predicted_ms := generator.randrange(10**7, 2 * 10**7)),
            # A clock that is behind is no reason to leave one out.
            received_ms=predicted_ms + generator.randrange(-3_000_000, 10**8),
            top=tuple(generator.sample(classes, generator.randrange(4))),
            actual=generator.choice([*classes, None]),
        )
        for number in range(800)
    ]
    store.add(rows)
    for since_ms in (0, 15_000_000, 10**9):
        wanted: dict[tuple[str, str], tuple[int, int]] = {}
        for row in rows:
            if row.model == "m" and row.predicted_ms >= since_ms and row.top and row.actual is not None:
                count, wrong = wanted.get(key := (row.version, row.alias or ""), (0, 0))
                wanted[key] = (count + 1, wrong + (row.top[0] != row.actual))
        assert store.tally("m", since_ms) == wanted
        assert len(wanted) == (0 if since_ms == 10**9 else 6)


def test_more_rows_than_are_read_at_one_time(store: FeedbackStore) -> None:
    store.add([make_row(number, version=f"1.{number % 3}.0") for number in range(10_500)])
    columns = store.since("m", 0, 2**63 - 1)
    assert columns.received_ms.tolist() == list(range(10_499, -1, -1))
    assert columns.versions[:3] == ["1.2.0", "1.1.0", "1.0.0"]
    assert columns.top.shape == (10_500, 5)


def test_deletion_takes_the_oldest(store: FeedbackStore) -> None:
    store.add([make_row(number) for number in range(1200)])
    assert store.delete_before(1000, limit=100) == 100
    assert store.newest("m", limit=2000).received_ms.min() == 100
    assert store.delete_before(1000, limit=10_000) == 900
    assert store.delete_before(1000, limit=10_000) == 0
    assert store.newest("m").received_ms.tolist() == list(range(1199, 999, -1))
    summary = store.summary()
    assert (summary.count, summary.oldest_ms, summary.newest_ms) == (200, 1000, 1199)


def test_feedback_after_its_deletion_is_new(store: FeedbackStore) -> None:
    store.add([make_row(1)])
    store.delete_before(2, limit=1)
    assert store.summary().count == 0
    assert store.summary().oldest_ms is None
    assert store.add([make_row(1, actual=5)]) == [RECORDED]


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": b"short"},
        {"top": (1, 2, 3, 4, 5, 6)},
        {"top": (-1,)},
        {"actual": -1},
        {"actual": 2**63},
        {"received_ms": 2**63},
        {"confidence": float("nan")},
        {"actual_value": float("inf")},
        {"rating": 0},
        {"rating": 6},
    ],
)
def test_row_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidContent):
        make_row(1, **changes)


def test_what_no_column_can_hold(store: FeedbackStore) -> None:
    """Refused as content, not as a failure of the database, and nothing of the call is kept."""
    with pytest.raises(InvalidContent):
        store.add([make_row(1), make_row(2, model="\ud800")])
    with pytest.raises(InvalidContent):
        store.since("m", -(2**70), 2**70)
    assert store.add([make_row(1)]) == [RECORDED]
    assert len(store.newest("m")) == 1


def test_columns_of_any_top_length() -> None:
    generator = random.Random(3)
    tops = [[generator.randrange(1000) for _ in range(generator.randrange(6))] for _ in range(500)]
    rows = [("1", None, 0, 0, json.dumps(top) if top else None, None, None, None, None, None) for top in tops]
    wanted = [top + [-1] * (5 - len(top)) for top in tops]
    assert FeedbackColumns.from_rows(rows).top.tolist() == wanted


def test_sqlite_reads_the_newest_from_an_index(sqlite_place: Place) -> None:
    """None of them sorts, or looks at rows of others."""
    with sqlite_place.open() as database:
        for version, alias, index in (
            (None, None, "feedback_by_model (model=?)"),
            ("1.0.0", None, "feedback_by_version (model=? AND version=?)"),
            ("1.0.0", "canary", "feedback_by_alias (model=? AND version=? AND alias=?)"),
        ):
            plan = _explain(database, version, alias)
            assert index in plan
            assert "B-TREE" not in plan


def _explain(database: Database, version: str | None, alias: str | None) -> str:
    with database.reading() as connection:
        statement = newest(COLUMNS, "m", version, alias, None, 10)
        compiled = statement.compile(connection, compile_kwargs={"literal_binds": True})
        return " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}"))


def _read(store: FeedbackStore, *names: str) -> list[list[Any]]:
    columns = store.newest("m")
    return [getattr(columns, name).tolist() for name in names]


def test_threads_share_one_store(store: FeedbackStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda number: store.add([make_row(number % 40)])[0], range(120)))
    assert (outcomes.count(RECORDED), outcomes.count(REPEATED)) == (40, 80)


_RACE = """
number = int(sys.stdin.readline())
store.groups("m")
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, 300, 3):
    group = [row(one, rating=number) for one in range(start, start + 3)]
    outcomes = store.add(group if number % 2 else group[::-1])
    print(*[outcome.value for outcome in (outcomes if number % 2 else outcomes[::-1])], flush=True)
"""


def test_processes_that_race_record_one(place: Place) -> None:
    with place.open() as database:
        database.upgrade()
    processes = [place.start(_RACE) for _ in range(3)]
    for number, process in enumerate(processes, 1):
        assert process.stdin is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outcomes = [process.communicate("go\n", PATIENCE_SECONDS)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    for found in zip(*outcomes, strict=True):
        assert sorted(found) == ["double", "double", "recorded"]
    assert len(outcomes[0]) == 300


_ADD = """
first = int(sys.stdin.readline())
for number in range(first, first + 100_000):
    assert store.add([row(number, actual=number)]) == [Outcome.RECORDED]
    print(number, flush=True)
"""


def test_killed_process_loses_nothing_it_acknowledged(place: Place) -> None:
    with place.open() as database:
        database.upgrade()
    acknowledged: list[int] = []
    for first, enough in ((0, 1), (100_000, 20), (200_000, 57)):
        with place.start(_ADD) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{first}\n")
            process.stdin.flush()
            acknowledged += [int(process.stdout.readline()) for _ in range(enough)]
            process.kill()
            # It may have said more until the signal came.
            acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    with place.open() as database:
        kept = set(FeedbackStore(database).newest("m", limit=100_000).actual.tolist())
    assert set(acknowledged) <= kept
    assert len(kept) <= len(acknowledged) + 3
