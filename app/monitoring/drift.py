"""Drift of each version: what it is asked, and answers, against its baseline and against its own first hours.

All from the counts in the database, in the bins of the baseline. What is counted, and how much of it, is not decided
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np

from app.errors import HeadwayError, InvalidContent, VersionNotFound
from app.monitoring.binning import Bins, ClassBins
from app.monitoring.drift_description import describe_version, iso_time
from app.monitoring.drift_figures import (
    Baseline,
    Comparison,
    FeatureDrift,
    FeatureStep,
    FirstHours,
    StabilityIndex,
    Step,
    VersionDrift,
)
from app.monitoring.feedback import LabelsOf
from app.storage.counts import BinCounts, CountedVersion, CountsStore
from app.tensors import Array

MOST_STEPS = 1_000
MOST_HOURS = 24 * 366
_MINUTE_MS = 60_000
_HOUR_MS = 3_600_000
# The feature whose bins have no order, for when the baseline that says so is gone.
_CLASSES = "answer:classes"

# The baseline of a version; None where it has none. May raise a HeadwayError where it is gone or damaged.
BaselineOf = Callable[[str, str], Baseline | None]


@dataclass(frozen=True, slots=True)
class DriftWindow:
    """Unix milliseconds, from `since_ms` until before `until_ms`, in parts of `step_ms` (None: no series).

    `release_ms` is how long the first hours of a version are.
    """

    since_ms: int
    until_ms: int
    step_ms: int | None
    release_ms: int

    @classmethod
    def of(cls, hours: float, now_ms: int, step_hours: float | None = None, release_hours: float = 24.0) -> Self:
        """The last `hours` before `now_ms`. Raises InvalidContent.

        Begins with a whole minute; if it is longer than an hour with a whole hour, as older counts are by the hour.
        """
        for name, value in (("hours", hours), ("step_hours", step_hours), ("release_hours", release_hours)):
            if value is not None and not 0 < value <= MOST_HOURS:
                raise InvalidContent(f"{name} must be above 0 and at most {MOST_HOURS:,}, not {value:g}")
        if step_hours is not None:
            if step_hours * _HOUR_MS < _MINUTE_MS:
                raise InvalidContent("step_hours must be 0.017 (a minute) or more: counts are kept by the minute")
            if hours > step_hours * MOST_STEPS:
                raise InvalidContent(
                    f"{hours:g} hours in steps of {step_hours:g} h are more than {MOST_STEPS:,} steps; "
                    f"make step_hours {max(0.017, math.ceil(hours * 10 / MOST_STEPS) / 10):g} or more"
                )
        whole = _HOUR_MS if hours > 1 else _MINUTE_MS
        since_ms = (now_ms - round(hours * _HOUR_MS)) // whole * whole
        step_ms = None if step_hours is None else round(step_hours * _HOUR_MS)
        return cls(since_ms, now_ms + 1, step_ms, round(release_hours * _HOUR_MS))


class DriftReports:
    """For any thread; waits for the database and raises FeedbackUnavailable. `labels_of` names the classes."""

    def __init__(self, store: CountsStore, baseline_of: BaselineOf, labels_of: LabelsOf | None = None) -> None:
        self._store = store
        self._baseline_of = baseline_of
        self._labels_of = labels_of

    def measure(
        self,
        model: str,
        window_hours: float,
        now_ms: int,
        version: str | None = None,
        *,
        step_hours: float | None = 1.0,
        release_hours: float = 24.0,
        released: Iterable[str] = (),
    ) -> list[VersionDrift]:
        """Each version that was counted in the window, the one that began last first, then the others of `released`.

        Without `step_hours` there is no series. Raises VersionNotFound where `version` is not released and was never
        counted, InvalidContent for numbers that make no window.
        """
        window = DriftWindow.of(window_hours, now_ms, step_hours, release_hours)
        counted = self._find_counted(model)
        names = [name for name, entry in counted.items() if entry.last_ms >= window.since_ms]
        names += [name for name in released if name not in names]
        if version is not None:
            if version not in counted and version not in names:
                known = ", ".join(sorted({*counted, *names})) or "none"
                raise VersionNotFound(f"{model}@{version} was never counted, nor is it released; there are {known}")
            names = [version]
        return [self._measure(model, name, counted.get(name), window) for name in names]

    def describe(self, model: str, window_hours: float, now_ms: int, **more: Any) -> dict[str, Any]:
        """For people and programs: as `measure`, with the names of the classes."""
        window = DriftWindow.of(window_hours, now_ms)
        return {
            "model": model,
            "window": {"hours": window_hours, "from": iso_time(window.since_ms), "until": iso_time(now_ms)},
            "versions": [
                describe_version(model, drift, partial(self._name_classes, model, drift.version))
                for drift in self.measure(model, window_hours, now_ms, **more)
            ],
        }

    def find_indexes(self, model: str, window_hours: float, now_ms: int) -> dict[str, dict[str, float | None]]:
        """The population stability index to the baseline alone, by version and by feature in the baseline's order.

        Of the versions that have a baseline and were counted in the window; None where a feature has no values.
        """
        window = DriftWindow.of(window_hours, now_ms)
        found: dict[str, dict[str, float | None]] = {}
        for version, entry in self._find_counted(model).items():
            if entry.last_ms < window.since_ms:
                continue
            baseline, _ = self._find_baseline(model, version)
            if baseline is not None:
                sums = _Sums(baseline)
                whole = sums.of(self._store.bins(model, version, window.since_ms, window.until_ms))
                indexes = {name: StabilityIndex.between(sums.reference(name), row[:-1]) for name, row in whole.items()}
                found[version] = {name: None if one is None else one.value for name, one in indexes.items()}
        return found

    def _find_counted(self, model: str) -> dict[str, CountedVersion]:
        entries = sorted(self._store.bin_versions(model), key=lambda entry: -entry.first_ms)
        return {entry.version: entry for entry in entries}

    def _find_baseline(self, model: str, version: str) -> tuple[Baseline | None, str | None]:
        """And what is wrong with it, where it is there; the counts that were made with it can be read all the same."""
        try:
            return self._baseline_of(model, version), None
        except HeadwayError as exc:
            return None, str(exc)

    def _measure(self, model: str, version: str, counted: CountedVersion | None, window: DriftWindow) -> VersionDrift:
        baseline, fault = self._find_baseline(model, version)
        if counted is None:
            return VersionDrift(version, baseline is not None, baseline=baseline, fault=fault)
        sums = _Sums(baseline)
        steps = self._store.bins(model, version, window.since_ms, window.until_ms, window.step_ms)
        whole = sums.of(steps)
        start_ms = counted.first_ms // _HOUR_MS * _HOUR_MS
        end_ms = start_ms + window.release_ms
        first = sums.of(self._store.bins(model, version, start_ms, min(end_ms, window.until_ms)))
        # What is a part of the first hours is not held against them: it would seem nearer than it is.
        if end_ms <= window.since_ms:
            later = whole
        elif end_ms < window.until_ms:
            later = sums.of(self._store.bins(model, version, end_ms, window.until_ms))
        else:
            later = {}
        return VersionDrift(
            version,
            True,
            _inputs(whole),
            baseline,
            FirstHours(start_ms, end_ms, _inputs(first), is_running=end_ms >= window.until_ms),
            tuple(_compare_feature(name, sums, whole[name], first.get(name), later.get(name)) for name in whole),
            () if window.step_ms is None else tuple(_measure_step(step, sums, first, end_ms) for step in steps),
            fault,
        )

    def _name_classes(self, model: str, version: str, bins: ClassBins) -> list[str]:
        """The index itself where the version is no longer there."""
        try:
            labels: Sequence[str] = (self._labels_of and self._labels_of(model, version)) or ()
        except HeadwayError:
            labels = ()
        return [labels[index] if index < len(labels) else str(index) for index in bins.classes]


class _Sums:
    """Adds up counts, [bins + 1] each, of the features of one version."""

    def __init__(self, baseline: Baseline | None) -> None:
        self.bins = {} if baseline is None else baseline.all_bins
        self._lengths = {name: len(bins.counts) + 1 for name, bins in self.bins.items()}
        self._is_open = baseline is None

    def of(self, parts: Iterable[BinCounts]) -> dict[str, Array]:
        """All features of the baseline, in its order; without one those that were counted.

        Counts of another number of bins were made with another baseline, of a removed version with this number.
        """
        sums: dict[str, Array] = {name: np.zeros(length, np.int64) for name, length in self._lengths.items()}
        for part in parts:
            for name, counts in part.bins.items():
                if self._is_open and name not in sums:
                    self._lengths[name] = len(counts)
                    sums[name] = np.zeros(len(counts), np.int64)
                if self._lengths.get(name) == len(counts):
                    sums[name] += np.array(counts, np.int64)
        return sums

    def reference(self, name: str) -> Array | None:
        return np.array(self.bins[name].counts, np.int64) if name in self.bins else None

    def is_ordered(self, name: str) -> bool:
        return isinstance(self.bins[name], Bins) if name in self.bins else name != _CLASSES


def _inputs(sums: dict[str, Array]) -> int:
    return max((int(row.sum()) for row in sums.values()), default=0)


def _compare_feature(name: str, sums: _Sums, current: Array, first: Array | None, later: Array | None) -> FeatureDrift:
    is_ordered = sums.is_ordered(name)
    reference = sums.reference(name)
    return FeatureDrift(
        name,
        tuple(current.tolist()),
        sums.bins.get(name),
        None if reference is None else Comparison.between(reference, current[:-1], is_ordered=is_ordered),
        None if first is None or later is None else Comparison.between(first[:-1], later[:-1], is_ordered=is_ordered),
    )


def _measure_step(step: BinCounts, sums: _Sums, first: dict[str, Array], end_ms: int) -> Step:
    rows = sums.of([step])
    is_later = step.minute_ms >= end_ms
    features = {}
    for name, row in rows.items():
        release = first[name][:-1] if is_later and name in first else None
        features[name] = FeatureStep(
            int(row[:-1].sum()),
            StabilityIndex.between(sums.reference(name), row[:-1]),
            StabilityIndex.between(release, row[:-1]),
        )
    return Step(step.minute_ms, _inputs(rows), features)
