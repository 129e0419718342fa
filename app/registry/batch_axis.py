"""Which rows of a model's tensors belong to whom: what may be put together for one run, and taken apart again.

A wrong guess would give one caller the answer of another, so what a version declares is tried before it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidTensor, RunFailed
from app.registry.manifest import Manifest
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec

# Kernels may add up in another order for other batch sizes; what is mixed up differs by far more.
_RELATIVE_DIFFERENCE = 1e-3

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
    """Whether the answer to a row depends on its neighbours: two trial rows together against each alone."""
    for make in (_random_values, _blank_values):
        pair = {
            spec.name: make(spec.datatype, _sizes((2, *spec.shape[1:]) if spec.name in axis.names else spec.shape))
            for spec in specs
        }
        try:
            alone = [run(axis.take(pair, number, number + 1)) for number in (0, 1)]
        except RunFailed:
            continue  # not every model takes any number: an index may be out of its range
        try:
            together = unstack(run(pair), (1, 1))
        except RunFailed:
            return True
        return not all(_is_close(one, two) for one, two in zip(together, alone, strict=True))
    return True


def _is_close(one: Tensors, two: Tensors) -> bool:
    return all(_equal(one[name], two[name]) for name in two)


def _equal(one: Array, two: Array) -> bool:
    if one.shape != two.shape:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, two))
    finite = np.abs(two[np.isfinite(two)])
    scale = float(finite.max()) if finite.size else 0.0
    return bool(
        np.allclose(one, two, rtol=_RELATIVE_DIFFERENCE, atol=_RELATIVE_DIFFERENCE * max(scale, 1e-6), equal_nan=True)
    )


def _sizes(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(1 if size == -1 else size for size in shape)


def _random_values(datatype: str, shape: tuple[int, ...]) -> Array:
    random = np.random.default_rng(0)
    if datatype == "BYTES":
        return np.asarray(random.choice(np.array([b"a", b"bc"], dtype=object), size=shape), dtype=object)
    dtype = NUMPY_DTYPES[datatype]
    values = random.normal(size=shape) if dtype.kind == "f" else random.integers(0, 2, size=shape)
    return np.asarray(values).astype(dtype)


def _blank_values(datatype: str, shape: tuple[int, ...]) -> Array:
    return np.full(shape, b"", dtype=object) if datatype == "BYTES" else np.zeros(shape, NUMPY_DTYPES[datatype])
