"""Bins that a reference sample fixes, so that later rows can be counted and compared with it.

A row of counts has one slot a bin and, last, one for missing values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np

from app.errors import InvalidContent, RegistryError
from app.tensors import Array

BINS = 10
CLASSES = 20
_LARGEST_CLASS = 2**63 - 1
# nextafter(0) is subnormal, which a thread that flushes such numbers takes for 0.
_SMALLEST_STEP = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class ReferenceCounts:
    """Rows of the reference: `counts` of each bin, [bins], and how many are `missing`."""

    counts: tuple[int, ...]
    missing: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each bin in the rows that are not missing, [bins]; all 0 where all are."""
        total = sum(self.counts)
        return tuple(count / total if total else 0.0 for count in self.counts)

    @property
    def missing_share(self) -> float:
        """Of all rows."""
        return self.missing / (self.missing + sum(self.counts))


@dataclass(frozen=True, slots=True)
class Bins(ReferenceCounts):
    """Ten bins of a number, cut at the reference's deciles; NaN is missing.

    Bin i holds edges[i - 1] < value ≤ edges[i], closed above like Prometheus' `le`; the outer two are open. Edges are
    values of the sample. A value that is several deciles at once gets a bin of its own (its other edge is the number
    before it); where there are fewer than nine edges, the bins above the last are always empty, so that every feature
    has the same ten.
    """

    kind: ClassVar[str] = "number"

    edges: tuple[float, ...]

    @classmethod
    def of(cls, sample: Array) -> Self:
        """`sample` is [n], of numbers. Raises InvalidContent where n is 0."""
        values = np.asarray(sample, np.float64).ravel()
        if len(values) == 0:
            raise InvalidContent("bins need at least one row of the reference")
        edges = _decile_edges(np.sort(values[~np.isnan(values)]))
        *counts, missing = _count(_bin_numbers(edges, values), BINS + 1).tolist()
        return cls(tuple(counts), missing, edges)

    @classmethod
    def from_dict(cls, document: object, where: str) -> Self:
        """What `to_dict` gave. Raises RegistryError; `where` names the file and the field for it."""
        found = _mapping(document, {"edges", "counts", "missing"}, cls.kind, where)
        edges = tuple(_numbers(found["edges"], f"{where}.edges"))
        if len(edges) >= BINS or any(low >= high for low, high in pairwise(edges)):
            raise RegistryError(f"{where}.edges: must be at most {BINS - 1} numbers that rise")
        counts, missing = _counts(found, BINS, where)
        if any(counts[len(edges) + 1 :]):
            raise RegistryError(f"{where}.counts: bins above the last of the {len(edges)} edges hold nothing")
        return cls(counts, missing, edges)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"type": self.kind, "edges": list(self.edges), "counts": list(self.counts), "missing": self.missing}

    def index(self, values: Array) -> Array:
        """The bin of each value, 0…9, and 10 for NaN; of the shape of `values`."""
        return _bin_numbers(self.edges, np.asarray(values, np.float64))

    def count(self, values: Array) -> Array:
        """How many values are in each bin, and missing: [11]."""
        return _count(self.index(values), BINS + 1)


@dataclass(frozen=True, slots=True)
class ClassBins(ReferenceCounts):
    """One bin for each of the reference's 20 most frequent classes, then one for all others; below 0 is missing.

    `classes` is ordered by frequency, the lower index first where two are equal.
    """

    kind: ClassVar[str] = "class"

    classes: tuple[int, ...]

    @classmethod
    def of(cls, sample: Array) -> Self:
        """`sample` is [n], of class indices. Raises InvalidContent where n is 0."""
        values = np.asarray(sample, np.int64).ravel()
        if len(values) == 0:
            raise InvalidContent("bins need at least one row of the reference")
        found, counts = np.unique(values[values >= 0], return_counts=True)
        classes = found[np.argsort(-counts, kind="stable")][:CLASSES]
        *counted, missing = _count(_class_numbers(classes, values), len(classes) + 2).tolist()
        return cls(tuple(counted), missing, tuple(classes.tolist()))

    @classmethod
    def from_dict(cls, document: object, where: str) -> Self:
        """What `to_dict` gave. Raises RegistryError; `where` names the file and the field for it."""
        found = _mapping(document, {"classes", "counts", "missing"}, cls.kind, where)
        classes = tuple(_whole_numbers(found["classes"], f"{where}.classes"))
        if len(classes) > CLASSES or len(set(classes)) < len(classes):
            raise RegistryError(f"{where}.classes: must be at most {CLASSES} class indices, each once")
        counts, missing = _counts(found, len(classes) + 1, where)
        return cls(counts, missing, classes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"type": self.kind, "classes": list(self.classes), "counts": list(self.counts), "missing": self.missing}

    def index(self, values: Array) -> Array:
        """The bin of each class index: `len(classes)` for another class, one more for missing; of the same shape."""
        return _class_numbers(np.array(self.classes, np.int64), np.asarray(values, np.int64))

    def count(self, values: Array) -> Array:
        """How many values are in each bin, and missing: [classes + 2]."""
        return _count(self.index(values), len(self.classes) + 2)


def read_bins(document: object, where: str) -> Bins | ClassBins:
    """What `to_dict` of either kind gave. Raises RegistryError; `where` names the file and the field for it."""
    kind = document.get("type") if isinstance(document, Mapping) else None
    if kind == ClassBins.kind:
        return ClassBins.from_dict(document, where)
    return Bins.from_dict(document, where)


def _decile_edges(ordered: Array) -> tuple[float, ...]:
    """`ordered` rises and has no NaN."""
    n = len(ordered)
    if n == 0:
        return ()
    # The smallest value that at least k tenths of the sample do not exceed; never one between two values.
    deciles = ordered[[(k * n + BINS - 1) // BINS - 1 for k in range(1, BINS)]]
    values, repeats = np.unique(deciles, return_counts=True)
    own_bins = values[repeats > 1]
    below = np.minimum(np.nextafter(own_bins, -np.inf), own_bins - _SMALLEST_STEP)
    edges = np.union1d(values, below)
    return tuple(edges[np.isfinite(edges)].tolist())


def _bin_numbers(edges: Sequence[float], values: Array) -> Array:
    bins = np.searchsorted(np.array(edges, np.float64), values, side="left")
    return np.where(np.isnan(values), BINS, bins)


def _class_numbers(classes: Array, values: Array) -> Array:
    order = np.argsort(classes)
    # -1 stands for no class, so that there is one to look at where there are none.
    places = np.append(order, len(classes))
    near = places[np.searchsorted(classes[order], values)]
    bins = np.where(np.append(classes, -1)[near] == values, near, len(classes))
    return np.where(values < 0, len(classes) + 1, bins)


def _count(numbers: Array, slots: int) -> Array:
    return np.bincount(numbers.ravel(), minlength=slots)


def _mapping(document: object, keys: set[str], kind: str, where: str) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise RegistryError(f"{where}: must be an object with the keys {', '.join(sorted(keys | {'type'}))}")
    for problem, names in (("lacks", (keys | {"type"}) - set(document)), ("has", set(document) - keys - {"type"})):
        if names:
            key = min(map(str, names))
            raise RegistryError(f"{where}: {problem} the key {key!r}" + (", which is unknown" * (problem == "has")))
    if document["type"] != kind:
        raise RegistryError(f"{where}.type: must be {Bins.kind!r} or {ClassBins.kind!r}, not {document['type']!r}")
    return document


def _counts(found: Mapping[str, Any], length: int, where: str) -> tuple[tuple[int, ...], int]:
    counts = tuple(_whole_numbers(found["counts"], f"{where}.counts"))
    (missing,) = _whole_numbers([found["missing"]], f"{where}.missing")
    if len(counts) != length:
        raise RegistryError(f"{where}.counts: must be {length} whole numbers, not {len(counts)}")
    if sum(counts) + missing == 0:
        raise RegistryError(f"{where}.counts: a reference has at least one row")
    return counts, missing


def _numbers(values: object, where: str) -> list[float]:
    if not isinstance(values, list) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value) for value in values
    ):
        raise RegistryError(f"{where}: must be a list of finite numbers")
    return [float(value) for value in values]


def _whole_numbers(values: object, where: str) -> list[int]:
    if not isinstance(values, list) or not all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_CLASS for value in values
    ):
        raise RegistryError(f"{where}: must hold whole numbers from 0 on only")
    return values


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False
