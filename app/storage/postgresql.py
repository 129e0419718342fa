"""PostgreSQL by URL, for several servers that share one database."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from app.errors import FeedbackUnavailable
from app.storage.schema import UPGRADE

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

SCHEMES = ("postgresql+psycopg", "postgresql", "postgres")

_STATEMENT_MS = 30_000
_UPGRADE_LOCK_MS = 60_000
# Any number does that other programs do not use; ours are the first bytes of "headway".
_UPGRADE_KEY = int.from_bytes(b"headway")
# https://www.postgresql.org/docs/current/errcodes-appendix.html, by class.
_HINTS = {
    "42": f"if the schema is old, {UPGRADE}; else see the privileges of this user",
    "53": "the server has run out of disk, memory or connections",
    "55": "another process holds a lock, as an upgrade does; try again in a second",
    "57": "the server was stopped, starts just now, or took too long; try again in a second",
}
# A refused connection has no code.
_HINT = "check HEADWAY_DATABASE_URL and that the server runs"


class PostgresqlBackend:
    """`wait_seconds` is how long one waits for a connection, at least two seconds."""

    def __init__(self, url: str, wait_seconds: float) -> None:
        self._text = url
        self._wait_seconds = wait_seconds

    @cached_property
    def location(self) -> str:
        """The URL without its password; parameters may hold secrets too and are left out, but for the host."""
        query = {name: value for name, value in self._url.query.items() if name in ("host", "port")}
        return self._url.set(drivername="postgresql", query=query).render_as_string(hide_password=True)

    def exists(self) -> bool:
        return True

    def make_engine(self) -> Engine:
        """Raises FeedbackUnavailable if the driver is not installed."""
        from sqlalchemy import create_engine, event

        try:
            engine = create_engine(
                self._url,
                connect_args=self._connect_arguments(),
                isolation_level="READ COMMITTED",
                pool_size=2,
                max_overflow=2,
                pool_timeout=self._wait_seconds,
                pool_pre_ping=True,
                pool_recycle=1800,
                hide_parameters=True,
            )
        except ImportError as exc:
            raise FeedbackUnavailable(
                "HEADWAY_DATABASE_URL needs a driver that is not installed: pip install 'headway[postgresql]'"
            ) from exc
        event.listen(engine, "begin", _begin)
        return engine

    def prepare(self, engine: Engine, upgrade: Callable[[Connection], object]) -> None:
        """Nothing: tables are made by `headway db upgrade` alone."""

    @contextmanager
    def upgrading(self, engine: Engine) -> Iterator[Connection]:
        """A transaction that keeps out other upgrades of this database; whoever is at it is waited for."""
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_UPGRADE_LOCK_MS}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADE_KEY})")
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            yield connection

    @contextmanager
    def writing(self, engine: Engine) -> Iterator[Connection]:
        with engine.begin() as connection:
            yield connection

    def advise(self, error: BaseException) -> str:
        """What to do about an error of the driver."""
        return _HINTS.get((getattr(error, "sqlstate", None) or "")[:2], _HINT)

    def redact(self, text: str) -> str:
        """`text` without the password, should a driver ever repeat it; what the location shows is no secret."""
        for secret in (self._url.password, self._url.query.get("password"), self._url.query.get("sslpassword")):
            if secret and str(secret) not in self.location:
                text = text.replace(str(secret), "***")
        return text

    @cached_property
    def _url(self) -> URL:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self._text)
        except (ArgumentError, ValueError):
            url = None
        # An @ in a password that is not encoded makes its end a part of the host's name, which drivers show.
        if url is None or "@" in (url.host or ""):
            # Not chained: the cause quotes parts of the URL.
            raise FeedbackUnavailable(
                "HEADWAY_DATABASE_URL cannot be read; write postgresql://user:password@host:5432/database, and in user "
                "name and password %40 for @, %3A for :, %2F for /, %25 for %"
            ) from None
        return url.set(drivername=SCHEMES[0])

    def _connect_arguments(self) -> dict[str, Any]:
        """What the URL itself does not say. A server that is gone without a word is noticed by the time-outs."""
        arguments = {
            "application_name": "headway",
            "connect_timeout": max(2, math.ceil(self._wait_seconds)),
            "keepalives_idle": 30,
            "tcp_user_timeout": _STATEMENT_MS,
        }
        # Prepared statements would not outlive a pooler such as PgBouncer, which gives out a connection by transaction.
        chosen: dict[str, Any] = {name: value for name, value in arguments.items() if name not in self._url.query}
        return chosen | {"prepare_threshold": None}


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_STATEMENT_MS}")
