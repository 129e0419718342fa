"""The thread of a worker that counts: inputs and answers into their bins, and what was counted into the database."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Counter

from app.metrics import Metrics
from app.monitoring.tallies import Tallies
from app.registry.baseline import Baseline
from app.registry.releases.release import STABLE, Release
from app.registry.servables.bin_sample import BinSample
from app.registry.servables.servable import Servable
from app.registry.serving.lifecycle import Registry

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
WRITE_SECONDS = 10.0
# Of one version: more series make each scrape slow.
MOST_EXPORTED = 32
MISSING_BIN = "missing"


def has_canary(release: Release) -> bool:
    """Whether another alias than stable gets traffic."""
    return any(entry.weight for alias, entry in release.aliases.items() if alias != STABLE)


@dataclass(frozen=True, slots=True)
class _Exported:
    """What of a version is in the metrics: a counter for each bin of each feature, last that of missing values."""

    baseline: Baseline
    counters: dict[str, list[Counter]]


def _reference(baseline: Baseline) -> Iterator[tuple[str, str, float]]:
    """Feature, bin and share of what is exported of a baseline."""
    for feature, bins in list(baseline.all_bins.items())[:MOST_EXPORTED]:
        yield from ((feature, str(number), share) for number, share in enumerate(bins.shares))
        yield feature, MISSING_BIN, bins.missing_share


class Counting:
    """Bins are counted of every version with a baseline; requests of models that have a canary, by the API."""

    def __init__(self, registry: Registry, tallies: Tallies, metrics: Metrics) -> None:
        self._registry = registry
        self._tallies = tallies
        self._metrics = metrics
        self._exported: dict[tuple[str, str], _Exported] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="counting", daemon=True)

    def start(self) -> None:
        """Looks once before the first request, so that this one is counted."""
        self._count(writes=False)
        self._thread.start()

    def close(self) -> None:
        """Counts and writes what there is."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Count what was sampled since the last call, and let samples begin anew."""
        self._tallies.watched = frozenset(
            name
            for name, model in self._registry.models.items()
            if model.release is not None and has_canary(model.release)
        )
        seen = set()
        for servable, sample in self._sampled():
            key = (servable.name, servable.version)
            seen.add(key)
            try:
                self._count_bins(key, sample)
            except Exception:
                self._metrics.unrecorded.inc()
                logger.exception("inputs of %s@%s could not be counted", *key)
            sample.refill()
        for key in self._exported.keys() - seen:
            self._withdraw(*key, self._exported.pop(key))

    def _count_bins(self, key: tuple[str, str], sample: BinSample) -> None:
        exported = self._exported.get(key)
        if exported is None or exported.baseline is not sample.baseline:
            exported = self._exported[key] = self._export(*key, sample.baseline)
        counts = sample.take()
        if counts:
            self._tallies.add_bins(*key, counts)
        for feature in counts.keys() & exported.counters.keys():
            for counter, count in zip(exported.counters[feature], counts[feature].tolist(), strict=True):
                if count:
                    counter.inc(count)

    def _sampled(self) -> Iterator[tuple[Servable, BinSample]]:
        for model in list(self._registry.models.values()):
            for status in list(model.versions.values()):
                servable = status.servable
                if servable is not None and servable.sample is not None:
                    yield servable, servable.sample

    def _export(self, name: str, version: str, baseline: Baseline) -> _Exported:
        """All series of a version, at 0, and what its baseline has in their place."""
        metrics = self._metrics
        metrics.drift_reference_inputs.labels(name, version).set(baseline.n)
        counters: dict[str, list[Counter]] = {}
        for feature, number, share in _reference(baseline):
            metrics.drift_reference.labels(name, version, feature, number).set(share)
            counters.setdefault(feature, []).append(metrics.input_bins.labels(name, version, feature, number))
        return _Exported(baseline, counters)

    def _withdraw(self, name: str, version: str, exported: _Exported) -> None:
        """A version that is not served here any more; of several processes a gauge cannot be taken away."""
        self._metrics.drift_reference_inputs.labels(name, version).set(math.nan)
        for feature, number, _ in _reference(exported.baseline):
            self._metrics.drift_reference.labels(name, version, feature, number).set(math.nan)

    def _work(self) -> None:
        written = time.monotonic()
        while True:
            is_last = self._closing.wait(LOOK_SECONDS)
            is_due = is_last or time.monotonic() - written >= WRITE_SECONDS
            if is_due:
                written = time.monotonic()
            self._count(writes=is_due)
            if is_last:
                return

    def _count(self, *, writes: bool) -> None:
        try:
            self.look()
            now_ms = time.time_ns() // 1_000_000
            self._tallies.collect(now_ms)
            if writes:
                self._tallies.write(now_ms)
        except Exception:
            self._metrics.unrecorded.inc()
            logger.exception("what was counted could not be kept")
