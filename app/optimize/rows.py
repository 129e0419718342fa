"""Rows of numbers as reference data: a CSV, .npy or .npz file, in the datatype that a model takes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from app.errors import InvalidContent
from app.registry.baseline import MAX_FEATURES, is_name
from app.registry.servables.servable import Servable
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec

SUFFIXES = (".csv", ".npy", ".npz")
# From here on FP64 no longer has every whole number.
_EXACT = 2**53


class Rows:
    """`rows` is [n, columns] of the model's datatype; `places` say where each one stood."""

    def __init__(
        self, spec: TensorSpec, names: Sequence[str], rows: Array, places: Sequence[str], skipped: Sequence[str]
    ) -> None:
        self.names = tuple(names)
        self.skipped = tuple(skipped)
        self._input = spec.name
        self._rows = rows
        self._places = places

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, number: int) -> str:
        return self._places[number]

    def read(self, number: int) -> tuple[Sequence[float], Tensors]:
        row = self._rows[number]
        return row[:MAX_FEATURES].astype(np.float64).tolist(), {self._input: row[np.newaxis]}


def find_rows(servable: Servable, path: Path) -> Rows:
    """The rows of a file. Raises InvalidContent for a file, and for a model, that is not of rows of numbers."""
    spec = _row_spec(servable)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or not path.is_file():
        raise InvalidContent(
            f"{path}: is no file of rows; {servable.name} takes numbers: name a {', '.join(SUFFIXES)} file"
        )
    return _read_csv(path, spec) if suffix == ".csv" else _read_array(path, spec)


def _row_spec(servable: Servable) -> TensorSpec:
    """The one input of a model of rows of numbers."""
    specs = servable.input_specs
    if len(specs) != 1 or len(specs[0].shape) != 2 or specs[0].datatype == "BYTES" or servable.batch_axis is None:
        shown = ", ".join(map(str, specs))
        raise InvalidContent(
            f"{servable.name} takes {shown}; this is for models of photos, or of one input of numbers, "
            "[rows, features], each row of which is answered for itself"
        )
    return specs[0]


def _read_csv(path: Path, spec: TensorSpec) -> Rows:
    """A first line that is not all numbers names the features. An empty cell is NaN: missing."""
    names: list[str] = []
    values, places, skipped = [], [], []
    for line, cells in _csv_lines(path):
        numbers = [_number(cell) for cell in cells]
        if not names:
            is_header = None in numbers
            names = _header(path, cells) if is_header else [f"{spec.name}[{number}]" for number in range(len(cells))]
            _check_columns(path, len(names), spec)
            if is_header:
                continue
        place = f"{path}, line {line}"
        if len(cells) != len(names):
            skipped.append(f"{place}: has {len(cells)} cells, not {len(names)}")
        elif None in numbers:
            skipped.append(f"{place}: {cells[numbers.index(None)]!r} is not a number")
        else:
            values.append(np.array(numbers, np.float64))
            places.append(place)
    return _fit(spec, names, np.array(values).reshape(len(values), len(names)), places, skipped)


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each line that is not empty, and its cells."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidContent(f"{path}: is not a CSV file in UTF-8 ({exc})") from exc


def _number(cell: str) -> float | None:
    if not cell.strip():
        return float("nan")
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if not is_name(name) or names.count(name) > 1:
            raise InvalidContent(
                f"{path}: the first line names the features, each once and with 1 to 128 visible characters; "
                f"it says {name!r}"
            )
    return names


def _read_array(path: Path, spec: TensorSpec) -> Rows:
    """An .npz file holds one array, or one of the input's name."""
    try:
        with path.open("rb") as file:  # numpy leaves a damaged archive open
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                names = [spec.name] if spec.name in loaded.files else loaded.files
                loaded = loaded[names[0]] if len(names) == 1 else None
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except Exception as exc:  # numpy, zipfile and zlib raise many classes for damaged files
        raise InvalidContent(f"{path}: is no array of numbers that can be read ({exc})") from exc
    if loaded is None:
        raise InvalidContent(f"{path}: holds several arrays, or none; call the one with the rows {spec.name!r}")
    if loaded.ndim != 2 or loaded.dtype.kind not in "biuf":
        shape = " × ".join(map(str, loaded.shape))
        raise InvalidContent(f"{path}: must hold numbers, [rows, features]; it holds {shape} of {loaded.dtype}")
    columns = loaded.shape[1]
    _check_columns(path, columns, spec)
    names = [f"{spec.name}[{number}]" for number in range(columns)]
    return _fit(spec, names, loaded, [f"{path}, row {number}" for number in range(len(loaded))], [])


def _check_columns(path: Path, columns: int, spec: TensorSpec) -> None:
    wanted = spec.shape[1]
    if wanted not in (-1, columns) or columns == 0:
        raise InvalidContent(
            f"{path}: has {columns} columns, and the model takes {wanted} numbers a row; leave out what is none of "
            "them, as the labels"
        )


def _fit(spec: TensorSpec, names: Sequence[str], raw: Array, places: Sequence[str], skipped: Sequence[str]) -> Rows:
    """Rows in the model's datatype, without those that it cannot hold. NaN stays where it can be: missing."""
    dtype = NUMPY_DTYPES[spec.datatype]
    raw = raw.astype(np.float64 if raw.dtype.kind == "f" else np.uint8 if raw.dtype.kind == "b" else raw.dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            rows = raw.astype(dtype)
        good = ~np.isinf(rows)
    else:
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        good = (raw >= low) & (raw <= high)
        if raw.dtype.kind == "f":
            good &= (raw == np.trunc(raw)) & (np.abs(raw) <= _EXACT)
        rows = np.where(good, raw, 0).astype(dtype)
    is_good = good.all(axis=1)
    bad = [
        f"{place}: has a value that {spec.datatype} cannot hold"
        for place, one in zip(places, is_good, strict=True)
        if not one
    ]
    kept = [place for place, one in zip(places, is_good, strict=True) if one]
    return Rows(spec, names, rows[is_good], kept, [*skipped, *bad])
