"""Bins: the reference's deciles against numpy, ties, missing values, and what baseline files may hold."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.errors import InvalidContent, RegistryError
from app.monitoring.binning import BINS, CLASSES, Bins, ClassBins, read_bins

Array = npt.NDArray[Any]
WHERE = "baseline.json: features.brightness"
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-3, 3).map(float) | st.just(0.0)
samples = arrays(np.float64, st.integers(1, 60), elements=numbers)
random_examples = settings(max_examples=300, deadline=None, database=None, derandomize=True)


def test_edges_are_the_deciles() -> None:
    sample = np.random.default_rng(1).normal(size=1234)
    bins = Bins.of(sample)
    assert bins.edges == tuple(np.quantile(sample, np.arange(1, 10) / 10, method="inverted_cdf"))
    assert (sum(bins.counts), bins.missing, bins.missing_share) == (1234, 0, 0.0)
    assert bins.shares == pytest.approx([0.1] * 10, abs=0.001)


@random_examples
@given(samples)
def test_every_value_is_in_its_bin(sample: Array) -> None:
    bins = Bins.of(sample)
    edges = (-math.inf, *bins.edges, math.inf)
    for value, found in zip(sample.tolist(), bins.index(sample).tolist(), strict=True):
        if math.isnan(value):
            assert found == BINS
        else:
            assert edges[found] < value <= edges[found + 1] or (found == 0 and value == -math.inf)
    assert all(math.isfinite(edge) for edge in bins.edges)
    assert [*bins.counts, bins.missing] == bins.count(sample).tolist()
    assert len(bins.counts) == BINS
    assert sum(bins.shares) == pytest.approx(0.0 if bins.missing == len(sample) else 1.0)


@random_examples
@given(samples)
def test_bins_survive_json(sample: Array) -> None:
    bins = Bins.of(sample)
    assert read_bins(json.loads(json.dumps(bins.to_dict(), allow_nan=False)), WHERE) == bins


@random_examples
@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32)))
def test_single_precision_is_counted_as_it_was(sample: Array) -> None:
    bins = Bins.of(sample)
    assert [*bins.counts, bins.missing] == bins.count(sample).tolist()


@pytest.mark.parametrize("value", [0.0, -0.0, 7.0, -1e300, 5e-324, 0.1])
def test_constant_has_a_bin_of_its_own(value: float) -> None:
    """So that a change to either side is seen."""
    bins = Bins.of(np.full(50, value))
    assert bins.counts == (0, 50, 0, 0, 0, 0, 0, 0, 0, 0)
    assert bins.index(np.array([value - abs(value) / 2 - 1, value, value + abs(value) / 2 + 1])).tolist() == [0, 1, 2]


def test_frequent_values_have_bins_of_their_own() -> None:
    bins = Bins.of(np.repeat([0.0, 1.0], [60, 40]))
    assert bins.index(np.array([-1, 0, 0.5, 1, 2])).tolist() == [0, 1, 2, 3, 4]
    assert bins.counts == (0, 60, 0, 40, 0, 0, 0, 0, 0, 0)
    half_zero = Bins.of(np.concatenate([np.zeros(500), np.random.default_rng(3).random(500) + 1]))
    assert half_zero.counts[:2] == (0, 500)
    assert half_zero.shares[2:6] == pytest.approx([0.1] * 4)


def test_few_rows_are_taken() -> None:
    assert Bins.of(np.array([3.0])).counts[1] == 1
    assert Bins.of(np.array([True, False, True])).counts == (0, 1, 0, 2, 0, 0, 0, 0, 0, 0)


def test_missing_values_are_counted_apart() -> None:
    bins = Bins.of(np.array([np.nan, 1.0, 2.0, np.nan]))
    assert (bins.missing, bins.missing_share, sum(bins.counts)) == (2, 0.5, 2)
    nothing = Bins.of(np.array([np.nan]))
    assert (nothing.edges, nothing.missing_share, set(nothing.shares)) == ((), 1.0, {0.0})
    assert nothing.count(np.array([5.0, np.nan])).tolist() == [1, *[0] * 9, 1]


def test_infinite_values_are_in_the_outer_bins() -> None:
    bins = Bins.of(np.arange(100.0))
    assert bins.index(np.array([-np.inf, np.inf])).tolist() == [0, 9]
    assert Bins.of(np.full(5, np.inf)).edges == (np.finfo(np.float64).max,)
    assert Bins.of(np.full(5, -np.inf)).edges == ()


def test_index_keeps_the_shape() -> None:
    assert Bins.of(np.arange(100.0)).index(np.zeros((2, 3))).shape == (2, 3)
    assert ClassBins.of(np.arange(100)).index(np.zeros((2, 3), np.int64)).shape == (2, 3)
    assert Bins.of(np.arange(100.0)).count(np.empty(0)).tolist() == [0] * 11


def test_class_bins_are_the_most_frequent() -> None:
    sample = np.concatenate([np.repeat(np.arange(30) * 10, np.arange(30) + 1), [-1, -1]])
    bins = ClassBins.of(sample)
    assert bins.classes == tuple(range(290, 90, -10))
    assert bins.counts == (*range(30, 10, -1), 55)
    assert bins.missing == 2
    assert bins.missing_share == 2 / len(sample)
    assert bins.index(np.array([290, 100, 90, 7, 2**62, -1])).tolist() == [0, 19, 20, 20, 20, 21]
    assert [*bins.counts, bins.missing] == bins.count(sample).tolist()


def test_class_bins_of_few_classes() -> None:
    bins = ClassBins.of(np.array([4, 2, 4, 2, 9]))
    assert (bins.classes, bins.counts, bins.shares) == ((2, 4, 9), (2, 2, 1, 0), (0.4, 0.4, 0.2, 0.0))
    none = ClassBins.of(np.array([-1]))
    assert (none.classes, none.counts, none.missing) == ((), (0,), 1)
    assert none.count(np.array([0, 5, -1])).tolist() == [2, 1]


@random_examples
@given(arrays(np.int64, st.integers(1, 80), elements=st.integers(-1, 40)))
def test_class_bins_count_what_is_there(sample: Array) -> None:
    bins = ClassBins.of(sample)
    expected = [int((sample == index).sum()) for index in bins.classes]
    assert [*bins.counts[:-1]] == expected == sorted(expected, reverse=True)
    assert len(bins.classes) == min(CLASSES, len(set(sample[sample >= 0].tolist())))
    assert sum(bins.counts) + bins.missing == len(sample)
    assert read_bins(json.loads(json.dumps(bins.to_dict())), WHERE) == bins


@pytest.mark.parametrize("kind", [Bins, ClassBins])
def test_empty_reference_is_refused(kind: type[Bins] | type[ClassBins]) -> None:
    with pytest.raises(InvalidContent, match="at least one row of the reference"):
        kind.of(np.empty(0))


NUMBER = {"type": "number", "edges": [1.0, 2.0], "counts": [1, 1, 1, 0, 0, 0, 0, 0, 0, 0], "missing": 0}
CLASS = {"type": "class", "classes": [3, 1], "counts": [2, 1, 0], "missing": 0}
REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([], ": must be an object with the keys counts, edges, missing, type"),
    "lacks a key": ({**NUMBER} | {"type": "class"}, ": lacks the key 'classes'"),
    "lacks the type": ({key: NUMBER[key] for key in ("edges", "counts", "missing")}, ": lacks the key 'type'"),
    "unknown key": (NUMBER | {"unit": "lux"}, ": has the key 'unit', which is unknown"),
    "key that is no text": (NUMBER | {5: "lux"}, ": has the key '5', which is unknown"),
    "unknown type": (NUMBER | {"type": "text"}, ".type: must be 'number' or 'class', not 'text'"),
    "edges fall": (NUMBER | {"edges": [2.0, 1.0]}, ".edges: must be at most 9 numbers that rise"),
    "edges equal": (NUMBER | {"edges": [1.0, 1.0]}, ".edges: must be at most 9 numbers that rise"),
    "too many edges": (NUMBER | {"edges": list(range(10))}, ".edges: must be at most 9 numbers that rise"),
    "edge is NaN": (NUMBER | {"edges": [math.nan]}, ".edges: must be a list of finite numbers"),
    "edge is text": (NUMBER | {"edges": ["1"]}, ".edges: must be a list of finite numbers"),
    "edge is a truth value": (NUMBER | {"edges": [True]}, ".edges: must be a list of finite numbers"),
    "edge is huge": (NUMBER | {"edges": [10**400]}, ".edges: must be a list of finite numbers"),
    "edges are a number": (NUMBER | {"edges": 5}, ".edges: must be a list of finite numbers"),
    "too few counts": (NUMBER | {"counts": [1, 2, 3]}, ".counts: must be 10 whole numbers, not 3"),
    "count below 0": (NUMBER | {"counts": [-1] * 10}, ".counts: must hold whole numbers from 0 on only"),
    "count is a fraction": (NUMBER | {"counts": [0.5] * 10}, ".counts: must hold whole numbers from 0 on only"),
    "counts above the last edge": (NUMBER | {"counts": [1] * 10}, ".counts: bins above the last of the 2 edges hold"),
    "no rows": (NUMBER | {"counts": [0] * 10}, ".counts: a reference has at least one row"),
    "missing is text": (NUMBER | {"missing": "0"}, ".missing: must hold whole numbers from 0 on only"),
    "class twice": (CLASS | {"classes": [1, 1]}, ".classes: must be at most 20 class indices, each once"),
    "class below 0": (CLASS | {"classes": [1, -1]}, ".classes: must hold whole numbers from 0 on only"),
    "class beyond 64 bits": (CLASS | {"classes": [1, 2**63]}, ".classes: must hold whole numbers from 0 on only"),
    "too many classes": (CLASS | {"classes": list(range(21))}, ".classes: must be at most 20 class indices, each once"),
    "counts of other classes": (CLASS | {"counts": [1, 2]}, ".counts: must be 3 whole numbers, not 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_read_bins_refuses(name: str) -> None:
    document, message = REFUSED[name]
    with pytest.raises(RegistryError) as caught:
        read_bins(document, WHERE)
    assert str(caught.value).startswith(WHERE + message)


def test_read_bins_takes_whole_numbers_as_edges() -> None:
    assert read_bins(NUMBER | {"edges": [1, 2]}, WHERE) == Bins((1, 1, 1, *[0] * 7), 0, (1.0, 2.0))
    assert read_bins(CLASS, WHERE) == ClassBins((2, 1, 0), 0, (3, 1))
