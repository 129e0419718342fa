"""Makes one row of what all processes counted in an hour."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Row, Table

from app.storage import count_queries
from app.storage.sums import HOUR_MS, MINUTE_MS, Sum, add_to, dump_counts, load_counts

logger = logging.getLogger(__name__)


def merge_oldest(table: Table, end_ms: int, connection: Connection, limit: int) -> int:
    """Merge at most `limit` of the rows of minutes before `end_ms`, the oldest first, and return how many.

    Each goes into the row of its hour, which may be there already. What cannot be added, as bins of another baseline,
    gets a row of its own in that hour: the `writer` of merged rows numbers them. Rows that somebody writes just now
    are left for another time.
    """
    count_queries.keep_out_mergers(connection)
    rows = count_queries.take_oldest(connection, table, MINUTE_MS, end_ms, limit)
    names = [column.name for column in table.primary_key if column.name != "writer"]
    hours: dict[tuple[Any, ...], list[Row[Any]]] = {}
    for row in rows:
        place = {**row._mapping, "span_ms": HOUR_MS, "minute_ms": row.minute_ms - row.minute_ms % HOUR_MS}
        hours.setdefault(tuple(place[name] for name in names), []).append(row)
    merged: list[dict[str, Any]] = []
    for values, found in hours.items():
        key = dict(zip(names, values, strict=True))
        sums = _add_up(chain(count_queries.take(connection, table, key), found))
        for number, one in enumerate(sums):
            merged.append(key | {"writer": str(number), "parts": one.parts, "counts": dump_counts(one.counts)})
    count_queries.replace(connection, table, merged)
    return len(rows)


def _add_up(rows: Iterable[Row[Any]]) -> list[Sum]:
    sums: list[Sum] = []
    for row in rows:
        counts = load_counts(row.counts)
        if counts is None:
            logger.warning(
                "counts of %s@%s at %d are dropped: they cannot be read", row.model, row.version, row.minute_ms
            )
        else:
            add_to(sums, row.parts, counts)
    return sums
