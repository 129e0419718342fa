"""Quality of the answers of each version and alias, in windows over the feedback in the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.errors import HeadwayError
from app.monitoring.feedback import LabelsOf
from app.monitoring.quality import ClassificationQuality, ClassScores, ConfusionCell, Ratings, RegressionQuality
from app.storage.feedback import FeedbackColumns, FeedbackStore

_HOUR_MS = 3_600_000
# Of a thousand classes not every confusion is worth reading.
_MOST_CONFUSIONS = 100


@dataclass(frozen=True, slots=True)
class Window:
    """The newest `last` labelled answers, or those whose feedback came in the last `hours`."""

    last: int | None = None
    hours: float | None = None

    def __str__(self) -> str:
        return f"last {self.last}" if self.last is not None else f"{self.hours:g} h"


@dataclass(frozen=True, slots=True)
class GroupQuality:
    """Of one version under one alias. `classification` and `regression`: the one that there are labels for, or none."""

    version: str
    alias: str | None
    n: int
    classification: ClassificationQuality | None
    regression: RegressionQuality | None
    ratings: Ratings

    @property
    def gauges(self) -> dict[str, float]:
        """By the name of the gauge; what is not known is left out."""
        found: dict[str, float | None] = {"labelled_answers": float(self.n), "mean_rating": self.ratings.mean}
        if self.classification is not None:
            found |= {
                "accuracy_ratio": self.classification.accuracy,
                "precision_ratio": self.classification.macro_precision,
                "recall_ratio": self.classification.macro_recall,
                "f1_ratio": self.classification.macro_f1,
                "calibration_error_ratio": self.classification.expected_calibration_error,
            }
        if self.regression is not None:
            found["absolute_error"] = self.regression.mae
        return {name: value for name, value in found.items() if value is not None}


class QualityReports:
    """For any thread; waits for the database and raises FeedbackUnavailable."""

    def __init__(self, store: FeedbackStore, labels_of: LabelsOf) -> None:
        self._store = store
        self._labels_of = labels_of

    def measure(
        self, model: str, window: Window, now_ms: int, version: str | None = None, alias: str | None = None
    ) -> list[GroupQuality]:
        """Each version and alias that has feedback, the newest feedback first."""
        groups = sorted(self._store.groups(model), key=lambda group: -group.newest_ms)
        return [
            _measure(self._read(model, window, now_ms, group.version, group.alias or ""), group.version, group.alias)
            for group in groups
            if version in (None, group.version) and alias in (None, group.alias)
        ]

    def describe(
        self, model: str, window: Window, now_ms: int, version: str | None = None, alias: str | None = None
    ) -> dict[str, Any]:
        """For people and programs: as `measure`, with the names of the classes."""
        found = self.measure(model, window, now_ms, version, alias)
        return {
            "model": model,
            "window": {"last": window.last} if window.last is not None else {"hours": window.hours},
            "groups": [self._describe(model, group) for group in found],
        }

    def _read(self, model: str, window: Window, now_ms: int, version: str, alias: str) -> FeedbackColumns:
        if window.last is not None:
            return self._store.newest(model, version, alias, limit=window.last)
        assert window.hours is not None
        return self._store.since(model, now_ms - round(window.hours * _HOUR_MS), now_ms + 1, version, alias)

    def _describe(self, model: str, group: GroupQuality) -> dict[str, Any]:
        content: dict[str, Any] = {"version": group.version, "alias": group.alias, "n": group.n}
        name_of = self._namer(model, group.version)
        if group.classification is not None:
            content["classification"] = _describe_classification(group.classification, name_of)
        if group.regression is not None:
            content["regression"] = asdict(group.regression)
        if group.ratings.n:
            content["ratings"] = asdict(group.ratings)
        return content

    def _namer(self, model: str, version: str) -> Callable[[int], str]:
        """A class index to its label; to the index itself where the version is no longer there."""
        try:
            labels: Sequence[str] = self._labels_of(model, version) or ()
        except HeadwayError:
            labels = ()
        return lambda index: labels[index] if 0 <= index < len(labels) else str(index)


def _measure(columns: FeedbackColumns, version: str, alias: str | None) -> GroupQuality:
    classification = ClassificationQuality.of(columns.predicted, columns.actual, columns.confidence, columns.top)
    regression = RegressionQuality.of(columns.predicted_value, columns.actual_value)
    return GroupQuality(
        version,
        alias,
        classification.n or regression.n,
        classification if classification.n else None,
        regression if regression.n else None,
        Ratings.of(columns.rating),
    )


def _describe_classification(quality: ClassificationQuality, name_of: Callable[[int], str]) -> dict[str, Any]:
    content = asdict(replace(quality, classes=(), confusion=()))
    content["classes"] = [_named_scores(scores, name_of) for scores in quality.classes]
    confused = [cell for cell in quality.confusion if cell.actual != cell.predicted]
    confused.sort(key=lambda cell: (-cell.count, cell.actual, cell.predicted))
    content["confusion"] = [_named_cell(cell, name_of) for cell in quality.confusion if cell.actual == cell.predicted]
    content["confusion"] += [_named_cell(cell, name_of) for cell in confused[:_MOST_CONFUSIONS]]
    content["confusions_left_out"] = max(0, len(confused) - _MOST_CONFUSIONS)
    return content


def _named_scores(scores: ClassScores, name_of: Callable[[int], str]) -> Mapping[str, Any]:
    return {"label": name_of(scores.index), **asdict(scores)}


def _named_cell(cell: ConfusionCell, name_of: Callable[[int], str]) -> Mapping[str, Any]:
    return {"actual": name_of(cell.actual), "predicted": name_of(cell.predicted), "count": cell.count}
