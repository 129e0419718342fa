"""SQLite in one file of the data directory, for the workers of one machine. The directory must not be a network share.

A new file is made with all its tables by whoever comes first. What is committed is on the disk: the log is synced with
every transaction (WAL, synchronous=FULL), so that neither a kill nor a power loss takes back what was acknowledged.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import FeedbackUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

try:
    import fcntl
except ImportError:  # Windows, where one process serves
    fcntl = None  # type: ignore[assignment]

FILE_NAME = "headway.db"
LOCK_NAME = "headway.db.lock"

_PAUSE_SECONDS = 0.005
_UPGRADE_SECONDS = 60.0
# https://www.sqlite.org/rescode.html; the lower byte is the primary code.
_HINTS = {
    sqlite3.SQLITE_BUSY: "another process is writing to it; try again in a second",
    sqlite3.SQLITE_LOCKED: "another process is writing to it; try again in a second",
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_IOERR: "see that its disk works and has space left",
    sqlite3.SQLITE_READONLY: "let this user write to the file and its directory, or set HEADWAY_DATA_DIR",
    sqlite3.SQLITE_PERM: "let this user write to the file and its directory, or set HEADWAY_DATA_DIR",
    sqlite3.SQLITE_CANTOPEN: "let this user write to the file and its directory, or set HEADWAY_DATA_DIR",
    sqlite3.SQLITE_CORRUPT: "stop the server and restore the file from a backup",
    sqlite3.SQLITE_NOTADB: "move this file away, or set HEADWAY_DATA_DIR",
}
_HINT = "see that the directory can be written, or set HEADWAY_DATA_DIR"


class SqliteBackend:
    """`wait_seconds` is how long one waits for the transaction of another."""

    def __init__(self, data_dir: Path, wait_seconds: float) -> None:
        self.location = str(data_dir / FILE_NAME)
        self._path = Path(self.location).absolute()
        self._wait_seconds = wait_seconds

    def exists(self) -> bool:
        return self._path.exists()

    def make_engine(self) -> Engine:
        from sqlalchemy import URL, create_engine, event

        engine = create_engine(
            URL.create("sqlite", database=str(self._path)),
            connect_args={"timeout": self._wait_seconds},
            pool_size=2,
            max_overflow=2,
            pool_timeout=self._wait_seconds,
            hide_parameters=True,
        )
        event.listen(engine, "connect", self._set_up)
        event.listen(engine, "checkout", self._check_file)
        event.listen(engine, "begin", _begin)
        return engine

    def prepare(self, engine: Engine, upgrade: Callable[[Connection], object]) -> None:
        """Make directory, file and tables if they are not there; a file with any table in it is left as it is."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with engine.begin() as connection:
            if _has_tables(connection):
                return
        with self._locked(self._wait_seconds):
            _write_ahead(engine)
            with _beginning(engine, "EXCLUSIVE") as connection:
                if not _has_tables(connection):
                    upgrade(connection)

    @contextmanager
    def upgrading(self, engine: Engine) -> Iterator[Connection]:
        """A transaction that keeps all others out; whoever else upgrades is waited for."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked(_UPGRADE_SECONDS):
            _write_ahead(engine)
            with _beginning(engine, "EXCLUSIVE") as connection:
                yield connection

    @contextmanager
    def writing(self, engine: Engine) -> Iterator[Connection]:
        """A transaction that waits for its turn at its begin, where waiting can never end in a dead lock."""
        with _beginning(engine, "IMMEDIATE") as connection:
            yield connection

    def advise(self, error: BaseException) -> str:
        """What to do about an error of the driver or of the file system."""
        if isinstance(error, sqlite3.Error):
            return _HINTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, _HINT)
        return _HINT

    def redact(self, text: str) -> str:
        return text

    def _set_up(self, connection: sqlite3.Connection, record: Any) -> None:
        # The driver's own BEGIN spares statements that change tables; ours (`_begin`) goes before every transaction.
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        record.info["file"] = _identify(self._path)

    def _check_file(self, _connection: object, record: Any, _proxy: object) -> None:
        """A connection to a file that was removed or replaced would take feedback to nowhere: it is made anew."""
        from sqlalchemy.exc import DisconnectionError

        if record.info["file"] != _identify(self._path):
            raise DisconnectionError("the file was replaced")

    @contextmanager
    def _locked(self, wait_seconds: float) -> Iterator[None]:
        """Held by one process at a time: SQLite cannot wait while a file is turned to WAL. Lost with the process."""
        descriptor = os.open(self._path.with_name(LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if fcntl is not None:
                self._wait_for_lock(descriptor, time.monotonic() + wait_seconds)
            yield
        finally:
            os.close(descriptor)

    def _wait_for_lock(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    raise FeedbackUnavailable(
                        f"{self.location}: another process makes or upgrades this database; try again in a second"
                    ) from exc
            time.sleep(_PAUSE_SECONDS)


def _begin(connection: Connection) -> None:
    kind = connection.get_execution_options().get("begin", "")
    connection.exec_driver_sql(f"BEGIN {kind}")


@contextmanager
def _beginning(engine: Engine, kind: str) -> Iterator[Connection]:
    with engine.execution_options(begin=kind).begin() as connection:
        yield connection


def _write_ahead(engine: Engine) -> None:
    """Turn the file to write-ahead logging, which lasts; it is not possible in a transaction."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def _has_tables(connection: Connection) -> bool:
    return connection.exec_driver_sql("SELECT 1 FROM sqlite_master LIMIT 1").first() is not None


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
