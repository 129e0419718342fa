"""The thread of a worker that counts: inputs and answers into their bins, and what was counted into the database."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

from prometheus_client import Counter

from app.metrics import Metrics
from app.monitoring.tallies import Tallies
from app.registry.bin_sample import BinSample
from app.registry.lifecycle import Registry
from app.registry.release import STABLE, Release
from app.registry.servable import Servable

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
WRITE_SECONDS = 10.0
# Of one version: more series make each scrape slow.
MOST_EXPORTED = 32
MISSING_BIN = "missing"


def has_canary(release: Release) -> bool:
    """Whether another alias than stable gets traffic."""
    return any(entry.weight for alias, entry in release.aliases.items() if alias != STABLE)


class Counting:
    """Bins are counted of every version with a baseline; requests of models that have a canary, by the API."""

    def __init__(self, registry: Registry, tallies: Tallies, metrics: Metrics) -> None:
        self._registry = registry
        self._tallies = tallies
        self._metrics = metrics
        self._counters: dict[tuple[str, str], dict[str, list[Counter]]] = {}
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
        for servable, sample in self._sampled():
            key = (servable.name, servable.version)
            counters = self._counters.get(key)
            if counters is None:
                counters = self._counters[key] = self._export(*key, sample)
            counts = sample.take()
            sample.refill()
            if counts:
                self._tallies.add_bins(*key, counts)
            for feature in counts.keys() & counters.keys():
                for counter, count in zip(counters[feature], counts[feature].tolist(), strict=True):
                    if count:
                        counter.inc(count)

    def _sampled(self) -> Iterator[tuple[Servable, BinSample]]:
        for model in list(self._registry.models.values()):
            for status in list(model.versions.values()):
                servable = status.servable
                if servable is not None and servable.sample is not None:
                    yield servable, servable.sample

    def _export(self, name: str, version: str, sample: BinSample) -> dict[str, list[Counter]]:
        """All series of a version, at 0, and what its baseline has in their place."""
        baseline, metrics = sample.baseline, self._metrics
        metrics.drift_reference_inputs.labels(name, version).set(baseline.n)
        counters = {}
        for feature, bins in list(baseline.all_bins.items())[:MOST_EXPORTED]:
            numbers = [*map(str, range(len(bins.counts))), MISSING_BIN]
            counters[feature] = [metrics.input_bins.labels(name, version, feature, number) for number in numbers]
            for number, share in zip(numbers, (*bins.shares, bins.missing_share), strict=True):
                metrics.drift_reference.labels(name, version, feature, number).set(share)
        return counters

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
            if writes:
                self._tallies.write(time.time_ns() // 1_000_000)
        except Exception:
            self._metrics.unrecorded.inc()
            logger.exception("inputs could not be counted")
