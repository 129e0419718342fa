"""The gauges of quality: real SQLite, time as an argument."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import VersionNotFound
from app.metrics import Metrics
from app.monitoring.quality_gauges import WINDOWS, QualityGauges
from app.monitoring.reports import QualityReports, Window
from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackRow, FeedbackStore

HOUR_MS = 3_600_000
NOW_MS = 1_800_000_000_000
LABELS = ("cat", "dog")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(None, tmp_path) as database:
        yield database


def _labels_of(_model: str, version: str) -> tuple[str, ...]:
    if version != "1.0.0":
        raise VersionNotFound("gone")
    return LABELS


def _row(number: int, hours_ago: float, predicted: int, actual: int, **more: object) -> FeedbackRow:
    at = NOW_MS - round(hours_ago * HOUR_MS)
    given = {"alias": "stable", "confidence": 0.8, "version": "1.0.0"} | more
    return FeedbackRow(
        nonce=number.to_bytes(10, "big"),
        model="m",
        predicted_ms=at - 1000,
        received_ms=at,
        top=(predicted,),
        actual=actual,
        **given,  # type: ignore[arg-type]
    )


def _read(metrics: Metrics, name: str) -> dict[tuple[str, str, str], float]:
    """(version, alias, window) to the value."""
    found = {}
    for family in metrics.quality[name].collect():
        for sample in family.samples:
            labels = sample.labels
            assert (labels["model"], labels["source"]) == ("m", "database")
            found[labels["version"], labels["alias"], labels["window"]] = sample.value
    return found


def _gauges(database: Database, metrics: Metrics) -> QualityGauges:
    return QualityGauges(QualityReports(FeedbackStore(database), _labels_of), lambda: ["m"], metrics)


def test_gauges_of_each_window(database: Database) -> None:
    rows = [_row(0, 0.5, 0, 0), _row(1, 2, 0, 1), _row(2, 30, 1, 1), _row(3, 30, 1, 1), _row(4, 500, 1, 0)]
    FeedbackStore(database).add([*rows, _row(5, 0.1, 0, 0, alias=None), _row(6, 0.1, 0, 1, version="0.9.0")])
    metrics = Metrics()
    _gauges(database, metrics).look(NOW_MS)
    accuracy = _read(metrics, "accuracy_ratio")
    stable = {window: value for (version, alias, window), value in accuracy.items() if alias and version == "1.0.0"}
    assert stable == {"1h": 1.0, "1d": 0.5, "7d": 0.75, "last_1000": 0.6}
    assert accuracy["1.0.0", "", "1h"] == 1.0
    assert accuracy["0.9.0", "stable", "1h"] == 0.0
    assert _read(metrics, "labelled_answers")["1.0.0", "stable", "last_1000"] == 5
    assert set(stable) == set(WINDOWS)


def test_what_leaves_the_window_is_no_number(database: Database) -> None:
    FeedbackStore(database).add([_row(0, 0.5, 0, 0)])
    metrics = Metrics()
    gauges = _gauges(database, metrics)
    gauges.look(NOW_MS)
    gauges.look(NOW_MS + 2 * HOUR_MS)
    accuracy = _read(metrics, "accuracy_ratio")
    assert math.isnan(accuracy["1.0.0", "stable", "1h"])
    assert accuracy["1.0.0", "stable", "1d"] == 1.0
    assert _read(metrics, "labelled_answers")["1.0.0", "stable", "1h"] == 0


def test_classes_have_names_while_the_version_is_there(database: Database) -> None:
    store = FeedbackStore(database)
    store.add([_row(0, 1, 0, 1), _row(1, 1, 0, 1, version="0.9.0")])
    found = QualityReports(store, _labels_of).describe("m", Window(last=10), NOW_MS)
    cells = {group["version"]: group["classification"]["confusion"] for group in found["groups"]}
    assert cells == {
        "1.0.0": [{"actual": "dog", "predicted": "cat", "count": 1}],
        "0.9.0": [{"actual": "1", "predicted": "0", "count": 1}],
    }
