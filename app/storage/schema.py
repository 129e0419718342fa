"""The revision of a database's tables: which one this Headway needs, which one is there, and the way between.

Revisions are numbered in one line, 0001, 0002 …; what is there is kept in a table of our own name, so that a database
can be shared with another program that uses Alembic.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import FeedbackUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection

MIGRATIONS = Path(__file__).parent / "migrations"
REVISION_TABLE = "headway_schema"
UPGRADE = "run: headway db upgrade"

_MODULE = re.compile(r"r(\d{4})_\w+\.py")


class Schema:
    """The revisions of a directory of migrations. Raises ValueError where it holds none."""

    def __init__(self, migrations: Path = MIGRATIONS) -> None:
        self._directory = migrations
        matches = (_MODULE.fullmatch(path.name) for path in migrations.iterdir())
        self.revisions = sorted(match[1] for match in matches if match)
        if not self.revisions:
            raise ValueError(f"{migrations}: holds no migrations")

    @property
    def head(self) -> str:
        """The revision that this Headway reads and writes."""
        return self.revisions[-1]

    def find_fault(self, revision: str | None) -> str | None:
        """What is wrong with a database at `revision`, and what to do; None if nothing is."""
        if revision is None:
            return f"it has no tables of Headway; {UPGRADE}"
        if revision not in self.revisions:
            return (
                f"its schema {revision} is not known to this Headway, which needs {self.head}: it was made by a newer "
                "one; use that version"
            )
        if revision != self.head:
            return f"its schema is {revision}, and this Headway needs {self.head}; {UPGRADE}"
        return None

    def upgrade(self, connection: Connection) -> str | None:
        """Bring the database to `head` and return the revision before. Raises FeedbackUnavailable if it is newer.

        To be called in a transaction that keeps all others out.
        """
        before = read_revision(connection)
        if before is not None and before not in self.revisions:
            raise FeedbackUnavailable(f"the database cannot be upgraded: {self.find_fault(before)}")
        if before != self.head:
            self._migrate(connection)
        return before

    def _migrate(self, connection: Connection) -> None:
        from alembic.migration import MigrationContext
        from alembic.operations import Operations
        from alembic.script import ScriptDirectory

        scripts = ScriptDirectory(self._directory, version_locations=[self._directory])
        context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
        steps = list(scripts.iterate_revisions(self.head, context.get_current_revision() or "base"))
        with Operations.context(context):
            for step in reversed(steps):
                step.module.upgrade()
                context.stamp(scripts, step.revision)


def read_revision(connection: Connection) -> str | None:
    """None where there are no tables of Headway."""
    from sqlalchemy import column, inspect, select, table

    if not inspect(connection).has_table(REVISION_TABLE):
        return None
    return connection.scalar(select(column("version_num")).select_from(table(REVISION_TABLE)))
