"""Inputs to learn from, all of them, with the right answers of those that have one; and some of these held out."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.errors import InvalidContent
from app.optimize.evaluate import IMAGE_SUFFIXES
from app.optimize.examples import CLASS_COLUMN, Examples, find_examples
from app.optimize.labels_file import LABELS_FILE, read_labels
from app.registry.servables.servable import Servable
from app.tensors import NUMPY_DTYPES, Array, TensorSpec

UNKNOWN = -1
# One of so many labelled inputs of a class is held out, where there are as many.
_HELD_OUT = 5


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of inputs, in order. `held_out` have a label, and are not learnt from."""

    learnt: tuple[int, ...]
    held_out: tuple[int, ...]


def find_partly_labelled(servable: Servable, source: Path) -> Examples:
    """Every input in `source`; `classes` has UNKNOWN where the right answer is not known.

    Photos: a folder. Labels come from its labels.csv (filename, class_index), which need not list all; without it from
    folders named like a label or a class index, and photos beside those folders have none. Rows: a CSV file whose
    column class_index may have empty cells; an .npz file whose array class_index may have -1; without it, and in a .npy
    file, none has a label. Raises InvalidContent with the file and line.
    """
    if servable.classification is None:
        raise InvalidContent(f"{servable.name} is no classifier: it has no classes that a student could be taught")
    labels = servable.classification.labels
    if servable.kind == "image":
        return _find_photos(servable, source, labels)
    suffix = source.suffix.lower()
    if suffix == ".csv" and _has_column(source):
        return _read_csv(source, servable.input_specs[0], len(labels))
    plain = find_examples(servable, source)
    classes = _read_classes(source, len(labels), plain.count) if suffix == ".npz" else None
    return replace(plain, classes=[UNKNOWN] * plain.count if classes is None else classes)


def split(classes: Sequence[int], seed: int) -> Split:
    """A fifth of the labelled inputs of each class held out, drawn by `seed`; of fewer than five of a class none."""
    generator = np.random.default_rng(seed)
    known = np.array(classes)
    held_out: list[int] = []
    for index in sorted({one for one in classes if one != UNKNOWN}):
        of_class = generator.permutation(np.flatnonzero(known == index))
        held_out += of_class[: len(of_class) // _HELD_OUT].tolist()
    left = sorted(set(range(len(classes))) - set(held_out))
    return Split(tuple(left), tuple(sorted(held_out)))


def select(examples: Examples, numbers: Sequence[int], data: str) -> Examples:
    """Some of them, under a name of their own."""
    classes = examples.classes
    return Examples(
        data,
        len(numbers),
        lambda number: examples.where(numbers[number]),
        lambda number: examples.read(numbers[number]),
        [classes[number] for number in numbers] if classes is not None else None,
    )


def _find_photos(servable: Servable, folder: Path, labels: Sequence[str]) -> Examples:
    if not folder.is_dir():
        raise InvalidContent(f"{folder}: is not a folder of images")
    paths = sorted(
        Path(os.path.normpath(path))
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise InvalidContent(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    table = folder / LABELS_FILE
    classes = _classes_of_table(table, paths, len(labels)) if table.is_file() else _classes_of_folders(paths, labels)
    return Examples(
        folder.resolve().name,
        len(paths),
        lambda number: str(paths[number]),
        lambda number: servable.prepare("image", paths[number].read_bytes()),
        classes,
    )


def _classes_of_table(table: Path, paths: Sequence[Path], count: int) -> list[int]:
    known: dict[Path, int] = {}
    found = set(paths)
    for place, named, cell in read_labels(table):
        path = Path(os.path.normpath(named))
        if path not in found:
            raise InvalidContent(f"{place}: there is no image {path}")
        known[path] = _class_index(place, cell, count)
    return [known.get(path, UNKNOWN) for path in paths]


def _classes_of_folders(paths: Sequence[Path], labels: Sequence[str]) -> list[int]:
    """Of folders that have the name of a label, as `headway evaluate` reads them; those of others have no label."""
    by_name = {str(index): index for index in range(len(labels))} | {label: at for at, label in enumerate(labels)}
    return [by_name.get(path.parent.name, UNKNOWN) for path in paths]


def _class_index(place: str, cell: str, count: int) -> int:
    """An empty cell, or -1, is UNKNOWN."""
    text = cell.strip()
    if text in ("", str(UNKNOWN)):
        return UNKNOWN
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 <= value < count or value != int(value):
        raise InvalidContent(f"{place}: {CLASS_COLUMN} {cell!r} is not in 0…{count - 1}; leave it empty if not known")
    return int(value)


def _has_column(path: Path) -> bool:
    return CLASS_COLUMN in [name.strip() for name in _read_lines(path)[0]]


def _read_lines(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.reader(file)) or [[]]
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidContent(f"{path}: is not a CSV file in UTF-8 ({exc})") from exc


def _read_csv(path: Path, spec: TensorSpec, count: int) -> Examples:
    header, *lines = _read_lines(path)
    at = [name.strip() for name in header].index(CLASS_COLUMN)
    rows, classes, places = [], [], []
    for number, cells in enumerate(lines, 2):
        if not cells:
            continue
        place = f"{path}, line {number}"
        if len(cells) != len(header):
            raise InvalidContent(f"{place}: has {len(cells)} cells, not {len(header)} as the first line")
        classes.append(_class_index(place, cells[at], count))
        rows.append(_numbers(place, [*cells[:at], *cells[at + 1 :]], spec))
        places.append(place)
    if not rows or spec.shape[1:] not in ((-1,), rows[0].shape[1:]):
        raise InvalidContent(f"{path}: holds {len(rows)} rows of {len(header) - 1} numbers, but the model takes {spec}")
    return Examples(
        path.resolve().name,
        len(rows),
        lambda number: places[number],
        lambda number: {spec.name: rows[number]},
        classes,
    )


def _numbers(place: str, cells: Sequence[str], spec: TensorSpec) -> Array:
    """[1, features] in the datatype of the model, which must hold them."""
    try:
        row = np.array([cells], np.float64)
    except ValueError as exc:
        raise InvalidContent(f"{place}: {exc}; each cell must be a number") from exc
    with np.errstate(over="ignore", invalid="ignore"):
        typed = row.astype(NUMPY_DTYPES[spec.datatype])
    if np.any(~np.isfinite(typed)) if typed.dtype.kind == "f" else np.any(typed != row):
        raise InvalidContent(f"{place}: has a value that {spec.datatype} cannot hold, or that is missing")
    return typed


def _read_classes(path: Path, count: int, rows: int) -> list[int] | None:
    """The array class_index of a file of rows, where it has one."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if CLASS_COLUMN not in arrays.files:
            return None
        classes: Array = arrays[CLASS_COLUMN]
    if classes.shape != (rows,):
        raise InvalidContent(f"{path}: has {rows} rows that can be used, and {classes.size} of {CLASS_COLUMN}")
    if classes.dtype.kind not in "iuf" or not np.all(
        (classes >= UNKNOWN) & (classes < count) & (classes == np.trunc(classes))
    ):
        raise InvalidContent(f"{path}: each {CLASS_COLUMN} must be in 0…{count - 1}, or {UNKNOWN} where not known")
    return [int(one) for one in classes]
