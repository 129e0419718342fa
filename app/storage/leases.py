"""Leases: what only one process of all that share a database is to do, and who does it until when."""

from __future__ import annotations

from app.storage.database import Database


class Leases:
    """For all threads. Every method may wait for the database; each raises FeedbackUnavailable where that fails.

    Times are those of the callers' clocks: a clock that is ahead takes a lease that much too early. So whoever holds
    one must still do no harm where another one does the same.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, name: str, holder: str, now_ms: int, seconds: float = 30.0) -> bool:
        """Whether `holder` has it now: it was free, has run out, or was its own and is renewed.

        Of many that ask at once one has it. It runs out `seconds` after `now_ms`, and to the millisecond: at that time
        another one may take it. After FeedbackUnavailable `holder` may have it or not, and can ask again.
        """
        from sqlalchemy import or_

        from app.storage import dialects
        from app.storage.tables import leases

        with self._database.writing() as connection:
            statement = dialects.insert(connection, leases).values(
                name=name, holder=holder, until_ms=now_ms + round(seconds * 1000)
            )
            new = statement.excluded
            statement = statement.on_conflict_do_update(
                index_elements=["name"],
                set_={"holder": new.holder, "until_ms": new.until_ms},
                where=or_(leases.c.holder == new.holder, leases.c.until_ms <= now_ms),
            ).returning(leases.c.name)
            return connection.execute(statement).first() is not None

    def give_back(self, name: str, holder: str) -> None:
        """Free it at once, if it is this holder's; else nothing changes."""
        from sqlalchemy import delete

        from app.storage.tables import leases

        with self._database.writing() as connection:
            connection.execute(delete(leases).where(leases.c.name == name, leases.c.holder == holder))
