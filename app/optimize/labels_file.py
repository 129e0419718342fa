"""labels.csv of a folder of photos: which class each file is of."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from app.errors import InvalidContent

LABELS_FILE = "labels.csv"
_COLUMNS = ("filename", "class_index")


def read_labels(table: Path) -> Iterator[tuple[str, Path, str]]:
    """Of each line its place, the file (beside `table`, or below) and the cell with the class, which may be empty.

    Raises InvalidContent with the line.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = set(_COLUMNS) - set(rows.fieldnames or ())
            if missing:
                raise InvalidContent(f"{table}: lacks the column {sorted(missing)[0]!r}")
            for row in rows:
                place, name = f"{table}, line {rows.line_num}", row["filename"] or ""
                if not name or "\0" in name:
                    raise InvalidContent(f"{place}: filename {name!r} is that of no file")
                yield place, table.parent / name, row["class_index"] or ""
    except OSError as exc:
        raise InvalidContent(f"{table}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidContent(f"{table}: is not a CSV file in UTF-8 ({exc})") from exc
