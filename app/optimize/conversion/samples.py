"""Inputs to hold a converted network against its source, and how far the two are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import InvalidContent
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec, object_array, shape_matches

# Rows together and one alone: what is mixed up between rows shows.
_ROWS = (16, 1)
_FIXED_RUNS = 4
# Of sizes other than the rows that are left free.
_FREE_SIZE = 8
_WORDS = ("a", "good", "bad", "film", "not", "very", "the", "7", "GREAT", "Été")


@dataclass(frozen=True, slots=True)
class Samples:
    """`runs` are the inputs of one call each; `data` names them."""

    data: str
    runs: Sequence[Tensors]


@dataclass(frozen=True, slots=True)
class Agreement:
    """`largest` is |source - result| of any value of any output, `output` the one it is in; infinite where one of them
    is not a number. `other_top1` of `rows` have another class first."""

    rows: int
    largest: float
    output: str
    other_top1: int

    def __str__(self) -> str:
        top1 = "same top-1" if not self.other_top1 else f"another top-1 for {self.other_top1}"
        return f"largest difference from the source {self.largest:.2g} (of {self.output!r}), {top1}"


def random_samples(specs: Sequence[TensorSpec], seed: int) -> Samples:
    """Standard normal floats, all bytes for 8 bits, 0 and 1 for other integers (any index bears these), and words.

    Raises InvalidContent where an input is too large for the memory.
    """
    random = np.random.default_rng(seed)
    if all(spec.shape[:1] == (-1,) for spec in specs):
        counts: Sequence[int] = _ROWS
    else:
        counts = (1,) * _FIXED_RUNS
    try:
        runs = [{spec.name: _values(spec, count, random) for spec in specs} for count in counts]
    except (MemoryError, ValueError) as exc:  # ValueError: more than numpy can count
        raise InvalidContent(f"random rows of {', '.join(map(str, specs))} cannot be made: {exc}") from exc
    rows = sum(_rows(run) for run in runs)
    return Samples(f"{rows} random rows, seed {seed}", runs)


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name; of an .npy file one without a name. Raises InvalidContent."""
    try:
        with path.open("rb") as file:  # numpy leaves a damaged archive open
            found = np.load(file, allow_pickle=False)
            return {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except Exception as exc:  # numpy, zipfile and zlib raise many classes for damaged files
        raise InvalidContent(f"{path}: is no .npy or .npz file of samples ({exc})") from exc


def given_samples(path: Path, arrays: Tensors, specs: Sequence[TensorSpec]) -> Samples:
    """One run of all rows where the inputs take any number, else runs of the size that they take. Raises InvalidContent
    where the arrays do not fit."""
    if set(arrays) == {""} and len(specs) == 1:
        arrays = {specs[0].name: arrays[""]}
    cast = {spec.name: _fitted(path, arrays, spec) for spec in specs}
    counts = {len(array) for array in cast.values() if array.ndim}
    if len(counts) > 1 or 0 in counts:
        raise InvalidContent(f"{path}: the arrays must have the same number of rows, at least one")
    fixed = max((spec.shape[0] for spec in specs if spec.shape), default=-1)
    count = max(counts, default=1)
    if fixed == -1:
        return Samples(f"{count} rows of {path.name}", [cast])
    cuts = range(0, count - fixed + 1, fixed)
    return Samples(
        f"{len(cuts) * fixed} rows of {path.name}", [{k: a[i : i + fixed] for k, a in cast.items()} for i in cuts]
    )


def compare(
    samples: Samples, of_source: Callable[[Tensors], Tensors], of_result: Callable[[Tensors], Tensors]
) -> Agreement:
    """Raises InvalidContent where the outputs do not have the same names and shapes."""
    rows, other, worst = 0, 0, (-1.0, "")
    for run in samples.runs:
        expected, found = of_source(run), of_result(run)
        if set(expected) != set(found):
            raise InvalidContent(f"the outputs are {', '.join(found)}, and those of the source {', '.join(expected)}")
        rows += _rows(run)
        wrong: set[int] = set()
        for name, wanted in expected.items():
            got = found[name]
            if got.shape == (*wanted.shape, 1):
                got = got[..., 0]  # one number a row: a column in ONNX, and none in scikit-learn
            if wanted.shape != got.shape:
                raise InvalidContent(
                    f"output {name!r} has the shape {list(got.shape)}, and {list(wanted.shape)} in the source"
                )
            worst = max(worst, (_largest(wanted, got), name))
            wrong |= set(_other_top1(wanted, got))
        other += len(wrong)
    return Agreement(rows, worst[0], worst[1], other)


def by_rows(run: Callable[[Tensors], Tensors], specs: Sequence[TensorSpec]) -> Callable[[Tensors], Tensors]:
    """`run`, one row after the other where the file takes just one."""
    if any(spec.shape[:1] != (1,) for spec in specs):
        return run

    def each(tensors: Tensors) -> Tensors:
        answers = [run({name: array[i : i + 1] for name, array in tensors.items()}) for i in range(_rows(tensors))]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    return each


def _rows(tensors: Tensors) -> int:
    return max((len(array) for array in tensors.values() if array.ndim), default=1)


def _values(spec: TensorSpec, count: int, random: np.random.Generator) -> Array:
    free = [count, *[_FREE_SIZE] * len(spec.shape)]
    shape = tuple(free[axis] if size == -1 else size for axis, size in enumerate(spec.shape))
    if spec.datatype == "BYTES":
        words = random.choice(_WORDS, size=(int(np.prod(shape)), 6))
        return object_array((" ".join(row).encode() for row in words), shape)
    dtype = NUMPY_DTYPES[spec.datatype]
    if dtype.kind == "f":
        return np.asarray(random.standard_normal(shape)).astype(dtype)
    return np.asarray(random.integers(0, 256 if spec.datatype == "UINT8" else 2, shape)).astype(dtype)


def _fitted(path: Path, arrays: Tensors, spec: TensorSpec) -> Array:
    if spec.name not in arrays:
        raise InvalidContent(f"{path}: has no array {spec.name!r}; the input is {spec}")
    array = arrays[spec.name]
    wanted = NUMPY_DTYPES[spec.datatype]
    if spec.datatype == "BYTES" and array.dtype.kind in "US":
        array = object_array((text.encode() if isinstance(text, str) else text for text in array.ravel()), array.shape)
    elif array.dtype != wanted and (spec.datatype == "BYTES" or not np.can_cast(array.dtype, wanted, "same_kind")):
        raise InvalidContent(f"{path}: {spec.name!r} is of {array.dtype}; the input is {spec}")
    if not shape_matches((-1, *spec.shape[1:]) if spec.shape else (), array.shape):
        raise InvalidContent(f"{path}: {spec.name!r} has the shape {list(array.shape)}; the input is {spec}")
    return array if array.dtype == wanted else array.astype(wanted)


def _largest(wanted: Array, got: Array) -> float:
    if wanted.dtype.kind not in "fiub" or got.dtype.kind not in "fiub":
        return 0.0 if [_text(one) for one in wanted.ravel()] == [_text(one) for one in got.ravel()] else float("inf")
    if not wanted.size:
        return 0.0
    one, two = wanted.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less itself
        apart = np.where((one == two) | (np.isnan(one) & np.isnan(two)), 0.0, np.abs(one - two))
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _other_top1(wanted: Array, got: Array) -> Iterator[int]:
    """Rows whose highest score is not one of the highest of the source."""
    if wanted.dtype.kind != "f" or wanted.ndim < 2 or wanted.shape[-1] < 2 or not wanted.size:
        return
    chosen = np.take_along_axis(wanted, got.argmax(-1)[..., None], -1)[..., 0]
    worse = chosen < wanted.max(-1)
    yield from np.flatnonzero(worse.reshape(len(wanted), -1).any(1)).tolist()


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
