"""Feedback as it is written, row by row, and as it is read, column by column."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from app.errors import InvalidContent

NONCE_BYTES = 10
# Class indices kept of each prediction.
TOP = 5

_LARGEST = 2**63 - 1

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeedbackRow:
    """What a caller found out about one prediction, and the prediction itself.

    Times are milliseconds since 1970 in UTC. `top` holds up to 5 class indices, best first, and `confidence` is that of
    the first; `actual` is the true class index. A regression has `predicted_value` and `actual_value` instead. `rating`
    is 1 to 5. Raises InvalidContent for what is outside of that.
    """

    nonce: bytes
    model: str
    version: str
    alias: str | None
    predicted_ms: int
    received_ms: int
    top: tuple[int, ...] = ()
    confidence: float | None = None
    actual: int | None = None
    predicted_value: float | None = None
    actual_value: float | None = None
    rating: int | None = None

    def __post_init__(self) -> None:
        if len(self.nonce) != NONCE_BYTES or len(self.top) > TOP:
            raise InvalidContent(f"feedback has a nonce of {NONCE_BYTES} bytes and at most {TOP} classes")
        numbers = (self.predicted_ms, self.received_ms, self.actual, *self.top)
        if any(number is not None and not 0 <= number <= _LARGEST for number in numbers):
            raise InvalidContent("times and class indices of feedback are whole numbers from 0 to 2^63 - 1")
        values = (self.confidence, self.predicted_value, self.actual_value)
        if any(value is not None and not math.isfinite(value) for value in values):
            raise InvalidContent("values of feedback are finite numbers")
        if self.rating is not None and not 1 <= self.rating <= 5:
            raise InvalidContent(f"a rating is 1, 2, 3, 4 or 5, not {self.rating}")

    @property
    def content(self) -> tuple[int | None, float | None, int | None]:
        """What the caller said: two rows of one prediction with the same content are one feedback, sent twice."""
        return self.actual, self.actual_value, self.rating

    def values(self) -> dict[str, Any]:
        """As the columns of the table, in types that every driver takes (numpy's are none)."""
        return {
            "nonce": bytes(self.nonce),
            "model": self.model,
            "version": self.version,
            "alias": self.alias,
            "predicted_ms": int(self.predicted_ms),
            "received_ms": int(self.received_ms),
            "top": json.dumps([int(index) for index in self.top], separators=(",", ":")) if self.top else None,
            "confidence": _float(self.confidence),
            "actual": _int(self.actual),
            "predicted_value": _float(self.predicted_value),
            "actual_value": _float(self.actual_value),
            "rating": _int(self.rating),
        }


@dataclass(frozen=True)
class FeedbackColumns:
    """n rows of feedback; all arrays are [n], but for `top` [n, 5], which is best first.

    What a row does not have is -1 (`top`, `actual`), NaN (`confidence` and the values) or 0 (`rating`).
    """

    versions: list[str]
    aliases: list[str | None]
    predicted_ms: Ints
    received_ms: Ints
    top: Ints
    confidence: Floats
    actual: Ints
    predicted_value: Floats
    actual_value: Floats
    rating: Ints

    def __len__(self) -> int:
        return len(self.versions)

    @property
    def predicted(self) -> Ints:
        """The class index that was answered first [n]."""
        return self.top[:, 0]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[Any]]) -> Self:
        """`rows` hold the columns that COLUMNS names, in that order."""
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
        named: Mapping[str, Sequence[Any]] = dict(zip(COLUMNS, columns, strict=True))
        # The same few strings, again and again: kept once.
        names: dict[str, str] = {}
        return cls(
            versions=[names.setdefault(version, version) for version in named["version"]],
            aliases=[None if alias is None else names.setdefault(alias, alias) for alias in named["alias"]],
            predicted_ms=np.array(named["predicted_ms"], np.int64),
            received_ms=np.array(named["received_ms"], np.int64),
            top=_top(named["top"]),
            confidence=np.array(named["confidence"], np.float64),
            actual=_ints(named["actual"], -1),
            predicted_value=np.array(named["predicted_value"], np.float64),
            actual_value=np.array(named["actual_value"], np.float64),
            rating=_ints(named["rating"], 0),
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """`parts` one after the other; there is at least one."""
        joined: dict[str, Any] = {}
        for each in fields(cls):
            values = [getattr(part, each.name) for part in parts]
            joined[each.name] = list(chain(*values)) if isinstance(values[0], list) else np.concatenate(values)
        return cls(**joined)


COLUMNS = (
    "version", "alias", "predicted_ms", "received_ms", "top", "confidence", "actual", "predicted_value", "actual_value",
    "rating",
)  # fmt: skip


def _top(texts: Sequence[str | None]) -> Ints:
    """JSON arrays of up to TOP indices to [n, TOP], all texts parsed in one go."""
    lists = json.loads(f"[{','.join(text or '[]' for text in texts)}]")
    top = np.full((len(lists), TOP), -1, np.int64)
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    top[np.arange(TOP) < lengths[:, None]] = list(chain(*lists))
    return top


def _ints(values: Sequence[int | None], missing: int) -> Ints:
    return np.array([missing if value is None else value for value in values], np.int64)


def _int(value: int | None) -> int | None:
    return None if value is None else int(value)


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
