"""Merging on both databases: whoever writes, reads or merges meanwhile, no sum over hours changes."""

from __future__ import annotations

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from app.storage.counts import BinCounts, CountsStore, RequestCounts
from app.storage.database import Database
from app.storage.sums import HOUR_MS, MINUTE_MS
from app.storage.tables import bin_counts, request_counts
from tests.running import PATIENCE_SECONDS
from tests.storage.conftest import Place

_START = 1_700_000_000_000 // HOUR_MS * HOUR_MS
_HOURS = 3
_END = _START + _HOURS * HOUR_MS
_VERSIONS = ("1.0.0", "2.0.0")


@pytest.fixture
def counts(database: Database) -> CountsStore:
    return CountsStore(database)


def _rows(database: Database) -> list[tuple[int, int]]:
    """How many rows of each span there are, of both tables."""
    with database.reading() as connection:
        return [
            tuple(
                connection.scalar(select(func.count()).where(table.c.span_ms == span)) or 0
                for span in (MINUTE_MS, HOUR_MS)
            )
            for table in (request_counts, bin_counts)
        ]  # type: ignore[misc]


def _empty(database: Database) -> None:
    with database.writing() as connection:
        for table in (request_counts, bin_counts):
            connection.execute(table.delete())


def _sums(counts: CountsStore) -> dict[tuple[object, ...], list[int]]:
    """All that is read, by hour."""
    found: dict[tuple[object, ...], list[int]] = {}
    for start_ms in range(_START, _END, HOUR_MS):
        for each in counts.requests("m", start_ms, start_ms + HOUR_MS):
            found[each.version, each.alias, start_ms] = [each.answered, each.failed, *each.durations]
    for version in _VERSIONS:
        for step in counts.bins("m", version, _START, _END, HOUR_MS):
            found |= {(name, version, step.minute_ms): list(values) for name, values in step.bins.items()}
    return found


_number = st.integers(0, 2**40)
_minute = st.integers(0, 60 * _HOURS - 1).map(lambda minute: _START + minute * MINUTE_MS)
_version = st.sampled_from(_VERSIONS)
_request = st.builds(
    RequestCounts,
    st.just("m"), _version, st.sampled_from(["", "canary"]), _minute, _number, _number, st.tuples(_number, _number),
)  # fmt: skip
_features = st.fixed_dictionaries(
    {}, optional={"answer:classes": st.tuples(_number, _number, _number), "size": st.tuples(_number, _number)}
)
_bins = st.builds(BinCounts, st.just("m"), _version, _minute, _features)
_write = st.lists(_request | _bins, max_size=12)
_merge = st.tuples(st.integers(_START, _END + HOUR_MS), st.sampled_from([1, 3, 1000]))


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(_write | _merge, max_size=12))
def test_merging_keeps_every_sum(
    database: Database, steps: list[list[RequestCounts | BinCounts] | tuple[int, int]]
) -> None:
    """Rows of many writers come at random times, also into hours that are merged already."""
    _empty(database)
    counts, writers = CountsStore(database), count()
    wanted: dict[tuple[object, ...], object] = defaultdict(int)
    for step in steps:
        if isinstance(step, tuple):
            counts.merge(*step)
        else:
            for row in step:
                hour = row.minute_ms - row.minute_ms % HOUR_MS
                if isinstance(row, RequestCounts):
                    counts.write(str(next(writers)), [row], [])
                    wanted[row.version, row.alias, hour] += np.array([row.answered, row.failed, *row.durations])
                else:
                    counts.write(str(next(writers)), [], [row])
                    for name, values in row.bins.items():
                        wanted[name, row.version, hour] += np.array(values)
        assert _sums(counts) == {key: np.asarray(values).tolist() for key, values in wanted.items()}
    before = _sums(counts)
    counts.merge(_END, 1000)
    assert _sums(counts) == before
    (request_minutes, request_hours), (bin_minutes, bin_hours) = _rows(database)
    assert (request_minutes, bin_minutes) == (0, 0)
    assert request_hours == sum(key[1] in ("", "canary") for key in before)
    assert bin_hours <= len(_VERSIONS) * _HOURS


def _request_of(minute: int, answered: int) -> RequestCounts:
    return RequestCounts("m", "1.0.0", "", _START + minute * MINUTE_MS, answered, 1, (answered, 0))


def _bins_of(minute: int, *size: int) -> BinCounts:
    return BinCounts("m", "1.0.0", _START + minute * MINUTE_MS, {"size": size})


def test_only_whole_hours_that_ended_before_are_merged(database: Database, counts: CountsStore) -> None:
    counts.write("a", [_request_of(minute, 1) for minute in range(180)], [])
    assert counts.merge(_START + HOUR_MS - 1, limit=1000) == 0
    assert counts.merge(_START + 2 * HOUR_MS - 1, limit=1000) == 60
    assert counts.merge(_START + 2 * HOUR_MS - 1, limit=1000) == 0
    assert _rows(database)[0] == (120, 1)
    assert counts.merge(_START + 2 * HOUR_MS, limit=1000) == 60
    assert _rows(database)[0] == (60, 2)


def test_limit_bounds_what_is_merged(database: Database, counts: CountsStore) -> None:
    counts.write(
        "a", [_request_of(minute, 1) for minute in range(60)], [_bins_of(minute, 1, 0) for minute in range(60)]
    )
    assert [counts.merge(_END, limit=limit) for limit in (0, 1, 50, 30, 1000)] == [0, 1, 50, 30, 39]
    assert _rows(database) == [(0, 1), (0, 1)]
    assert counts.requests("m", 0, 2**62)[0].answered == 60


def test_write_to_an_hour_that_was_merged_adds(database: Database, counts: CountsStore) -> None:
    counts.write("a", [_request_of(0, 5)], [_bins_of(0, 5, 1)])
    counts.merge(_END, limit=1000)
    for _ in range(2):
        counts.write("b", [_request_of(0, 2), _request_of(7, 1)], [_bins_of(0, 2, 0)])
    for _ in range(2):
        assert counts.requests("m", _START, _END)[0].answered == 8
        assert counts.bins("m", "1.0.0", _START, _END)[0].bins == {"size": (7, 1)}
        counts.merge(_END, limit=1000)
    assert _rows(database) == [(0, 1), (0, 1)]


def test_rows_of_another_length_are_merged_apart(database: Database, counts: CountsStore) -> None:
    """And stay left out, as they were."""
    rows = [_bins_of(minute, 1, 2, 0) for minute in range(10)]
    counts.write("a", [], [*rows, _bins_of(20, 9, 9), _bins_of(21, 9, 9)])
    for limit in (5, 1000, 0):
        assert counts.bins("m", "1.0.0", _START, _END)[0].bins == {"size": (10, 20, 0)}
        counts.merge(_END, limit)
    assert _rows(database)[1] == (0, 2)
    counts.write("b", [], [_bins_of(30, 1, 0, 0), _bins_of(31, 7, 7)])
    counts.write("c", [], [_bins_of(30, 1, 0, 0)])
    counts.merge(_END, limit=1000)
    with database.reading() as connection:
        kept = sorted(connection.scalars(select(bin_counts.c.counts)))
    assert kept == ['{"size":[12,20,0]}', '{"size":[25,25]}']


_WRITE = f"""
from app.storage.counts import BinCounts, CountsStore, RequestCounts
counts = CountsStore(database)
writer = sys.stdin.readline().strip()
counts.merge(1, 1)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(60):
    minutes = [{_START} + minute * 60_000 for minute in range(turn % 3, 180, 45)]
    counts.write(
        f"{{writer}} {{turn}}",
        [RequestCounts("m", "1.0.0", "", minute_ms, 3, 1, (2, 1)) for minute_ms in minutes],
        [BinCounts("m", "1.0.0", minute_ms, {{"size": (1, 2, 0)}}) for minute_ms in minutes],
    )
"""

_MERGE = f"""
from app.storage.counts import CountsStore
counts = CountsStore(database)
sys.stdin.readline()
counts.merge(1, 1)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(60):
    counts.merge({_END}, 37)
"""


def test_mergers_writers_and_readers_at_once(place: Place) -> None:
    """Two processes write into hours that two others merge: nothing is lost or doubled, at no time."""
    with place.open(wait_seconds=30) as database:
        database.upgrade()
        counts = CountsStore(database)
        processes = [place.start(program) for program in (_WRITE, _WRITE, _MERGE, _MERGE)]
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
        seen = [0]
        while any(process.poll() is None for process in processes):
            seen.append(sum(step.bins["size"][0] for step in counts.bins("m", "1.0.0", _START, _END)))
        assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0, 0, 0]
        assert seen == sorted(seen)
        counts.merge(_END, limit=100_000)
        rows = 2 * 60 * 4
        assert max(seen) <= rows
        (found,) = counts.requests("m", _START, _END)
        assert (found.answered, found.failed, found.durations) == (3 * rows, rows, (2 * rows, rows))
        assert counts.bins("m", "1.0.0", _START, _END)[0].bins == {"size": (rows, 2 * rows, 0)}
        assert _rows(database) == [(0, _HOURS), (0, _HOURS)]
        for process in processes:
            process.communicate()


def test_threads_that_merge_at_once(database: Database, counts: CountsStore) -> None:
    generator = random.Random(2)
    rows = [_request_of(generator.randrange(180), generator.randrange(100)) for _ in range(400)]
    for number, row in enumerate(rows):
        counts.write(str(number), [row], [])
    with ThreadPoolExecutor(4) as threads:
        merged = list(threads.map(lambda _: counts.merge(_END, limit=1000), range(4)))
    assert sum(merged) + counts.merge(_END, limit=1000) == 400
    assert counts.requests("m", _START, _END)[0].answered == sum(row.answered for row in rows)
    assert _rows(database)[0] == (0, _HOURS)


_DIE = f"""
from app.storage.count_merge import merge_oldest
from app.storage.tables import request_counts
with database.writing() as connection:
    print(merge_oldest(request_counts, {_END}, connection, 1000), flush=True)
    sys.stdin.readline()
"""


def test_merger_that_is_killed_has_merged_nothing(place: Place) -> None:
    with place.open() as database:
        database.upgrade()
        counts = CountsStore(database)
        counts.write("a", [_request_of(minute, 1) for minute in range(60)], [])
        with place.start(_DIE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "60\n"
            assert counts.requests("m", _START, _END)[0].answered == 60
            process.kill()
        assert _rows(database)[0] == (60, 0)
        assert counts.merge(_END, limit=1000) == 60
        assert counts.requests("m", _START, _END)[0] == replace(_request_of(0, 60), failed=60)
