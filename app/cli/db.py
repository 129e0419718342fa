"""`headway db upgrade | status`: the database of feedback, as HEADWAY_DATABASE_URL or HEADWAY_DATA_DIR names it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.console import JsonOption, emit, failing_cleanly, read_settings
from app.storage.database import Database, open_configured

cli = typer.Typer(help="Make, upgrade and look at the database of feedback.", no_args_is_help=True)


@cli.command()
def upgrade(as_json: JsonOption = False) -> None:
    """Bring the schema of the database to this version's; run it once before a new version of Headway serves."""
    with failing_cleanly(), open_configured(read_settings()) as database:
        before = database.upgrade()
        data = {"database": database.location, "before": before, "revision": database.schema.head}
    emit(as_json, data, lambda: Text(_sentence(data)))


@cli.command()
def status(as_json: JsonOption = False) -> None:
    """Where the database is, the revision of its schema, and how much feedback it holds."""
    with failing_cleanly(), open_configured(read_settings()) as database:
        data = _status(database)
    emit(as_json, data, lambda: _table(data))


def _status(database: Database) -> dict[str, Any]:
    from app.storage.feedback import FeedbackStore

    schema = database.read_schema()
    data: dict[str, Any] = {
        "database": database.location,
        "revision": schema.revision,
        "head": schema.head,
        "fault": schema.fault,
        "rows": None,
        "oldest": None,
        "newest": None,
    }
    if schema.fault is None:
        summary = FeedbackStore(database).summary()
        data |= {"rows": summary.count, "oldest": _time(summary.oldest_ms), "newest": _time(summary.newest_ms)}
    return data


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _sentence(data: dict[str, Any]) -> str:
    if data["before"] == data["revision"]:
        return f"{data['database']}: the schema is {data['revision']}, there was nothing to do"
    return f"{data['database']}: the schema is {data['revision']}, it was {data['before'] or 'empty'}"


def _table(data: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in ("database", "revision", "rows", "oldest", "newest"):
        table.add_row(name, escape(str(data[name])) if data[name] is not None else "-")
    if data["fault"] is not None:
        table.add_row("fault", f"[red]{escape(data['fault'])}[/]")
    return table
