"""A database: its transactions, its schema, and its failures in our own words.

Opening one costs nothing and needs nothing: SQLAlchemy is imported, the connection made and the schema looked at when
it is first used, so that a server starts without its database.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from app.errors import FeedbackUnavailable, InvalidContent
from app.settings import Settings
from app.storage.postgresql import SCHEMES, PostgresqlBackend
from app.storage.schema import MIGRATIONS, Schema, read_revision
from app.storage.sqlite import SqliteBackend

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

WAIT_SECONDS = 5.0

_LONGEST_CAUSE = 300


class Backend(Protocol):
    """What SQLite and PostgreSQL do each in its own way. `location` can be shown to anyone: it holds no password."""

    @property
    def location(self) -> str: ...

    def exists(self) -> bool:
        """Whether looking at it would not make it."""

    def make_engine(self) -> Engine: ...

    def prepare(self, engine: Engine, upgrade: Callable[[Connection], object]) -> None: ...

    def upgrading(self, engine: Engine) -> AbstractContextManager[Connection]: ...

    def writing(self, engine: Engine) -> AbstractContextManager[Connection]: ...

    def advise(self, error: BaseException) -> str: ...

    def redact(self, text: str) -> str: ...


@dataclass(frozen=True)
class SchemaState:
    """`revision` is None where there are no tables yet, `fault` where feedback can be kept as it is."""

    revision: str | None
    head: str
    fault: str | None


class Database:
    """For all threads of one process; made after a fork, or not used before it.

    Every method raises FeedbackUnavailable where the database fails. Nothing is kept of a failure: the next call
    connects anew.
    """

    def __init__(self, backend: Backend, schema: Schema) -> None:
        self.schema = schema
        self._backend = backend
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._is_checked = False

    @property
    def location(self) -> str:
        """File or URL, without a password."""
        return self._backend.location

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction over a schema that is known to fit."""
        with self._telling_failures():
            engine = self._ready_engine()
            with engine.begin() as connection:
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """As `reading`. After its end the changes outlast a kill and a power loss; after an error there are none.

        Where the connection is lost at the very end, FeedbackUnavailable may be raised for changes that are there.
        """
        with self._telling_failures():
            engine = self._ready_engine()
            with self._backend.writing(engine) as connection:
                yield connection

    def check_schema(self) -> None:
        """Raises FeedbackUnavailable, which says what to do, if the schema is older or newer than this Headway's.

        Makes the tables of a new SQLite database. Transactions do the same, until one has found that all is well: what
        an upgrade changes after that only adds to it.
        """
        with self._telling_failures():
            self._check(self._open_engine())

    def exists(self) -> bool:
        """Whether there may be anything to read; a database on another machine is not asked."""
        return self._backend.exists()

    def read_schema(self) -> SchemaState:
        """As it is: makes and changes nothing."""
        revision = None
        if self._backend.exists():
            with self._telling_failures(), self._open_engine().begin() as connection:
                revision = read_revision(connection)
        return SchemaState(revision, self.schema.head, self.schema.find_fault(revision))

    def upgrade(self) -> str | None:
        """Bring the schema to this Headway's, and return the revision before, None for an empty database.

        All of it in one transaction that other upgrades wait for; the first of them does it.
        """
        with self._telling_failures(), self._backend.upgrading(self._open_engine()) as connection:
            return self.schema.upgrade(connection)

    def close(self) -> None:
        """Give the connections back; the next use makes new ones."""
        with self._lock:
            engine, self._engine, self._is_checked = self._engine, None, False
        if engine is not None:
            engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_engine(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = self._backend.make_engine()
            return self._engine

    def _ready_engine(self) -> Engine:
        engine = self._open_engine()
        if not self._is_checked:
            self._check(engine)
        return engine

    def _check(self, engine: Engine) -> None:
        """Without the lock: where the server does not answer, each thread waits for its own time-out, not for all."""
        self._backend.prepare(engine, self.schema.upgrade)
        with engine.begin() as connection:
            fault = self.schema.find_fault(read_revision(connection))
        if fault is not None:
            raise FeedbackUnavailable(f"{self.location} cannot be used: {fault}")
        self._is_checked = True

    @contextmanager
    def _telling_failures(self) -> Iterator[None]:
        from sqlalchemy.exc import DataError, DBAPIError
        from sqlalchemy.exc import TimeoutError as PoolTimeout

        try:
            yield
        except (DataError, OverflowError, UnicodeError) as exc:
            raise InvalidContent(f"a number or a text is none that the database can hold ({_shorten(exc)})") from exc
        except (DBAPIError, PoolTimeout, sqlite3.Error, OSError) as exc:
            self._is_checked = False
            raise self._unavailable(exc) from exc

    def _unavailable(self, exc: Exception) -> FeedbackUnavailable:
        cause = getattr(exc, "orig", None) or exc
        words = self._backend.redact(_shorten(cause))
        return FeedbackUnavailable(f"{self.location} cannot be used ({words}); {self._backend.advise(cause)}")


def open_database(
    url: str | None, data_dir: Path, *, wait_seconds: float = WAIT_SECONDS, migrations: Path = MIGRATIONS
) -> Database:
    """SQLite at `data_dir`/headway.db, or the PostgreSQL of `url`; neither is touched before it is used.

    `wait_seconds`: how long a call waits for a connection or for the transaction of another process.
    Raises FeedbackUnavailable if `url` is none of PostgreSQL.
    """
    schema = Schema(migrations)
    if url is None:
        return Database(SqliteBackend(data_dir, wait_seconds), schema)
    if url.partition("://")[0] not in SCHEMES:
        # The URL is not repeated: it may hold a password.
        raise FeedbackUnavailable(
            "HEADWAY_DATABASE_URL must be of PostgreSQL: postgresql://user:password@host:5432/database; leave it unset "
            "for SQLite in HEADWAY_DATA_DIR"
        )
    return Database(PostgresqlBackend(url, wait_seconds), schema)


def open_configured(settings: Settings) -> Database:
    """That of HEADWAY_DATABASE_URL, else the SQLite file in the data directory. Raises as `open_database`."""
    url = settings.database_url
    return open_database(url.get_secret_value() if url is not None else None, settings.data_dir)


def _shorten(error: BaseException) -> str:
    """One line of what a driver says, which may be many."""
    return re.sub(r"\s+", " ", str(error)).strip()[:_LONGEST_CAUSE] or type(error).__name__
