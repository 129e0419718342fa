"""Ranking against sorted(), activations against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from app.processing.classification import Activation, Classification
from app.tensors import Array

LABELS = tuple("abcdef")


def _rank(scores: list[float], top_k: int, activation: Activation = "none") -> list[tuple[str, float | None]]:
    classification = Classification(LABELS[: len(scores)], activation)
    (row,) = classification.rank(np.array([scores], np.float32), top_k)
    assert [LABELS[prediction.index] for prediction in row] == [prediction.label for prediction in row]
    return [(prediction.label, prediction.confidence) for prediction in row]


def test_rank_best_first() -> None:
    assert _rank([0.25, 0.5, 0.125], 2) == [("b", 0.5), ("a", 0.25)]


def test_rank_ties_keep_the_order_of_the_labels() -> None:
    assert [label for label, _ in _rank([0.25, 0.5, 0.25, 0.5, 0.25], 4)] == ["b", "d", "a", "c"]
    assert [label for label, _ in _rank([0.5] * 6, 3)] == ["a", "b", "c"]


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (3, 3), (99, 3)])
def test_rank_gives_at_most_all_labels(asked: int, given: int) -> None:
    assert len(_rank([0.1, 0.2, 0.7], asked)) == given


def test_rank_of_what_is_not_finite_comes_last_without_confidence() -> None:
    assert _rank([math.nan, 0.5, math.inf, -math.inf, 0.25], 5) == [
        ("b", 0.5), ("e", 0.25), ("a", None), ("c", None), ("d", None),
    ]  # fmt: skip
    assert _rank([math.nan] * 3, 2) == [("a", None), ("b", None)]


def test_rank_several_rows_each_for_itself() -> None:
    rows = Classification(("a", "b"), "none").rank(np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]], np.float32), 1)
    assert [(row[0].label, row[0].confidence) for row in rows] == [("b", 0.75), ("a", 1.0), ("a", 0.5)]


def test_rank_no_rows() -> None:
    assert Classification(LABELS, "softmax").rank(np.zeros((0, 6), np.float32), 3) == []


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4, 1e30])
def test_rank_activation_equals_scipy(activation: Activation, scale: float) -> None:
    scores = (np.random.default_rng(3).normal(size=(20, 6)) * scale).astype(np.float32)
    as_double = scores.astype(np.float64)
    expected: Array = (
        scipy.special.softmax(as_double, axis=1) if activation == "softmax" else scipy.special.expit(as_double)
    )
    for row, wanted in zip(Classification(LABELS, activation).rank(scores, 6), expected, strict=True):
        found = {prediction.index: prediction.confidence for prediction in row}
        np.testing.assert_allclose([found[index] for index in range(6)], wanted, rtol=1e-12, atol=1e-300)


def test_rank_logits_of_minus_infinity_are_impossible_classes() -> None:
    assert _rank([0.0, -math.inf], 2, "softmax") == [("a", 1.0), ("b", 0.0)]
    assert _rank([0.0, math.nan], 2, "softmax") == [("a", None), ("b", None)]


def test_rank_integer_scores() -> None:
    (row,) = Classification(("a", "b"), "none").rank(np.array([[3, 200]], np.uint8), 2)
    assert [(prediction.label, prediction.confidence) for prediction in row] == [("b", 200.0), ("a", 3.0)]


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(st.floats(width=32) | st.sampled_from([0.0, 0.5]), min_size=1, max_size=100), st.integers(1, 120))
def test_rank_equals_a_stable_sort(scores: list[float], top_k: int) -> None:
    labels = [str(number) for number in range(len(scores))]
    (row,) = Classification(labels, "none").rank(np.array([scores], np.float32), top_k)
    keys = [score if math.isfinite(score) else -math.inf for score in scores]
    expected = sorted(range(len(scores)), key=lambda index: -keys[index])[:top_k]
    assert [prediction.index for prediction in row] == expected


@pytest.mark.parametrize("special", [0.5, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("top_k", [1, 5, 8, 9, 200])
def test_rank_of_many_classes_equals_a_stable_sort(special: float, top_k: int) -> None:
    random = np.random.default_rng(7)
    for _ in range(20):
        scores = random.integers(0, 40, 120).astype(np.float32) / 64  # with many equals
        scores[random.integers(0, 120, 3)] = special
        (row,) = Classification([str(number) for number in range(120)], "none").rank(scores[np.newaxis], top_k)
        keys = [float(score) if math.isfinite(score) else -math.inf for score in scores]
        assert [prediction.index for prediction in row] == sorted(range(120), key=lambda index: -keys[index])[:top_k]
