"""headway_drift_psi from counts in a real SQLite database; time is an argument."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.metrics import Metrics
from app.monitoring.binning import Bins
from app.monitoring.distances import population_stability_index
from app.monitoring.drift import DriftReports
from app.monitoring.drift_gauges import NAMED_FEATURES, OTHERS, DriftGauges
from app.registry.baseline import Baseline
from app.storage.counts import BinCounts, CountsStore
from app.storage.database import open_database

HOUR_MS = 3_600_000
NOW_MS = 500_000 * HOUR_MS
RANDOM = np.random.default_rng(1)
FEATURES = 40
COLUMNS = {f"f{number}": Bins.of(RANDOM.normal(0, 1, 200)) for number in range(FEATURES)}
BASELINE = Baseline("May", 200, COLUMNS, value=Bins.of(RANDOM.random(200)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CountsStore]:
    with open_database(None, tmp_path) as database:
        yield CountsStore(database)


def _counts(hours_ago: float, moved: dict[str, float] | None = None) -> BinCounts:
    bins = {
        name: tuple(one.count(RANDOM.normal((moved or {}).get(name, 0), 1, 100)).tolist())
        for name, one in BASELINE.all_bins.items()
    }
    return BinCounts("m", "1.0.0", NOW_MS - round(hours_ago * HOUR_MS), bins)


def _gauges(store: CountsStore, metrics: Metrics) -> DriftGauges:
    return DriftGauges(DriftReports(store, lambda *_: BASELINE), lambda: ["m", "idle"], metrics)


def _read(metrics: Metrics) -> dict[tuple[str, str], float]:
    """(feature, window) to the value."""
    found = {}
    for sample in next(iter(metrics.drift_psi.collect())).samples:
        labels = sample.labels
        assert (labels["model"], labels["version"], labels["source"]) == ("m", "1.0.0", "database")
        found[labels["feature"], labels["window"]] = sample.value
    return found


def test_first_features_by_name_and_the_largest_of_the_rest(store: CountsStore) -> None:
    hour, day = _counts(0.5, {"f3": 1, "f35": 2}), _counts(20)
    store.write("worker", [], [hour, day])
    metrics = Metrics()
    _gauges(store, metrics).look(NOW_MS)
    found = _read(metrics)
    names = list(BASELINE.all_bins)
    assert names[:2] == ["answer:value", "f0"]
    assert set(found) == {(name, window) for name in [*names[:NAMED_FEATURES], OTHERS] for window in ("1h", "1d")}
    for window, parts in (("1h", [hour]), ("1d", [hour, day])):
        sums = {name: np.sum([part.bins[name] for part in parts], axis=0)[:-1] for name in names}
        indexes = {name: population_stability_index(BASELINE.all_bins[name].counts, sums[name]) for name in names}  # type: ignore[arg-type]
        assert found["f3", window] == pytest.approx(indexes["f3"])
        assert found[OTHERS, window] == pytest.approx(max(indexes[name] for name in names[NAMED_FEATURES:]))
        assert found[OTHERS, window] == pytest.approx(indexes["f35"])


def test_what_leaves_the_window_is_no_number(store: CountsStore) -> None:
    store.write("worker", [], [_counts(0.5)])
    metrics = Metrics()
    gauges = _gauges(store, metrics)
    gauges.look(NOW_MS)
    gauges.look(NOW_MS + 2 * HOUR_MS)
    found = _read(metrics)
    assert math.isnan(found["f3", "1h"])
    assert found["f3", "1d"] > 0


def test_feature_without_values_has_no_gauge_and_keeps_its_place(store: CountsStore) -> None:
    counts = _counts(0)
    bins = {**counts.bins, "f3": (*[0] * 10, 100)}
    store.write("worker", [], [BinCounts("m", "1.0.0", NOW_MS, bins)])
    metrics = Metrics()
    _gauges(store, metrics).look(NOW_MS)
    found = _read(metrics)
    assert ("f3", "1h") not in found
    assert ("f30", "1h") in found
    assert ("f31", "1h") not in found


def test_column_that_is_named_as_the_rest(store: CountsStore) -> None:
    features = {OTHERS if name == "f0" else name: one for name, one in BASELINE.features.items()}
    baseline = Baseline("May", 200, features)
    moved = {name: one.count(RANDOM.normal(3 if name == OTHERS else 0, 1, 100)) for name, one in features.items()}
    bins = {name: tuple(counts.tolist()) for name, counts in moved.items()}
    store.write("worker", [], [BinCounts("m", "1.0.0", NOW_MS, bins)])
    metrics = Metrics()
    DriftGauges(DriftReports(store, lambda *_: baseline), lambda: ["m"], metrics).look(NOW_MS)
    assert _read(metrics)[OTHERS, "1h"] == pytest.approx(
        population_stability_index(np.array(features[OTHERS].counts), moved[OTHERS][:-1])
    )


def test_version_without_a_baseline_has_none(store: CountsStore) -> None:
    store.write("worker", [], [_counts(0)])
    metrics = Metrics()
    DriftGauges(DriftReports(store, lambda *_: None), lambda: ["m"], metrics).look(NOW_MS)
    assert _read(metrics) == {}
