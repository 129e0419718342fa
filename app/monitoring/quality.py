"""How good answers were, from what was predicted and what came out: figures over columns of feedback.

What a row lacks is -1 (a class), NaN (a number) or 0 (a rating), as storage reads it. Such a row is left out of the
figures that need it, and a figure that no row is left for is None: NaN never leaves this module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from app.tensors import Array

CALIBRATION_BINS = 15
# The 97.5 % point of the normal distribution: two-sided 95 %.
_Z_95 = 1.959963984540054
_CALIBRATION_EDGES = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class against the rest; `support` is how often it was the actual one."""

    index: int
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class ConfusionCell:
    """How often class `predicted` was answered where `actual` was right."""

    actual: int
    predicted: int
    count: int


@dataclass(frozen=True, slots=True)
class ClassificationQuality:
    """Ratios in 0…1 over the n rows that have both a predicted and an actual class; None where n is 0.

    Macro figures are means over the classes that occur as actual or as predicted, with 0 for a ratio that is undefined,
    as scikit-learn has them with `zero_division=0`. `classes` is ordered by index; `confusion` has only the cells that
    occur, by actual and then predicted class. Confidence and its calibration are of the rows that have one.
    """

    n: int = 0
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    top3_accuracy: float | None = None
    top5_accuracy: float | None = None
    macro_precision: float | None = None
    macro_recall: float | None = None
    macro_f1: float | None = None
    mean_confidence: float | None = None
    expected_calibration_error: float | None = None
    classes: tuple[ClassScores, ...] = ()
    confusion: tuple[ConfusionCell, ...] = ()

    @classmethod
    def of(cls, predicted: Array, actual: Array, confidence: Array, top: Array) -> Self:
        """`predicted`, `actual` and `confidence` are [n]; `top` [n, 5] is best first.

        A class that `top` does not hold counts as missed, so rows with few recorded classes make top-k a lower bound.
        """
        labelled = (predicted >= 0) & (actual >= 0)
        n = int(np.count_nonzero(labelled))
        if n == 0:
            return cls()
        predicted, actual, confidence, top = predicted[labelled], actual[labelled], confidence[labelled], top[labelled]
        hits = predicted == actual
        classes, confusion = _scores_by_class(predicted, actual)
        has_confidence = np.isfinite(confidence)
        confidence, sure_hits = confidence[has_confidence], hits[has_confidence]
        return cls(
            n=n,
            accuracy=float(hits.mean()),
            accuracy_interval=wilson_interval(int(np.count_nonzero(hits)), n),
            top3_accuracy=_top_k_accuracy(hits, actual, top, 3),
            top5_accuracy=_top_k_accuracy(hits, actual, top, 5),
            macro_precision=_mean([scores.precision for scores in classes]),
            macro_recall=_mean([scores.recall for scores in classes]),
            macro_f1=_mean([scores.f1 for scores in classes]),
            mean_confidence=float(confidence.mean()) if len(confidence) else None,
            expected_calibration_error=expected_calibration_error(confidence, sure_hits),
            classes=classes,
            confusion=confusion,
        )


@dataclass(frozen=True, slots=True)
class RegressionQuality:
    """Errors in the unit of the value, over the n rows that have both values; None where n is 0.

    `r2` is None where it is undefined, too: with fewer than two rows, or where all actual values are equal. A figure
    beyond what a float holds is None.
    """

    n: int = 0
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None

    @classmethod
    def of(cls, predicted: Array, actual: Array) -> Self:
        """Both are [n]."""
        known = np.isfinite(predicted) & np.isfinite(actual)
        n = int(np.count_nonzero(known))
        if n == 0:
            return cls()
        predicted, actual = predicted[known].astype(np.float64), actual[known].astype(np.float64)
        # Scaled by a power of two, which is exact, so that the squares of values like 1e200 stay finite.
        exponent = int(np.frexp(max(np.abs(predicted).max(), np.abs(actual).max()))[1])
        scaled = np.ldexp(actual, -exponent)
        errors = np.ldexp(predicted, -exponent) - scaled
        mean_square = float(np.mean(errors * errors))
        return cls(
            n=n,
            mae=_unscaled(float(np.abs(errors).mean()), exponent),
            rmse=_unscaled(math.sqrt(mean_square), exponent),
            r2=_r2(mean_square, scaled),
        )


@dataclass(frozen=True, slots=True)
class Ratings:
    """Of the n rows that have a rating of 1 to 5; `mean` is None where n is 0."""

    n: int = 0
    mean: float | None = None

    @classmethod
    def of(cls, ratings: Array) -> Self:
        given = ratings[ratings >= 1]
        return cls(len(given), float(given.mean())) if len(given) else cls()


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a ratio (Wilson, 1927); 0 to 1 where n is 0: nothing is known."""
    if n == 0:
        return 0.0, 1.0
    ratio, square = hits / n, _Z_95**2 / n
    centre = ratio + square / 2
    half = _Z_95 * math.sqrt(ratio * (1 - ratio) / n + square / (4 * n))
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))


def expected_calibration_error(confidence: Array, hits: Array) -> float | None:
    """The mean distance of confidence and accuracy over 15 bins of equal width, weighted by rows; None without rows.

    Bins are closed above, ((m - 1) / 15, m / 15], and 0 is in the first (Guo et al., "On calibration of modern neural
    networks", 2017). `confidence` ([n], finite) beyond 0…1 counts in the outer bins.
    """
    if len(confidence) == 0:
        return None
    bins = np.searchsorted(_CALIBRATION_EDGES, confidence, side="left")
    surplus = np.bincount(bins, weights=confidence - hits, minlength=CALIBRATION_BINS)
    return float(np.abs(surplus).sum() / len(confidence))


def score_classes(predicted: Array, actual: Array) -> tuple[ClassScores, ...]:
    """Of the classes that occur as actual or as predicted, by index; both are [n], of at least one row."""
    return _scores_by_class(predicted, actual)[0]


def _scores_by_class(predicted: Array, actual: Array) -> tuple[tuple[ClassScores, ...], tuple[ConfusionCell, ...]]:
    present = np.union1d(actual, predicted)
    rows, columns = np.searchsorted(present, actual), np.searchsorted(present, predicted)
    # One number a cell, and only the cells that occur: 1,000 classes would make a million.
    cells, counts = np.unique(rows * len(present) + columns, return_counts=True)
    rows_of_cells, columns_of_cells = np.divmod(cells, len(present))
    confusion = tuple(
        map(ConfusionCell, present[rows_of_cells].tolist(), present[columns_of_cells].tolist(), counts.tolist())
    )
    right = np.zeros(len(present))
    diagonal = rows_of_cells == columns_of_cells
    right[rows_of_cells[diagonal]] = counts[diagonal]
    support, taken = np.bincount(rows, minlength=len(present)), np.bincount(columns, minlength=len(present))
    scores = map(
        ClassScores,
        present.tolist(),
        (right / np.maximum(taken, 1)).tolist(),
        (right / np.maximum(support, 1)).tolist(),
        (2 * right / (taken + support)).tolist(),
        support.tolist(),
    )
    return tuple(scores), confusion


def _top_k_accuracy(hits: Array, actual: Array, top: Array, k: int) -> float:
    return float((hits | (top[:, :k] == actual[:, None]).any(axis=1)).mean())


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _unscaled(value: float, exponent: int) -> float | None:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return None


def _r2(mean_square: float, actual: Array) -> float | None:
    """The coefficient of determination, 1 for a model without error and 0 for one as good as the mean."""
    if actual.min() == actual.max():  # their mean may be off by a rounding error, and their variance not 0
        return None
    variance = float(np.var(actual))
    ratio = mean_square / variance if variance else math.inf
    return 1 - ratio if math.isfinite(ratio) else None
