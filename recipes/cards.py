"""Model cards: README.md of a version, written from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CARD = """# {name} {version}

{summary}

| | |
| --- | --- |
| Task | {task} |
| Input | {input} |
| Output | {output} |
| Licence | {licence} |
| Made by | {recipe} |
| {model} |

## Measured
{measured}

## Made from
{origin}

## Intended use and limits
{limits}
"""
_OF_PARENT = "## Card of the parent"

Rows = Sequence[tuple[str, object]]


def write_card(path: Path, **facts: object) -> None:
    """Fill CARD; `measured` is a list of (what, figure), written as a table; `bytes` those of the model file."""
    if "bytes" in facts:
        facts["model"] = f"Model file | {facts.pop('bytes'):,} bytes"
    rows = facts.pop("measured")
    assert isinstance(rows, list)
    path.write_text(CARD.format(measured=_table(rows), **facts), encoding="utf-8")


def add_section(path: Path, heading: str, rows: Rows) -> None:
    """Put a table before the parent's card in the card of a version that a command has made from it."""
    own, parent, rest = path.read_text(encoding="utf-8").partition(_OF_PARENT)
    path.write_text(f"{own}## {heading}\n{_table(rows)}\n\n{parent}{rest}", encoding="utf-8")


def _table(rows: Rows) -> str:
    return "\n".join(["| what | figure |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows)])
