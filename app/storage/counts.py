"""Counts that are kept: requests and bins, by version and minute, of all processes; old minutes become hours.

Each process (`writer`) writes its own rows again and again while it counts on, so nobody ever adds to another's row,
and what was written twice counts once. Times are milliseconds since 1970 in UTC.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from app.errors import InvalidContent
from app.storage.database import Database
from app.storage.sums import HOUR_MS, MINUTE_MS, Counts, Sum, add_to, dump_counts, load_counts, usual_lengths

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

Key = TypeVar("Key")

logger = logging.getLogger(__name__)

# Sums of many of them are still numbers that a reader of JSON or a database can hold.
_LARGEST = 2**53
# The features of requests.
_ANSWERED, _DURATIONS = "answered", "durations"
_REQUEST = frozenset((_ANSWERED, _DURATIONS))
_ROWS_AT_ONCE = 200
# So that whoever waits to write gets its turn; SQLite's waiters look again after 1 to 100 ms.
_PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Of one version under one alias.

    `alias` is "" where the caller named it, or a version. `minute_ms` is the start of the minute, or of what was asked
    for. `answered` are the requests that the version answered (2xx) or failed at (its own 5xx), no refusals and no 4xx;
    `failed` are the 5xx of these. `durations` are of the 2xx: how many took up to each of app.metrics.DURATION_BUCKETS
    (not cumulative), and last, how many took longer.
    """

    model: str
    version: str
    alias: str
    minute_ms: int
    answered: int
    failed: int
    durations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BinCounts:
    """Of one version: by feature the counts of its bins and, last, of missing values.

    `minute_ms` is the start of the minute, or of the step that was asked for.
    """

    model: str
    version: str
    minute_ms: int
    bins: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CountedVersion:
    """The first and the last minute that it has bins of; of an hour that is merged, the hour's start."""

    version: str
    first_ms: int
    last_ms: int


class CountsStore:
    """For all threads. Every method may wait for the database; each raises FeedbackUnavailable where that fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # What was told already: the same rows are read again and again.
        self._told: set[tuple[str, ...]] = set()

    def write(self, writer: str, requests: Sequence[RequestCounts], bins: Sequence[BinCounts]) -> None:
        """Keep the rows of this writer's minutes, all or none; one that is there already is replaced.

        So the same call can be made again, as after FeedbackUnavailable, until the hour of a minute is merged: what
        comes after that adds. Raises InvalidContent for times below 0 and for numbers that count nothing.
        """
        if not requests and not bins:
            return
        from app.storage import count_queries
        from app.storage.tables import bin_counts, request_counts

        own = {"span_ms": MINUTE_MS, "writer": writer, "parts": 1}
        request_rows = [_request_row(row) | own for row in requests]
        bin_rows = [_bin_row(row) | own for row in bins]
        with self._database.writing() as connection:
            count_queries.replace(connection, request_counts, request_rows)
            count_queries.replace(connection, bin_counts, bin_rows)

    def requests(self, model: str, since_ms: int, until_ms: int) -> list[RequestCounts]:
        """Sums over writers and minutes with since_ms <= minute_ms < until_ms, one a (version, alias), in this order.

        Their `minute_ms` is `since_ms`. A merged hour is in it where its start is.
        """
        from app.storage import count_queries

        sums: dict[tuple[str, str], list[Sum]] = {}
        with self._database.reading() as connection:
            for version, alias, parts, text in count_queries.select_requests(connection, model, since_ms, until_ms):
                self._add(sums.setdefault((version, alias), []), parts, text, (model, version), _REQUEST)
        return [
            _request_counts(model, version, alias, since_ms, found)
            for (version, alias), found in sorted(self._choose(sums, (model,)).items())
        ]

    def bins(
        self, model: str, version: str, since_ms: int, until_ms: int, step_ms: int | None = None
    ) -> list[BinCounts]:
        """Sums over writers, one for each step that has any (minute_ms = since_ms + k * step_ms), in order.

        None: all of the time is one step. A merged hour is in the step of its start. Rows with a feature whose counts
        have another length than most have it, as bins of another baseline, are left out and told in the log.
        """
        from app.storage import count_queries

        step = max(1, until_ms - since_ms if step_ms is None else step_ms)
        sums: dict[int, list[Sum]] = {}
        with self._database.reading() as connection:
            for minute_ms, parts, text in count_queries.select_bins(connection, model, version, since_ms, until_ms):
                start_ms = minute_ms - (minute_ms - since_ms) % step
                self._add(sums.setdefault(start_ms, []), parts, text, (model, version))
        return [
            BinCounts(model, version, start_ms, {name: tuple(values) for name, values in found.items()})
            for start_ms, found in self._choose(sums, (model, version)).items()
        ]

    def bin_versions(self, model: str) -> list[CountedVersion]:
        """Those that have bins, the latest `last_ms` first."""
        from app.storage import count_queries

        with self._database.reading() as connection:
            return [CountedVersion(*found) for found in count_queries.select_bin_versions(connection, model)]

    def merge(self, before_ms: int, limit: int, requests_before_ms: int | None = None) -> int:
        """Make the rows of all writers in an hour one row, of whole hours that ended before; the oldest first.

        Of requests, whose times matter to the minute for longer, those that ended before `requests_before_ms`.
        Returns how many rows of minutes were merged, `limit` at most; fewer mean that none is left. No sum over whole
        hours changes, whoever writes, reads or merges at the same time. A few at a time, so that nobody waits long.
        """
        from app.storage.count_merge import merge_oldest
        from app.storage.tables import bin_counts, request_counts

        merged = 0
        for table, end_ms in ((request_counts, requests_before_ms or before_ms), (bin_counts, before_ms)):
            end_ms -= end_ms % HOUR_MS
            merged += self._in_parts(limit - merged, partial(merge_oldest, table, end_ms))
        return merged

    def delete_before(self, before_ms: int, limit: int) -> int:
        """Delete rows of minutes before, and of hours that ended before, `limit` at most, and return how many.

        Fewer mean that none is left. A few at a time, so that nobody who writes waits long.
        """
        from app.storage.tables import bin_counts, request_counts

        deleted = 0
        for table in (request_counts, bin_counts):
            for span_ms, end_ms in ((MINUTE_MS, before_ms), (HOUR_MS, before_ms - HOUR_MS + 1)):
                deleted += self._in_parts(limit - deleted, partial(_delete_oldest, table, span_ms, end_ms))
        return deleted

    def _in_parts(self, limit: int, work: Callable[[Connection, int], int]) -> int:
        """`work` in one transaction after the other, until it does fewer than it was asked for."""
        done = 0
        while done < limit:
            if done:
                time.sleep(_PAUSE_SECONDS)
            wanted = min(_ROWS_AT_ONCE, limit - done)
            with self._database.writing() as connection:
                count = work(connection, wanted)
            done += count
            if count < wanted:
                break
        return done

    def _add(
        self, sums: list[Sum], parts: int, text: str, owner: tuple[str, ...], names: frozenset[str] = frozenset()
    ) -> None:
        """`names` are features that each row must have."""
        counts = load_counts(text)
        if counts is None or not counts.keys() >= names:
            self._tell(owner, "cannot be read")
        else:
            add_to(sums, parts, counts)

    def _choose(self, sums: Mapping[Key, list[Sum]], owner: tuple[str, ...]) -> dict[Key, Counts]:
        """Of each key the sum whose features have the usual lengths; keys that have none are left out."""
        lengths = usual_lengths(chain(*sums.values()))
        chosen: dict[Key, Counts] = {}
        for key, found in sums.items():
            for one in found:
                if all(len(values) == lengths[name] for name, values in one.counts.items()):
                    chosen[key] = one.counts
                else:
                    self._tell(owner, "have another length than the others")
        return chosen

    def _tell(self, owner: tuple[str, ...], fault: str) -> None:
        if (*owner, fault) not in self._told:
            self._told.add((*owner, fault))
            logger.warning("counts of %s are left out: some rows %s", "@".join(owner), fault)


def _delete_oldest(table: Table, span_ms: int, end_ms: int, connection: Connection, limit: int) -> int:
    from app.storage import count_queries

    return len(count_queries.take_oldest(connection, table, span_ms, end_ms, limit))


def _request_row(row: RequestCounts) -> dict[str, Any]:
    counts = {_ANSWERED: (row.answered, row.failed), _DURATIONS: row.durations}
    place = {"model": row.model, "version": row.version, "alias": row.alias, "minute_ms": int(row.minute_ms)}
    return place | {"counts": _dump(row.minute_ms, counts)}


def _request_counts(model: str, version: str, alias: str, since_ms: int, counts: Counts) -> RequestCounts:
    answered, failed = counts[_ANSWERED]
    return RequestCounts(model, version, alias, since_ms, answered, failed, tuple(counts[_DURATIONS]))


def _bin_row(row: BinCounts) -> dict[str, Any]:
    place = {"model": row.model, "version": row.version, "minute_ms": int(row.minute_ms)}
    return place | {"counts": _dump(row.minute_ms, row.bins)}


def _dump(minute_ms: int, counts: Counts) -> str:
    if any(not 0 <= number <= _LARGEST for number in chain((minute_ms,), *counts.values())):
        raise InvalidContent("times and counts are whole numbers from 0 to 2^53")
    return dump_counts(counts)
