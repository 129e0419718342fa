"""Drift reports over counts in a real SQLite database, against scipy; time is an argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from app.errors import InvalidContent, RegistryError, VersionNotFound
from app.monitoring.binning import Bins, ClassBins
from app.monitoring.distances import EPSILON
from app.monitoring.drift import MOST_STEPS, DriftReports
from app.monitoring.drift_figures import FeatureDrift, VersionDrift, chance_index
from app.registry.baseline import Baseline
from app.storage.counts import BinCounts, CountsStore
from app.storage.database import open_database

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
# A whole hour.
NOW_MS = 1_799_999_999_999 // HOUR_MS * HOUR_MS
LABELS = ("cat", "dog", "bird", "fish")
Array = npt.NDArray[Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CountsStore]:
    with open_database(None, tmp_path) as database:
        yield CountsStore(database)


def _baseline(n: int = 500) -> Baseline:
    random = np.random.default_rng(1)
    light = random.normal(100, 20, n)
    light[:50] = np.nan
    classes = ClassBins.of(random.choice(4, n, p=(0.5, 0.3, 0.2, 0.0)))
    return Baseline(
        "May", n, {"light": Bins.of(light), "size": Bins.of(random.gamma(2, 1, n))}, classes=classes,
        confidence=Bins.of(random.beta(5, 1, n)), entropy=Bins.of(random.beta(1, 5, n)),
    )  # fmt: skip


BASELINE = _baseline()


def _baseline_of(_model: str, version: str) -> Baseline | None:
    if version == "gone":
        raise VersionNotFound("gone")
    return None if version == "none" else BASELINE


def _reports(store: CountsStore) -> DriftReports:
    return DriftReports(store, _baseline_of, lambda *_: LABELS)


def _sample(random: np.random.Generator, n: int, moved: float = 0.0) -> dict[str, tuple[int, ...]]:
    """Counts of n inputs in the bins of BASELINE; `moved` standard deviations of `light` away from it."""
    light = random.normal(100 + 20 * moved, 20, n)
    light[random.random(n) < 0.1] = np.nan
    values: Mapping[str, Array] = {
        "light": light,
        "size": random.gamma(2, 1, n),
        "answer:classes": random.choice(4, n, p=(0.4, 0.3, 0.2, 0.1)),
        "answer:confidence": random.beta(5, 1, n),
        "answer:entropy": random.beta(1, 5, n),
    }
    bins = BASELINE.all_bins
    return {name: tuple(bins[name].count(found).tolist()) for name, found in values.items()}


def _write(store: CountsStore, at_ms: int, bins: Mapping[str, tuple[int, ...]], version: str = "1.0.0") -> None:
    store.write("worker", [], [BinCounts("m", version, at_ms // MINUTE_MS * MINUTE_MS, bins)])


def _only(reports: DriftReports, hours: float = 24, **more: Any) -> VersionDrift:
    (found,) = reports.measure("m", hours, NOW_MS, **more)
    return found


def _features(drift: VersionDrift) -> dict[str, FeatureDrift]:
    return {feature.name: feature for feature in drift.features}


@pytest.mark.parametrize("seed", range(8))
def test_distances_equal_scipy(store: CountsStore, seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [_sample(random, int(random.integers(1, 200)), moved=seed / 8) for _ in range(6)]
    for number, part in enumerate(parts):
        _write(store, NOW_MS - number * 17 * MINUTE_MS, part)
    found = _features(_only(_reports(store)))
    assert list(found) == ["answer:classes", "answer:confidence", "answer:entropy", "light", "size"]
    for name, bins in BASELINE.all_bins.items():
        total = np.sum([part[name] for part in parts], axis=0)
        assert found[name].counts == tuple(total)
        comparison = found[name].from_baseline
        assert comparison is not None
        distances, p, q = comparison.distances, np.array(bins.counts), total[:-1]
        assert distances.n == found[name].n == q.sum()
        assert distances.jensen_shannon == pytest.approx(jensenshannon(p, q, base=2), abs=1e-9)
        shares = np.maximum(p / p.sum(), EPSILON), np.maximum(q / q.sum(), EPSILON)
        index = stats.entropy(*shares) + stats.entropy(*shares[::-1])
        # scipy makes the shares sum to 1 again, which is a thousandth of the smallest bins.
        assert distances.population_stability_index == pytest.approx(index, rel=5e-3)
        both = (p + q) > 0
        expected = stats.chi2_contingency(np.array([p, q])[:, both], correction=False)
        assert distances.chi_squared is not None
        assert distances.chi_squared.statistic == pytest.approx(expected.statistic)
        assert distances.chi_squared.p_value == pytest.approx(expected.pvalue, abs=1e-12)
        if isinstance(bins, ClassBins):
            assert distances.kolmogorov_smirnov is None
        else:
            of_bins = [np.repeat(np.arange(len(row)), row) for row in (p, q)]
            assert distances.kolmogorov_smirnov == pytest.approx(stats.ks_2samp(*of_bins).statistic, abs=1e-12)


def test_index_of_nothing_but_chance() -> None:
    """What is said to be the mean by chance is the mean, also of a column with few values."""
    random = np.random.default_rng(0)
    for draw in (lambda n: random.normal(0, 1, n), lambda n: random.integers(0, 3, n)):
        found, expected = [], []
        for _ in range(300):
            bins = Bins.of(draw(1000))
            reference, current = np.array(bins.counts), bins.count(draw(400))[:-1]
            chance = chance_index(reference, current)
            assert chance is not None
            shares = np.maximum(reference / 1000, EPSILON), np.maximum(current / 400, EPSILON)
            found.append(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))
            expected.append(chance)
        assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.2)


def test_series_sums_equal_the_whole(store: CountsStore) -> None:
    random = np.random.default_rng(2)
    for _ in range(40):
        _write(store, NOW_MS - int(random.integers(0, 30 * HOUR_MS)), _sample(random, 20))
    for step_hours in (0.25, 1, 7):
        drift = _only(_reports(store), hours=20, step_hours=step_hours)
        assert 0 < drift.n < 800
        assert sum(step.n for step in drift.series) == drift.n
        for name, feature in _features(drift).items():
            assert sum(step.features[name].n for step in drift.series) == feature.n
        starts = [step.from_ms for step in drift.series]
        assert starts == sorted(set(starts))
        assert {(start - NOW_MS) % round(step_hours * HOUR_MS) for start in starts} == {
            -20 * HOUR_MS % round(step_hours * HOUR_MS)
        }
    assert _only(_reports(store), step_hours=None).series == ()


def test_first_hours_are_what_later_ones_are_held_against(store: CountsStore) -> None:
    random = np.random.default_rng(3)
    first, later = _sample(random, 300, moved=2), _sample(random, 200, moved=2)
    _write(store, NOW_MS - 30 * HOUR_MS + 5 * MINUTE_MS, first)
    _write(store, NOW_MS - HOUR_MS, later)
    drift = _only(_reports(store), hours=48)
    assert drift.first_hours is not None
    assert (drift.first_hours.from_ms, drift.first_hours.until_ms) == (NOW_MS - 30 * HOUR_MS, NOW_MS - 6 * HOUR_MS)
    assert (drift.first_hours.n, drift.first_hours.is_running, drift.n) == (300, False, 500)
    light = _features(drift)["light"]
    assert light.from_baseline is not None
    assert light.from_release is not None
    # Only what came after the first hours, as the others are what it is held against.
    assert light.from_release.distances.n == sum(later["light"][:-1])
    expected = jensenshannon(first["light"][:-1], later["light"][:-1], base=2)
    assert light.from_release.distances.jensen_shannon == pytest.approx(expected, abs=1e-9)
    assert light.from_baseline.distances.population_stability_index > 1  # type: ignore[operator]
    early, late = (step.features["light"] for step in drift.series)
    assert early.from_release is None
    assert late.from_release is not None
    assert late.from_release.value == light.from_release.distances.population_stability_index
    assert late.from_release.expected_by_chance == light.from_release.expected_by_chance


def test_first_hours_that_run_are_no_reference(store: CountsStore) -> None:
    _write(store, NOW_MS - HOUR_MS, _sample(np.random.default_rng(4), 200))
    drift = _only(_reports(store))
    assert drift.first_hours is not None
    assert drift.first_hours.is_running
    assert {feature.from_release for feature in drift.features} == {None}
    assert {feature.from_release for step in drift.series for feature in step.features.values()} == {None}
    over = _only(_reports(store), release_hours=0.5)
    assert over.first_hours is not None
    assert not over.first_hours.is_running


def test_version_that_was_released_twice(store: CountsStore) -> None:
    """The first hours stay those of the first time; the time between is no part of the series."""
    random = np.random.default_rng(5)
    for hours_ago, moved in ((200, 0), (190, 0), (3, 1), (1, 1)):
        _write(store, NOW_MS - hours_ago * HOUR_MS, _sample(random, 100, moved))
    drift = _only(_reports(store), hours=210)
    assert drift.first_hours is not None
    assert (drift.first_hours.from_ms, drift.first_hours.n) == (NOW_MS - 200 * HOUR_MS, 200)
    light = _features(drift)["light"]
    assert light.from_release is not None
    assert light.from_release.distances.n == sum(step.features["light"].n for step in drift.series[2:])
    assert [step.from_ms for step in drift.series] == [NOW_MS - hours * HOUR_MS for hours in (200, 190, 3, 1)]


def test_merged_hours_change_nothing(store: CountsStore) -> None:
    random = np.random.default_rng(6)
    for minutes_ago in (2750, 2741, 1203, 1199, 605, 301, 21):
        _write(store, NOW_MS - minutes_ago * MINUTE_MS, _sample(random, 50))
    now_ms = NOW_MS + 17 * MINUTE_MS
    before = _reports(store).measure("m", 30, now_ms)
    assert store.merge(now_ms - 2 * HOUR_MS, 1000) == 6
    assert _reports(store).measure("m", 30, now_ms) == before


def test_missing_values(store: CountsStore) -> None:
    counts = _sample(np.random.default_rng(7), 100)
    only_missing = (*[0] * 10, 100)
    _write(store, NOW_MS, counts | {"light": only_missing})
    drift = _only(_reports(store))
    light = _features(drift)["light"]
    assert (drift.n, light.n, light.missing_share) == (100, 0, 1.0)
    assert light.from_baseline is not None
    assert light.from_baseline.distances.population_stability_index is None
    assert light.from_baseline.expected_by_chance is None
    (described,) = _reports(store).describe("m", 24, NOW_MS)["versions"]
    shown = {feature["name"]: feature for feature in described["features"]}
    assert shown["light"]["missing"] == {"n": 100, "reference": 0.1, "current": 1.0}
    assert shown["size"]["missing"] == {"n": 0, "reference": 0.0, "current": 0.0}
    assert shown["light"]["bins"]["current"] == [0.0] * 10


def test_description_names_bins_and_classes(store: CountsStore) -> None:
    _write(store, NOW_MS, _sample(np.random.default_rng(8), 100))
    found = _reports(store).describe("m", 24, NOW_MS, release_hours=12)
    assert found["model"] == "m"
    assert found["window"] == {"hours": 24, "from": "2027-01-14T07:00:00+00:00", "until": "2027-01-15T07:00:00+00:00"}
    (version,) = found["versions"]
    assert (version["version"], version["counted"], version["n"]) == ("1.0.0", True, 100)
    assert version["baseline"] == {"data": "May", "n": 500}
    assert version["first_hours"] == {
        "from": "2027-01-15T07:00:00+00:00", "until": "2027-01-15T19:00:00+00:00", "n": 100, "running": True,
    }  # fmt: skip
    shown = {feature["name"]: feature for feature in version["features"]}
    classes = shown["answer:classes"]
    assert classes["bins"]["classes"] == [0, 1, 2]
    assert classes["bins"]["labels"] == ["cat", "dog", "bird"]
    assert len(classes["bins"]["current"]) == len(classes["bins"]["reference"]) == 4
    assert sum(classes["bins"]["current"]) == pytest.approx(1)
    assert classes["from_baseline"]["kolmogorov_smirnov"] is None
    assert classes["from_baseline"]["chi_squared"]["degrees"] == 3
    assert shown["light"]["bins"]["edges"] == list(BASELINE.features["light"].edges)
    assert set(version["series"][0]["features"]["light"]["from_baseline"]) == {
        "population_stability_index",
        "expected_by_chance",
    }


def test_versions_without_a_baseline(store: CountsStore) -> None:
    found = _reports(store).describe("m", 24, NOW_MS, released=["none", "1.0.0"])
    none, idle = found["versions"]
    assert (none["counted"], none["n"], none["baseline"], none["features"]) == (False, 0, None, [])
    assert "headway baseline m@none DATA" in none["how"]
    assert (idle["counted"], idle["n"], idle["baseline"]) == (True, 0, {"data": "May", "n": 500})


def test_baseline_that_cannot_be_used(store: CountsStore) -> None:
    """Of what was counted and of what was not: it says what is wrong, and not that there is none."""

    def baseline_of(_model: str, version: str) -> Baseline | None:
        raise RegistryError(f"{version}/baseline.json: is damaged")

    _write(store, NOW_MS - HOUR_MS, _sample(np.random.default_rng(9), 100))
    found = DriftReports(store, baseline_of).describe("m", 24, NOW_MS, released=["1.0.0", "idle"])
    assert {version["version"]: (version["counted"], version["baseline"]) for version in found["versions"]} == {
        "1.0.0": (True, None), "idle": (False, None),
    }  # fmt: skip
    for version in found["versions"]:
        label = version["version"]
        assert version["how"] == f"the baseline of m@{label} cannot be used: {label}/baseline.json: is damaged"
    assert DriftReports(store, baseline_of).find_indexes("m", 24, NOW_MS) == {}


def test_version_whose_baseline_is_gone(store: CountsStore) -> None:
    """Its counts can still be held against each other."""
    random = np.random.default_rng(9)
    for hours_ago in (40, 39, 1):
        _write(store, NOW_MS - hours_ago * HOUR_MS, _sample(random, 100), version="gone")
    (drift,) = _reports(store).measure("m", 24, NOW_MS)
    assert (drift.version, drift.is_counted, drift.n, drift.baseline) == ("gone", True, 100, None)
    features = _features(drift)
    assert features["light"].from_baseline is None
    assert features["light"].from_release is not None
    assert features["light"].from_release.distances.kolmogorov_smirnov is not None
    assert features["answer:classes"].from_release is not None
    assert features["answer:classes"].from_release.distances.kolmogorov_smirnov is None
    (described,) = _reports(store).describe("m", 24, NOW_MS)["versions"]
    assert described["features"][0]["bins"]["reference"] is None


def test_counts_of_another_baseline_are_left_out(store: CountsStore) -> None:
    _write(store, NOW_MS, _sample(np.random.default_rng(10), 100) | {"answer:classes": (1, 2, 3), "unknown": (1, 2)})
    features = _features(_only(_reports(store)))
    assert list(features) == list(BASELINE.all_bins)
    assert features["answer:classes"].n == 0
    assert features["light"].n > 0


def test_empty_window(store: CountsStore) -> None:
    assert _reports(store).measure("m", 24, NOW_MS) == []
    _write(store, NOW_MS - 50 * HOUR_MS, _sample(np.random.default_rng(11), 100))
    assert _reports(store).measure("m", 24, NOW_MS) == []
    drift = _only(_reports(store), version="1.0.0")
    assert (drift.n, drift.is_counted, drift.series) == (0, True, ())
    assert drift.first_hours is not None
    assert drift.first_hours.n == 100
    assert all(feature.n == 0 and feature.missing_share is None for feature in drift.features)
    with pytest.raises(VersionNotFound, match=r"m@3\.0\.0 was never counted, nor is it released; there are 1\.0\.0"):
        _reports(store).measure("m", 24, NOW_MS, "3.0.0")


def test_versions_in_the_order_in_which_they_began(store: CountsStore) -> None:
    random = np.random.default_rng(12)
    for version, hours_ago in (("1.1.0", 5), ("1.0.0", 9), ("1.0.0", 0), ("1.2.0", 2), ("0.1.0", 90)):
        _write(store, NOW_MS - hours_ago * HOUR_MS, _sample(random, 10), version)
    found = _reports(store).measure("m", 24, NOW_MS, released=["1.1.0", "2.0.0"])
    assert [drift.version for drift in found] == ["1.2.0", "1.1.0", "1.0.0", "2.0.0"]
    assert [drift.version for drift in _reports(store).measure("m", 24, NOW_MS, "1.1.0")] == ["1.1.0"]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"window_hours": 0}, "hours must be above 0"),
        ({"window_hours": float("nan")}, "hours must be above 0"),
        ({"window_hours": 1e300}, "hours must be above 0 and at most 8,784"),
        ({"release_hours": -1}, "release_hours must be above 0"),
        ({"step_hours": float("inf")}, "step_hours must be above 0"),
        ({"step_hours": 0.001}, r"step_hours must be 0\.017"),
        ({"window_hours": 2001}, r"more than 1,000 steps; make step_hours 2\.1 or more"),
        ({"window_hours": 20, "step_hours": 0.017}, r"make step_hours 0\.1 or more"),
    ],
)
def test_bad_numbers(store: CountsStore, numbers: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidContent, match=words):
        _reports(store).measure("m", **({"window_hours": 24, "now_ms": NOW_MS} | numbers))  # type: ignore[arg-type]


def test_longest_series(store: CountsStore) -> None:
    _write(store, NOW_MS - 999 * HOUR_MS, _sample(np.random.default_rng(13), 10))
    assert len(_only(_reports(store), hours=float(MOST_STEPS)).series) == 1
