"""Scores of a classifier to labelled confidences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.tensors import Array

Activation = Literal["none", "softmax", "sigmoid"]


@dataclass(slots=True)
class Prediction:
    """One label of an answer. `confidence` is a probability in 0…1, or None where the model gave NaN or ±inf.

    A value, to be treated as frozen; a request makes five, and frozen ones take 4 µs more.
    """

    label: str
    index: int
    confidence: float | None


# Up to so many, plain Python is quicker than six calls of numpy.
_FEW_CLASSES = 64
# Up to so many, finding the best again and again is quicker than sorting: of 1,000 classes five in 33 µs, against 137,
# both with cold caches, as they are after a run.
_FEW_LABELS = 8


class Classification:
    """Ranks the classes of each row. Thread-safe."""

    def __init__(self, labels: Sequence[str], activation: Activation) -> None:
        self.labels = tuple(labels)
        self._activation = activation

    def confidences(self, scores: Array) -> Array:
        """`scores` ([n, classes]) as probabilities, in float64."""
        return _activate(scores.astype(np.float64, copy=False), self._activation)

    def rank(self, scores: Array, top_k: int) -> list[list[Prediction]]:
        """The `top_k` most confident labels of each row of `scores` ([n, classes]), best first.

        Equal scores keep the order of the labels. A score that is not finite ranks last.
        """
        probabilities = self.confidences(scores)
        if len(self.labels) <= _FEW_CLASSES:
            return [self._rank_few(row, top_k) for row in probabilities.tolist()]
        if 0 < top_k <= _FEW_LABELS:
            ranked_rows = [self._rank_best(row, top_k) for row in probabilities]
            if all(row is not None for row in ranked_rows):
                return [row for row in ranked_rows if row is not None]
        finite = np.isfinite(probabilities)
        ranked = np.where(finite, probabilities, -np.inf)
        return [self._rank_row(row, keys, top_k) for row, keys in zip(probabilities, ranked, strict=True)]

    def _rank_best(self, row: Array, top_k: int) -> list[Prediction] | None:
        """The best one after the other; None where a score that is not finite comes among them."""
        left, best = row.copy(), []
        for _ in range(min(top_k, len(row))):
            index = int(left.argmax())  # the first of equals; NaN before all others
            confidence = float(left[index])
            if not math.isfinite(confidence):
                return None
            best.append(Prediction(self.labels[index], index, confidence))
            left[index] = -np.inf
        return best

    def _rank_few(self, row: list[float], top_k: int) -> list[Prediction]:
        keys = [-value if math.isfinite(value) else math.inf for value in row]
        best = sorted(range(len(row)), key=keys.__getitem__)[: max(1, top_k)]
        return [
            Prediction(self.labels[index], index, row[index] if math.isfinite(row[index]) else None) for index in best
        ]

    def _rank_row(self, row: Array, keys: Array, top_k: int) -> list[Prediction]:
        top_k = max(1, min(top_k, len(keys)))
        # Partition first: sorting 1,000 classes costs 10 times what finding five does.
        threshold = np.partition(keys, len(keys) - top_k)[len(keys) - top_k]
        candidates = np.flatnonzero(keys >= threshold)
        best = candidates[np.argsort(-keys[candidates], kind="stable")][:top_k]
        return [
            Prediction(
                label=self.labels[index],
                index=int(index),
                confidence=float(row[index]) if np.isfinite(row[index]) else None,
            )
            for index in best
        ]


def _activate(scores: Array, activation: Activation) -> Array:
    if activation == "none":
        return scores
    with np.errstate(over="ignore", invalid="ignore"):
        if activation == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-scores)))
        shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
