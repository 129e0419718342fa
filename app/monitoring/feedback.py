"""What callers say of answers they had: checked against the signed id, kept in the database, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.errors import DoubleFeedback, FeedbackUnavailable, HeadwayError, InvalidContent, UnknownLabel
from app.metrics import Metrics
from app.monitoring.prediction_id import Prediction, PredictionIds
from app.storage.feedback import FeedbackRow, FeedbackStore, Outcome

# The labels of a version, None of one that answers with a value. Raises VersionNotFound.
LabelsOf = Callable[[str, str], Sequence[str] | None]

_SHOWN_LABELS = 5


@dataclass(frozen=True, slots=True)
class Feedback:
    """The truth about one prediction, as a label or as a value, and how content its user was, 1 to 5."""

    prediction_id: str
    label: str | None = None
    value: float | None = None
    rating: int | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """`is_correct`: whether the first label was the true one; None where no label was given."""

    model: str
    version: str
    alias: str | None
    is_correct: bool | None
    is_repeated: bool


class FeedbackDesk:
    """For any thread, and may wait for the database: not for the event loop."""

    def __init__(
        self, prediction_ids: PredictionIds | None, store: FeedbackStore, labels_of: LabelsOf, metrics: Metrics
    ) -> None:
        """Without `prediction_ids` all feedback is refused."""
        self._prediction_ids = prediction_ids
        self._store = store
        self._labels_of = labels_of
        self._metrics = metrics

    def take(self, given: Sequence[Feedback], now_ms: int) -> list[Taken | HeadwayError]:
        """For each, in order, what became of it; those that are good are kept in one transaction.

        Errors are ForgedPrediction, ExpiredPrediction, UnknownLabel, InvalidContent, VersionNotFound, DoubleFeedback.
        Raises FeedbackUnavailable where none could be kept: the same can be sent again.
        """
        results: list[Taken | HeadwayError | None] = [None] * len(given)
        rows: dict[int, FeedbackRow] = {}
        for number, feedback in enumerate(given):
            try:
                rows[number] = self._check(feedback, now_ms)
            except FeedbackUnavailable:
                raise
            except HeadwayError as exc:
                results[number] = exc
        outcomes = self._store.add(list(rows.values()))
        for (number, row), outcome in zip(rows.items(), outcomes, strict=True):
            results[number] = self._settle(row, outcome)
        return [result for result in results if result is not None]

    def _check(self, feedback: Feedback, now_ms: int) -> FeedbackRow:
        if self._prediction_ids is None:
            raise FeedbackUnavailable("this server has no secret to check a prediction_id with; its log says why")
        prediction = self._prediction_ids.verify(feedback.prediction_id, now_ms)
        actual = self._find_class(prediction, feedback)
        return FeedbackRow(
            nonce=prediction.nonce,
            model=prediction.model,
            version=prediction.version,
            alias=prediction.alias,
            predicted_ms=prediction.at_ms,
            received_ms=now_ms,
            top=prediction.indices,
            confidence=prediction.confidence,
            actual=actual,
            predicted_value=prediction.value,
            actual_value=feedback.value,
            rating=feedback.rating,
        )

    def _find_class(self, prediction: Prediction, feedback: Feedback) -> int | None:
        if feedback.label is None and feedback.value is None:
            return None  # a rating alone
        labels = self._labels_of(prediction.model, prediction.version)
        name = f"{prediction.model}@{prediction.version}"
        if labels is None:
            if feedback.value is None:
                raise InvalidContent(f"{name} answers with a value; send the true one as value, not a label")
            if not math.isfinite(feedback.value):
                raise InvalidContent("value must be a finite number")
            return None
        if feedback.label is None:
            raise InvalidContent(f"{name} answers with labels; send the true one as label, not a value")
        if feedback.label not in labels:
            shown = ", ".join(labels[:_SHOWN_LABELS])
            more = f" and {len(labels) - _SHOWN_LABELS} more (GET /models/{prediction.model}/{prediction.version})"
            raise UnknownLabel(
                f"{feedback.label[:100]!r} is no label of {name}, which has {shown}"
                f"{more if len(labels) > _SHOWN_LABELS else ''}"
            )
        return labels.index(feedback.label)

    def _settle(self, row: FeedbackRow, outcome: Outcome) -> Taken | HeadwayError:
        if outcome is Outcome.DOUBLE:
            return DoubleFeedback("this prediction has had another feedback, which stays; each prediction takes one")
        is_correct = row.actual == row.top[0] if row.actual is not None and row.top else None
        if outcome is Outcome.RECORDED:
            self._metrics.feedback.labels(row.model, row.version, row.alias or "", _describe(row, is_correct)).inc()
        return Taken(row.model, row.version, row.alias, is_correct, outcome is Outcome.REPEATED)


def _describe(row: FeedbackRow, is_correct: bool | None) -> str:
    """The label `outcome` of the counter."""
    if is_correct is not None:
        return "correct" if is_correct else "incorrect"
    return "value" if row.actual_value is not None else "rating"
