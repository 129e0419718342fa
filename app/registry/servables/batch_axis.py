"""Which rows of a model's tensors belong to whom: what may be put together for one run, and taken apart again.

A wrong guess would give one caller the answer of another, so what a version declares is tried before it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidTensor, RunFailed
from app.registry.manifest import Manifest
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec, object_array

RunTensors = Callable[[Tensors], Tensors]


@dataclass(frozen=True, slots=True)
class BatchAxis:
    """The first axis of the inputs `names` and of every output. `is_one`: the file takes exactly one row a run."""

    names: tuple[str, ...]
    is_one: bool

    @classmethod
    def of(cls, manifest: Manifest) -> BatchAxis | None:
        """What the shapes say; None for a model that is called once for each call."""
        batched = [entry for entry in manifest.inputs if entry.batched]
        sizes = {entry.shape[:1] for entry in (*batched, *manifest.outputs)}
        if manifest.batch.axis is None or not batched or sizes not in ({(-1,)}, {(1,)}):
            return None
        return cls(tuple(entry.name for entry in batched), sizes == {(1,)})

    def free(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """What callers may send: any number of rows, also where the file takes one at a time."""
        return tuple(
            TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:])) if spec.name in self.names else spec
            for spec in specs
        )

    def has_free_size(self, specs: Sequence[TensorSpec]) -> bool:
        """Besides the rows."""
        return any(-1 in spec.shape[1 if spec.name in self.names else 0 :] for spec in specs)

    def count(self, tensors: Tensors) -> int:
        """Raises InvalidTensor where the inputs do not agree."""
        if len(self.names) == 1:
            return len(tensors[self.names[0]])
        counts = {name: len(tensors[name]) for name in self.names}
        if len(set(counts.values())) > 1:
            text = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
            raise InvalidTensor(f"the inputs must have the same number of rows: {text}")
        return counts[self.names[0]]

    def take(self, tensors: Tensors, first: int, last: int) -> Tensors:
        """Rows from `first` up to, without, `last`; views."""
        return {name: array[first:last] if name in self.names else array for name, array in tensors.items()}

    def stack(self, parts: Sequence[Tensors]) -> Tensors:
        """All rows one after the other. Inputs without rows are taken from the first part."""
        return {
            name: np.concatenate([part[name] for part in parts]) if name in self.names else array
            for name, array in parts[0].items()
        }


def unstack(outputs: Tensors, counts: Sequence[int]) -> list[Tensors]:
    """Cut the outputs of one run into those of `counts` rows each. Raises RunFailed where there are not so many."""
    total = sum(counts)
    wrong = [name for name, array in outputs.items() if array.shape[:1] != (total,)]
    if wrong:
        raise RunFailed(f"output {wrong[0]!r} has not one row for each of the {total} of the input")
    ends = np.cumsum(counts).tolist()
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for end, count in zip(ends, counts, strict=True)
    ]


def join(parts: Sequence[Tensors]) -> Tensors:
    """The outputs of rows that were run apart, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def mixes_rows(axis: BatchAxis, specs: Sequence[TensorSpec], run: RunTensors) -> bool:
    """Whether the answer to a row depends on its neighbours: trial rows together against each alone.

    Also where no trial tells, because the model takes none of them.
    """
    has_told = False
    for trial in _TRIALS:
        for free_size in (trial.free_size, 1) if axis.has_free_size(specs) else (1,):
            outcome = _try(trial, free_size, axis, specs, run)
            if outcome:
                return True
            if outcome is not None:
                has_told = True
                break
    return not has_told


@dataclass(frozen=True, slots=True)
class _Trial:
    """Whole numbers from 0 up to, without, `below`, also of floats; with None 0 and 1, and floats from the normal
    distribution. `free_size` is that of the sizes that neither the file gives nor the rows.

    `tolerance` is for floats, as a share of the largest. For another number of rows another kernel may add up in
    another order, and a network in 8 bits round a large number to the next step; what is mixed up differs by more.
    """

    below: int | None
    words: Sequence[bytes]
    free_size: int
    tolerance: float

    def values(self, datatype: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
        if datatype == "BYTES":
            numbers = random.integers(0, len(self.words), size=shape).reshape(-1).tolist()
            return object_array([self.words[number] for number in numbers], shape)
        dtype = NUMPY_DTYPES[datatype]
        if dtype.kind == "f" and self.below is None:
            return np.asarray(random.normal(size=shape)).astype(dtype)
        most = 2 if dtype.kind == "b" else np.iinfo(dtype).max if dtype.kind in "iu" else self.below or 2
        return np.asarray(random.integers(0, min(self.below or 2, most), size=shape)).astype(dtype)


_TRIALS = (
    _Trial(None, (b"a", b"bc"), 1, 1e-3),
    _Trial(10, [b"%d" % number for number in range(10)], 3, 2e-2),
    _Trial(100, b"good bad a the one 1 film cat dog 7 never more".split(), 2, 2e-2),
)
# Each row has two neighbours, and few orders of three are sorted.
_TRIAL_ROWS = 3
_ATTEMPTS = 50


def _try(trial: _Trial, free_size: int, axis: BatchAxis, specs: Sequence[TensorSpec], run: RunTensors) -> bool | None:
    """Whether the trial shows a difference; None where it cannot, or where the model does not take its rows."""
    rows, different = _trial_rows(trial, free_size, axis, specs)
    if different == 1:
        return None
    try:
        alone = [run(axis.take(rows, number, number + 1)) for number in range(_TRIAL_ROWS)]
    except RunFailed:
        return None
    try:
        together = unstack(run(rows), (1,) * _TRIAL_ROWS)
    except RunFailed:
        return True
    return not all(_is_close(one, two, trial.tolerance) for one, two in zip(together, alone, strict=True))


def _trial_rows(trial: _Trial, free_size: int, axis: BatchAxis, specs: Sequence[TensorSpec]) -> tuple[Tensors, int]:
    """And how many of them differ: as many as can be, where a row has few possible values."""
    best: tuple[Tensors, int] = {}, 0
    for seed in range(_ATTEMPTS):
        random = np.random.default_rng(seed)
        drawn = {}
        for spec in specs:
            shape = (_TRIAL_ROWS, *spec.shape[1:]) if spec.name in axis.names else spec.shape
            sizes = tuple(free_size if size == -1 else size for size in shape)
            drawn[spec.name] = trial.values(spec.datatype, sizes, random)
        different = len({tuple(_key(drawn[name][row]) for name in axis.names) for row in range(_TRIAL_ROWS)})
        if different > best[1]:
            best = drawn, different
        if different == _TRIAL_ROWS:
            break
    return best


def _key(row: Array) -> Hashable:
    row = np.asarray(row)
    return tuple(row.reshape(-1).tolist()) if row.dtype.kind == "O" else row.tobytes()


def _is_close(one: Tensors, two: Tensors, tolerance: float) -> bool:
    return all(_equal(one[name], two[name], tolerance) for name in two)


def _equal(one: Array, two: Array, tolerance: float) -> bool:
    if one.shape != two.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, two))
    finite = np.abs(two[np.isfinite(two)])
    scale = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(one, two, rtol=tolerance, atol=tolerance * max(scale, 1e-6), equal_nan=True))
