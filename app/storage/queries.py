"""The statements about feedback, each in the transaction of its caller. What they mean is in feedback.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, Text, case, cast, delete, func, literal, or_, select

from app.storage import dialects
from app.storage.tables import feedback

# SQLite takes 32,766 parameters in a statement, of old 999.
_CHUNK = 500
_PART = 10_000


def insert_missing(connection: Connection, rows: Sequence[dict[str, Any]]) -> set[bytes]:
    """Insert the rows whose nonce is not there, and return these nonces. Waits for others that insert the same."""
    statement = dialects.insert(connection, feedback).on_conflict_do_nothing(index_elements=["nonce"])
    statement = statement.returning(feedback.c.nonce)
    return set(connection.scalars(statement, list(rows)))


def select_contents(connection: Connection, nonces: Sequence[bytes]) -> dict[bytes, tuple[Any, ...]]:
    """(actual, actual_value, rating) of each nonce that is there."""
    columns = feedback.c
    found: dict[bytes, tuple[Any, ...]] = {}
    for start in range(0, len(nonces), _CHUNK):
        chunk = nonces[start : start + _CHUNK]
        statement = select(columns.nonce, columns.actual, columns.actual_value, columns.rating)
        for nonce, *content in connection.execute(statement.where(columns.nonce.in_(chunk))):
            found[nonce] = tuple(content)
    return found


def newest(
    columns: Sequence[str],
    model: str,
    version: str | None,
    alias: str | None,
    between: tuple[int, int] | None,
    limit: int,
) -> Select[Any]:
    """The newest `limit` rows of a model, newest first; `between` is since and until, in milliseconds."""
    statement = select(*(feedback.c[name] for name in columns)).where(feedback.c.model == model)
    if version is not None:
        statement = statement.where(feedback.c.version == version)
    if alias is not None:
        statement = statement.where(feedback.c.alias == alias if alias else feedback.c.alias.is_(None))
    if between is not None:
        since_ms, until_ms = between
        statement = statement.where(feedback.c.received_ms >= since_ms, feedback.c.received_ms < until_ms)
    return statement.order_by(feedback.c.received_ms.desc()).limit(limit)


def read_parts(connection: Connection, statement: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    """The rows some at a time: as Python objects all of them would take ten times the memory of the columns."""
    yield from connection.execute(statement).partitions(_PART)


def select_groups(connection: Connection, model: str) -> list[tuple[str, str | None, int, int]]:
    """(version, alias, count, newest received_ms) of each version and alias, in this order."""
    columns = feedback.c
    statement = (
        select(columns.version, columns.alias, func.count(), func.max(columns.received_ms))
        .where(columns.model == model)
        .group_by(columns.version, columns.alias)
        .order_by(columns.version, columns.alias)
    )
    return [(version, alias, count, latest) for version, alias, count, latest in connection.execute(statement)]


def select_tally(
    connection: Connection, model: str, predicted_ms: int, received_ms: int
) -> list[tuple[str, str | None, int, int]]:
    """(version, alias, count, wrong ones) of answers that have classes and an actual one, from both times on.

    `received_ms` only bounds what is looked at: there is no index by when an answer was predicted.
    """
    columns = feedback.c
    # `top` is compact JSON, and the first of its classes ends with a comma or with the array.
    first = literal("[").concat(cast(columns.actual, Text))
    is_right = or_(columns.top.like(first.concat(",%")), columns.top == first.concat("]"))
    statement = (
        select(columns.version, columns.alias, func.count(), func.sum(case((is_right, 0), else_=1)))
        .where(columns.model == model, columns.received_ms >= received_ms, columns.predicted_ms >= predicted_ms)
        .where(columns.actual.is_not(None), columns.top.is_not(None))
        .group_by(columns.version, columns.alias)
    )
    return [(version, alias, count, int(wrong)) for version, alias, count, wrong in connection.execute(statement)]


def delete_oldest(connection: Connection, received_ms: int, limit: int) -> int:
    """Delete at most `limit` of the rows received before; rows that another one is deleting are left to it."""
    oldest = (
        select(feedback.c.nonce)
        .where(feedback.c.received_ms < received_ms)
        .order_by(feedback.c.received_ms)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return connection.execute(delete(feedback).where(feedback.c.nonce.in_(oldest))).rowcount


def summarize(connection: Connection) -> tuple[int, int | None, int | None]:
    """Count, oldest and newest received_ms of all rows."""
    received = feedback.c.received_ms
    count, oldest, latest = connection.execute(select(func.count(), func.min(received), func.max(received))).one()
    return count, oldest, latest
