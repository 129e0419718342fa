"""Inputs of a version one at a time, as tensors, with their right answers where these are known."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import InvalidContent
from app.optimize.baseline import find_inputs
from app.optimize.evaluate import find_samples
from app.optimize.texts import find_texts
from app.registry.servables.servable import Content, Servable
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec

CLASS_COLUMN = "class_index"


@dataclass(frozen=True, slots=True)
class Examples:
    """`data` names them. `read` gives one row of each input by its number, and raises InvalidContent and OSError.

    `classes` are the right answers, by the same numbers.
    """

    data: str
    count: int
    where: Callable[[int], str]
    read: Callable[[int], Tensors]
    classes: Sequence[int] | None = None


def find_examples(servable: Servable, source: Path) -> Examples:
    """Without answers: photos in a folder, or the rows of a CSV, .npy or .npz file; `read` refuses rows with missing
    numbers. Raises InvalidContent."""
    _check_inputs(servable)
    inputs = find_inputs(servable, source)

    def read(number: int) -> Tensors:
        _, content = inputs.read(number)
        if isinstance(content, Content):
            return servable.prepare("image", content.items[0])
        if any(array.dtype.kind == "f" and not np.all(np.isfinite(array)) for array in content.values()):
            raise InvalidContent("has a value that is missing or not finite")
        return content

    return Examples(source.resolve().name, len(inputs), inputs.where, read)


def find_labelled(servable: Servable, source: Path) -> Examples:
    """With the classes that are right. Raises InvalidContent with the file and line.

    Photos: a folder with labels.csv (filename, class_index) or one folder a class. Rows: a CSV file whose first line
    names a column class_index, or an .npz file with an array of that name beside the one with the rows. Texts: a CSV
    file with the columns text, and class_index or label.
    """
    if servable.kind != "text":
        _check_inputs(servable)
    if servable.classification is None:
        raise InvalidContent(f"{servable.name} is no classifier: there are no classes that could be right or wrong")
    labels = servable.classification.labels
    name = source.resolve().name
    if servable.kind != "tensor":
        samples = find_texts(source, labels) if servable.kind == "text" else find_samples(source, labels)
        return Examples(
            name,
            len(samples),
            lambda number: str(samples[number]),
            lambda number: servable.prepare(servable.kind, samples[number].read().items[0]),
            [sample.class_index for sample in samples],
        )
    spec = servable.input_specs[0]
    rows, classes = _read_csv(source) if source.suffix.lower() == ".csv" else _read_npz(source, spec)
    _check_rows(source, rows, classes, spec, len(labels))
    typed = rows.astype(NUMPY_DTYPES[spec.datatype])
    return Examples(
        name,
        len(typed),
        lambda number: f"{source}, row {number}",
        lambda number: {spec.name: typed[number : number + 1]},
        classes.tolist(),
    )


def pick(count: int, most: int, seed: int) -> list[int]:
    """`most` of `count` numbers at random, in ascending order; all where there are no more."""
    if count <= most:
        return list(range(count))
    return sorted(np.random.default_rng(seed).choice(count, most, replace=False).tolist())


def _check_inputs(servable: Servable) -> None:
    if len(servable.input_specs) != 1 or servable.input_specs[0].datatype == "BYTES" or servable.batch_axis is None:
        shown = ", ".join(map(str, servable.input_specs))
        raise InvalidContent(
            f"{servable.name} takes {shown}; this is for models of photos, or of one input of numbers, [rows, features]"
        )


def _read_csv(path: Path) -> tuple[Array, Array]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = [cells for cells in csv.reader(file) if cells] or [[]]
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidContent(f"{path}: is not a CSV file in UTF-8 ({exc})") from exc
    columns = [name.strip() for name in header]
    if columns.count(CLASS_COLUMN) != 1:
        raise InvalidContent(f"{path}: the first line must name the columns, one of them {CLASS_COLUMN}")
    try:
        table = np.array(lines, np.float64).reshape(len(lines), len(columns))
    except ValueError as exc:
        raise InvalidContent(f"{path}: each line after the first must have {len(columns)} numbers ({exc})") from exc
    at = columns.index(CLASS_COLUMN)
    return np.delete(table, at, axis=1), table[:, at]


def _read_npz(path: Path, spec: TensorSpec) -> tuple[Array, Array]:
    try:
        # numpy leaves a damaged archive open
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            names = () if isinstance(loaded, np.ndarray) else loaded.files
            missing = [name for name in (spec.name, CLASS_COLUMN) if name not in names]
            if not missing:
                return loaded[spec.name], loaded[CLASS_COLUMN]
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except Exception as exc:  # numpy, zipfile and zlib raise many classes for damaged files
        raise InvalidContent(f"{path}: is no .npz file or CSV of labelled rows ({exc})") from exc
    raise InvalidContent(f"{path}: has no array {missing[0]!r}; it needs {spec.name!r} and {CLASS_COLUMN!r}")


def _check_rows(path: Path, rows: Array, classes: Array, spec: TensorSpec, labels: int) -> None:
    if rows.ndim != 2 or rows.dtype.kind not in "biuf" or spec.shape[1:] not in ((-1,), rows.shape[1:]):
        shape = " × ".join(map(str, rows.shape))
        raise InvalidContent(f"{path}: holds {shape} of {rows.dtype}, but the model takes {spec}")
    if classes.shape != (len(rows),) or not len(rows):
        raise InvalidContent(f"{path}: must have rows, and one {CLASS_COLUMN} for each; it has {len(rows)} rows")
    if classes.dtype.kind not in "iuf" or not np.all(
        (classes >= 0) & (classes < labels) & (classes == np.floor(classes))
    ):
        raise InvalidContent(f"{path}: each {CLASS_COLUMN} must be a whole number in 0…{labels - 1}")
    with np.errstate(over="ignore", invalid="ignore"):
        typed = rows.astype(NUMPY_DTYPES[spec.datatype])
    if np.any(~np.isfinite(typed)) if typed.dtype.kind == "f" else np.any(typed != rows):
        raise InvalidContent(f"{path}: has values that {spec.datatype} cannot hold, or that are missing")
