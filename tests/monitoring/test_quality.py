"""Quality figures against scikit-learn and scipy, and what becomes of rows that lack something."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
    r2_score,
)

from app.monitoring.quality import (
    ClassificationQuality,
    ClassScores,
    ConfusionCell,
    Ratings,
    RegressionQuality,
    expected_calibration_error,
    wilson_interval,
)

Array = npt.NDArray[Any]
EMPTY = np.empty(0)


def _classification(predicted: Any, actual: Any, confidence: Any = None, top: Any = None) -> ClassificationQuality:
    predicted, actual = np.array(predicted, np.int64), np.array(actual, np.int64)
    confidence = np.full(len(actual), np.nan) if confidence is None else np.array(confidence, np.float64)
    top = np.full((len(actual), 5), -1) if top is None else np.array(top)
    return ClassificationQuality.of(predicted, actual, confidence, top)


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40))
def test_classification_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, actual = np.array(pairs).T * 100
    quality = _classification(predicted, actual)
    labels = np.union1d(actual, predicted)
    assert quality.n == len(pairs)
    assert quality.accuracy == pytest.approx(accuracy_score(actual, predicted), abs=1e-12)
    macro = precision_recall_fscore_support(actual, predicted, average="macro", zero_division=0)[:3]
    assert (quality.macro_precision, quality.macro_recall, quality.macro_f1) == pytest.approx(macro, abs=1e-12)
    by_class = np.transpose(precision_recall_fscore_support(actual, predicted, labels=labels, zero_division=0))
    found = [[scores.precision, scores.recall, scores.f1, scores.support] for scores in quality.classes]
    assert [scores.index for scores in quality.classes] == labels.tolist()
    assert np.array(found) == pytest.approx(by_class, abs=1e-12)
    matrix = confusion_matrix(actual, predicted, labels=labels)
    cells = [
        ConfusionCell(int(labels[row]), int(labels[column]), int(matrix[row, column]))
        for row, column in np.argwhere(matrix)
    ]
    assert list(quality.confusion) == cells


def test_classification_by_hand() -> None:
    top = [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [0, 2, 3, 1, 4], [0, 1, 2, 3, -1]]
    quality = _classification([0, 1, 0, 0], [0, 1, 1, 5], [0.9, 0.5, np.nan, 0.7], top)
    assert (quality.n, quality.accuracy, quality.top3_accuracy, quality.top5_accuracy) == (4, 0.5, 0.5, 0.75)
    assert quality.mean_confidence == pytest.approx(0.7)
    assert quality.classes == (
        ClassScores(0, 1 / 3, 1.0, 0.5, 1),
        ClassScores(1, 1.0, 0.5, 2 / 3, 2),
        ClassScores(5, 0.0, 0.0, 0.0, 1),
    )
    assert quality.confusion == (
        ConfusionCell(actual=0, predicted=0, count=1),
        ConfusionCell(actual=1, predicted=0, count=1),
        ConfusionCell(actual=1, predicted=1, count=1),
        ConfusionCell(actual=5, predicted=0, count=1),
    )


def test_top_k_counts_the_answer_where_top_was_not_recorded() -> None:
    quality = _classification([3, 3], [3, 4])
    assert (quality.top3_accuracy, quality.top5_accuracy) == (0.5, 0.5)


def test_rows_without_a_class_are_left_out() -> None:
    """A rating alone, a regression, and a class far beyond what an index array could hold."""
    top = [[1, 2, -1, -1, -1]] * 4
    quality = _classification([1, -1, 1, 2**62], [-1, 1, 1, 2**63 - 1], [0.1, 0.2, 0.8, 0.6], top)
    assert (quality.n, quality.accuracy, quality.mean_confidence) == (2, 0.5, pytest.approx(0.7))
    assert [scores.index for scores in quality.classes] == [1, 2**62, 2**63 - 1]


@pytest.mark.parametrize("rows", [0, 3])
def test_no_labelled_row_is_an_empty_result(rows: int) -> None:
    quality = _classification([1] * rows, [-1] * rows)
    assert quality == ClassificationQuality()
    assert json.loads(json.dumps(asdict(quality), allow_nan=False))["accuracy"] is None


def test_every_figure_is_json() -> None:
    text = json.dumps(asdict(_classification([0, 1], [1, 1])), allow_nan=False)
    assert json.loads(text)["confusion"][0] == {"actual": 1, "predicted": 0, "count": 1}
    json.dumps(asdict(RegressionQuality.of(np.array([1.0]), np.array([2.0]))), allow_nan=False)


def test_a_thousand_classes_make_no_million_cells() -> None:
    random = np.random.default_rng(5)
    actual = random.integers(0, 1000, 100_000)
    predicted = np.where(random.random(100_000) < 0.8, actual, random.integers(0, 1000, 100_000))
    top = np.column_stack([predicted, random.integers(0, 1000, (100_000, 4))])
    quality = _classification(predicted, actual, random.random(100_000), top)
    assert len(quality.classes) == 1000
    assert len(quality.confusion) < 22_000
    assert sum(cell.count for cell in quality.confusion) == 100_000
    macro = precision_recall_fscore_support(actual, predicted, average="macro", zero_division=0)[:3]
    assert (quality.macro_precision, quality.macro_recall, quality.macro_f1) == pytest.approx(macro, abs=1e-12)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1) | st.integers(0, 15).map(lambda k: k / 15), st.booleans()), min_size=1))
def test_calibration_error_by_its_definition(pairs: list[tuple[float, bool]]) -> None:
    expected = 0.0
    for m in range(1, 16):
        inside = [(c, hit) for c, hit in pairs if (m - 1) / 15 < c <= m / 15 or (m == 1 and c == 0)]
        if inside:
            accuracy, confidence = np.mean([hit for _, hit in inside]), np.mean([c for c, _ in inside])
            expected += len(inside) / len(pairs) * abs(float(accuracy - confidence))
    confidences, hits = np.array([c for c, _ in pairs]), np.array([hit for _, hit in pairs])
    assert expected_calibration_error(confidences, hits) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_at_its_ends() -> None:
    assert expected_calibration_error(EMPTY, EMPTY.astype(bool)) is None
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([False, False])) == 1
    assert expected_calibration_error(np.array([7.5, -1.0]), np.array([True, False])) == pytest.approx(3.75)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 20), (3, 20), (272, 300), (300, 300), (999_999, 10**6)])
def test_wilson_interval_equals_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=40))
def test_regression_equals_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    predicted, actual = np.array(pairs).T
    quality = RegressionQuality.of(predicted, actual)
    assert quality.n == len(pairs)
    assert quality.mae == pytest.approx(mean_absolute_error(actual, predicted), rel=1e-9, abs=1e-12)
    assert quality.rmse == pytest.approx(math.sqrt(mean_squared_error(actual, predicted)), rel=1e-9, abs=1e-12)
    if np.ptp(actual) > 1e-3:
        assert quality.r2 == pytest.approx(r2_score(actual, predicted), rel=1e-6, abs=1e-6)


def test_r2_is_undefined_for_one_row_or_one_value() -> None:
    assert RegressionQuality.of(np.array([1.0]), np.array([3.0])) == RegressionQuality(1, 2.0, 2.0, None)
    # Their mean is not 0.1 in floating point.
    same = RegressionQuality.of(np.array([0.2, 0.2, 0.2]), np.array([0.1, 0.1, 0.1]))
    assert (same.n, same.mae, same.r2) == (3, pytest.approx(0.1), None)
    perfect = RegressionQuality.of(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert perfect == RegressionQuality(2, 0.0, 0.0, 1.0)


def test_regression_leaves_out_rows_without_a_value() -> None:
    predicted, actual = np.array([1.0, np.nan, 3.0, np.inf]), np.array([2.0, 1.0, np.nan, 1.0])
    assert RegressionQuality.of(predicted, actual) == RegressionQuality(1, 1.0, 1.0, None)
    assert RegressionQuality.of(predicted[1:], actual[1:]) == RegressionQuality()
    assert RegressionQuality.of(EMPTY, EMPTY) == RegressionQuality()


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e307])
def test_regression_of_extreme_values(scale: float) -> None:
    predicted, actual = np.array([1.0, 2.0, 4.0]) * scale, np.array([1.0, 3.0, 2.0]) * scale
    quality = RegressionQuality.of(predicted, actual)
    assert quality.mae == pytest.approx(scale, rel=1e-9)
    assert quality.rmse == pytest.approx(scale * math.sqrt(5 / 3), rel=1e-9)
    assert quality.r2 == pytest.approx(1 - 5 / 2, rel=1e-9)


def test_regression_figures_beyond_floats_are_none() -> None:
    far = RegressionQuality.of(np.array([1.5e308, -1.5e308]), np.array([-1.5e308, 1.5e308]))
    assert far == RegressionQuality(2, None, None, pytest.approx(-3.0))
    near_nothing = RegressionQuality.of(np.array([1.0, 1.0]), np.array([1e-300, 2e-300]))
    assert (near_nothing.mae, near_nothing.r2) == (1.0, None)


def test_ratings() -> None:
    assert Ratings.of(np.array([0, 5, 4, 0])) == Ratings(2, 4.5)
    assert Ratings.of(np.array([np.nan, 3.0])) == Ratings(1, 3.0)
    assert Ratings.of(np.zeros(3, np.int64)) == Ratings.of(EMPTY) == Ratings(0, None)
