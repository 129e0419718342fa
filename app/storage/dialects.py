"""What SQLite and PostgreSQL say differently in a statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table


def insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows `on_conflict_do_…` and `excluded`."""
    # Only the dialect that is there already: the other one takes 2 MB.
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


def keep_out_others(connection: Connection, name: bytes) -> None:
    """Wait until no other transaction is here with this `name` (7 bytes at most), and keep others out until its end.

    With SQLite nothing is to be done: one transaction writes at a time.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({int.from_bytes(name)})")
