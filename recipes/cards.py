"""Model cards: README.md of a version, written from what was measured."""

from __future__ import annotations

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


def write_card(path: Path, **facts: object) -> None:
    """Fill CARD; `measured` is a list of (what, figure), written as a table; `bytes` those of the model file."""
    if "bytes" in facts:
        facts["model"] = f"Model file | {facts.pop('bytes'):,} bytes"
    rows = facts.pop("measured")
    assert isinstance(rows, list)
    lines = ["| what | figure |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows)]
    path.write_text(CARD.format(measured="\n".join(lines), **facts), encoding="utf-8")
