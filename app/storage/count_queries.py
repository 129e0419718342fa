"""The statements about counts, each in the transaction of its caller. What they mean is in counts.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, bindparam, delete, func, select

from app.storage import dialects
from app.storage.tables import bin_counts, request_counts

# The whole of the database merges in one place at a time.
_MERGING = b"hwmerge"


def replace(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert `rows`; where the key of one is there, its counts are replaced."""
    if not rows:
        return
    names = [column.name for column in table.primary_key]
    statement = dialects.insert(connection, table)
    new = {"parts": statement.excluded.parts, "counts": statement.excluded.counts}
    statement = statement.on_conflict_do_update(index_elements=names, set_=new)
    # In one order everywhere, so that two who replace the same never wait for each other in a circle.
    connection.execute(statement, sorted(rows, key=lambda row: [row[name] for name in names]))


def select_requests(
    connection: Connection, model: str, since_ms: int, until_ms: int
) -> Iterable[tuple[str, str, int, str]]:
    """(version, alias, parts, counts), the oldest first."""
    columns = request_counts.c
    statement = (
        select(columns.version, columns.alias, columns.parts, columns.counts)
        .where(columns.model == model, columns.minute_ms >= since_ms, columns.minute_ms < until_ms)
        .order_by(columns.minute_ms)
    )
    return connection.execute(statement)


def select_bins(
    connection: Connection, model: str, version: str, since_ms: int, until_ms: int
) -> Iterable[tuple[int, int, str]]:
    """(minute_ms, parts, counts), the oldest first."""
    columns = bin_counts.c
    statement = (
        select(columns.minute_ms, columns.parts, columns.counts)
        .where(columns.model == model, columns.version == version)
        .where(columns.minute_ms >= since_ms, columns.minute_ms < until_ms)
        .order_by(columns.minute_ms)
    )
    return connection.execute(statement)


def select_bin_versions(connection: Connection, model: str) -> list[tuple[str, int, int]]:
    """(version, first minute_ms, last minute_ms), the latest last one first."""
    minute = bin_counts.c.minute_ms
    statement = (
        select(bin_counts.c.version, func.min(minute), func.max(minute))
        .where(bin_counts.c.model == model)
        .group_by(bin_counts.c.version)
        .order_by(func.max(minute).desc(), bin_counts.c.version)
    )
    return [(version, first, last) for version, first, last in connection.execute(statement)]


def keep_out_mergers(connection: Connection) -> None:
    """Until the end of the transaction."""
    dialects.keep_out_others(connection, _MERGING)


def take_oldest(connection: Connection, table: Table, span_ms: int, before_ms: int, limit: int) -> Sequence[Row[Any]]:
    """Delete at most `limit` of the rows of this span that begin before, and return them.

    Rows that another one is writing or deleting are left to it.
    """
    statement = (
        select(table)
        .where(table.c.span_ms == span_ms, table.c.minute_ms < before_ms)
        .order_by(table.c.minute_ms)
        .limit(limit)
    )
    rows = connection.execute(statement.with_for_update(skip_locked=True)).all()
    _delete(connection, table, rows)
    return rows


def take(connection: Connection, table: Table, key: dict[str, Any]) -> Sequence[Row[Any]]:
    """Delete the rows whose columns are as in `key`, and return them in the order of their writers."""
    condition = and_(*(table.c[name] == value for name, value in key.items()))
    rows = connection.execute(select(table).where(condition).order_by(table.c.writer).with_for_update()).all()
    _delete(connection, table, rows)
    return rows


def _delete(connection: Connection, table: Table, rows: Sequence[Row[Any]]) -> None:
    """Exactly those that were read: another one may just have come to stand beside them."""
    if not rows:
        return
    columns = list(table.primary_key)
    conditions: list[ColumnElement[bool]] = [column == bindparam(f"old_{column.name}") for column in columns]
    keys = [{f"old_{column.name}": row._mapping[column.name] for column in columns} for row in rows]
    connection.execute(delete(table).where(*conditions), keys)
