"""Feedback that is kept: one for each prediction, and never changed.

The first feedback of a prediction stays. The same once more, as of a caller that has heard no answer, is taken for the
first one; any other is a double, and also one that only adds a rating: what was counted once is never counted anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from app.storage.database import Database
from app.storage.rows import COLUMNS, FeedbackColumns, FeedbackRow

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["FeedbackColumns", "FeedbackRow", "FeedbackStore", "FeedbackSummary", "Group", "Outcome"]

NEWEST = 10_000
LARGEST = 200_000

_DELETED_AT_ONCE = 500
# So that whoever waits to write gets its turn; SQLite's waiters look again after 1 to 100 ms.
_PAUSE_SECONDS = 0.01
_CLOCKS_APART_MS = 3_600_000


class Outcome(Enum):
    """What became of one row."""

    RECORDED = "recorded"
    REPEATED = "repeated"  # the same label or value and the same rating were there before
    DOUBLE = "double"  # others were there before, and stay


@dataclass(frozen=True)
class Group:
    """How much feedback the answers of a version under an alias have."""

    version: str
    alias: str | None
    count: int
    newest_ms: int


@dataclass(frozen=True)
class FeedbackSummary:
    """Times are None where there are no rows."""

    count: int
    oldest_ms: int | None
    newest_ms: int | None


class FeedbackStore:
    """For all threads. Every method may wait for the database; each raises FeedbackUnavailable where that fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rows: Sequence[FeedbackRow]) -> list[Outcome]:
        """Keep all rows in one transaction, or none; the outcome of each, in order.

        What is RECORDED or REPEATED outlasts a kill. Exactly one of several callers, or of several rows of one call,
        has RECORDED for a nonce. After FeedbackUnavailable the same call can be made again: it does no harm.
        """
        if not rows:
            return []
        firsts: dict[bytes, FeedbackRow] = {}
        for row in rows:
            firsts.setdefault(row.nonce, row)
        with self._database.writing() as connection:
            recorded, stored = _settle(connection, firsts)
        outcomes = []
        for row in rows:
            if row.nonce in recorded and firsts[row.nonce] is row:
                outcomes.append(Outcome.RECORDED)
                recorded.remove(row.nonce)
                continue
            content = stored.get(row.nonce, firsts[row.nonce].content)
            outcomes.append(Outcome.REPEATED if row.content == content else Outcome.DOUBLE)
        return outcomes

    def newest(
        self, model: str, version: str | None = None, alias: str | None = None, limit: int = NEWEST
    ) -> FeedbackColumns:
        """The newest `limit` rows, newest first. None: of all versions, of all aliases; `alias` "": without one."""
        return self._read(model, version, alias, None, limit)

    def since(
        self,
        model: str,
        since_ms: int,
        until_ms: int,
        version: str | None = None,
        alias: str | None = None,
        limit: int = LARGEST,
    ) -> FeedbackColumns:
        """Rows received from `since_ms` until before `until_ms`, newest first, the newest `limit` if there are more."""
        return self._read(model, version, alias, (since_ms, until_ms), limit)

    def groups(self, model: str) -> list[Group]:
        """Each version and alias of the model that has feedback."""
        from app.storage import queries

        with self._database.reading() as connection:
            return [Group(*found) for found in queries.select_groups(connection, model)]

    def tally(self, model: str, since_ms: int) -> dict[tuple[str, str], tuple[int, int]]:
        """(version, alias or "") to labelled answers and how many were wrong, of answers predicted from then on.

        An answer is labelled where it has classes and its feedback an actual one, and wrong where its first class is
        another. One whose feedback came over an hour before it, by the clocks of two servers, may be left out.
        """
        from app.storage import queries

        with self._database.reading() as connection:
            found = queries.select_tally(connection, model, since_ms, since_ms - _CLOCKS_APART_MS)
        return {(version, alias or ""): (count, wrong) for version, alias, count, wrong in found}

    def delete_before(self, received_ms: int, limit: int) -> int:
        """Delete the oldest rows received before, `limit` at most, and return how many; fewer mean that none is left.

        A few at a time, so that nobody who writes waits long.
        """
        from app.storage import queries

        deleted = 0
        while deleted < limit:
            if deleted:
                time.sleep(_PAUSE_SECONDS)
            wanted = min(_DELETED_AT_ONCE, limit - deleted)
            with self._database.writing() as connection:
                count = queries.delete_oldest(connection, received_ms, wanted)
            deleted += count
            if count < wanted:
                break
        return deleted

    def summary(self) -> FeedbackSummary:
        """Of all models."""
        from app.storage import queries

        with self._database.reading() as connection:
            return FeedbackSummary(*queries.summarize(connection))

    def _read(
        self, model: str, version: str | None, alias: str | None, between: tuple[int, int] | None, limit: int
    ) -> FeedbackColumns:
        from app.storage import queries

        statement = queries.newest(COLUMNS, model, version, alias, between, limit)
        with self._database.reading() as connection:
            parts = [FeedbackColumns.from_rows(rows) for rows in queries.read_parts(connection, statement)]
        return FeedbackColumns.join(parts or [FeedbackColumns.from_rows([])])


def _settle(
    connection: Connection, rows: Mapping[bytes, FeedbackRow]
) -> tuple[set[bytes], dict[bytes, tuple[Any, ...]]]:
    """Insert what is not there: the nonces that were inserted, and the contents found under the others."""
    from app.storage import queries

    recorded: set[bytes] = set()
    stored: dict[bytes, tuple[Any, ...]] = {}
    # In one order everywhere, so that two who insert the same never wait for each other in a circle.
    missing = sorted(rows)
    while missing:
        inserted = queries.insert_missing(connection, [rows[nonce].values() for nonce in missing])
        others = [nonce for nonce in missing if nonce not in inserted]
        found = queries.select_contents(connection, others)
        recorded |= inserted
        stored |= found
        # Neither inserted nor found: it was deleted in between, and is inserted at the next turn.
        missing = [nonce for nonce in others if nonce not in found]
    return recorded, stored
