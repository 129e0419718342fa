"""Labelled texts in a CSV file: the columns text, and class_index or label."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.errors import InvalidContent
from app.optimize.evaluate import Sample

TEXT_COLUMN = "text"
_CLASS_COLUMNS = ("class_index", "label")


def find_texts(source: Path, labels: Sequence[str]) -> list[Sample]:
    """The rows of `source`, in their order. A class is named by its label or by its index.

    Raises InvalidContent with the line.
    """
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            samples = list(_read(source, csv.DictReader(file, strict=True), labels))
    except OSError as exc:
        raise InvalidContent(f"{source}: cannot be read ({exc.strerror}); it must be a CSV file of texts") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidContent(f"{source}: is not a CSV file in UTF-8 ({exc})") from exc
    if not samples:
        raise InvalidContent(f"{source}: holds no labelled texts: no line follows the first")
    return samples


def _read(source: Path, rows: csv.DictReader[str], labels: Sequence[str]) -> Iterator[Sample]:
    columns = rows.fieldnames or ()
    named = [column for column in _CLASS_COLUMNS if column in columns]
    if TEXT_COLUMN not in columns or len(named) != 1:
        raise InvalidContent(f"{source}: the first line must name the columns {TEXT_COLUMN}, and class_index or label")
    by_name = {label: index for index, label in enumerate(labels)}
    for row in rows:
        text, name = row[TEXT_COLUMN], row[named[0]] or ""
        index = by_name.get(name)
        if index is None and name.isascii() and name.isdigit() and int(name) < len(labels):
            index = int(name)
        if text is None or index is None:
            raise InvalidContent(
                f"{source}, line {rows.line_num}: {named[0]} {name!r} is neither a label nor in 0…{len(labels) - 1}"
            )
        yield Sample(source, index, text, rows.line_num)
