"""Histogram values, and the last values of gauges, gathered for a moment and written together.

Seven histograms a request, two counters each in memory shared by the workers, took 20 µs of CPU of a small request and
67 µs after a photo, when nothing of them is in the caches any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client import Gauge, Histogram

FLUSH_SECONDS = 0.2
_FEW = 4


class HistogramRows:
    """Histograms, with their labels bound, that are always observed together."""

    __slots__ = ("histograms", "values")

    def __init__(self, histograms: Iterable[Histogram]) -> None:
        self.histograms = tuple(histograms)
        self.values: list[tuple[float, ...]] = []


class DeferredHistograms:
    """Used in one event loop; with none running, values are written at once."""

    def __init__(self) -> None:
        self._values: dict[Histogram, list[float]] = {}
        self._rows: list[HistogramRows] = []
        self._gauges: dict[Gauge, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def observe(self, histogram: Histogram, value: float) -> None:
        """As `histogram.observe`, FLUSH_SECONDS later at most. `histogram` has its labels bound."""
        values = self._values.get(histogram)
        if values is None:
            values = self._values[histogram] = []
        values.append(value)
        if self._timer is None:
            self._arm()

    def observe_row(self, rows: HistogramRows, values: tuple[float, ...]) -> None:
        """As `observe` of a value for each of the histograms."""
        if not rows.values:
            self._rows.append(rows)
        rows.values.append(values)
        if self._timer is None:
            self._arm()

    def set(self, gauge: Gauge, value: float) -> None:
        """As `gauge.set`, FLUSH_SECONDS later at most; of several values the last."""
        self._gauges[gauge] = value
        if self._timer is None:
            self._arm()

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for histogram, values in self._values.items():
            if values:
                _observe_all(histogram, values)
                values.clear()
        changed, self._rows = self._rows, []
        for rows in changed:
            for histogram, column in zip(rows.histograms, zip(*rows.values, strict=True), strict=True):
                _observe_all(histogram, column)
            rows.values.clear()
        while self._gauges:
            gauge, value = self._gauges.popitem()
            gauge.set(value)

    def _arm(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
        else:
            self._timer = loop.call_later(FLUSH_SECONDS, self.flush)


def _observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """`observe` of each, added up first. Reaches into prometheus_client, which has no call for it."""
    if len(values) < _FEW:
        for value in values:
            histogram.observe(value)
        return
    buckets = np.searchsorted(histogram._upper_bounds[:-1], values)
    for bucket, count in enumerate(np.bincount(buckets).tolist()):
        if count:
            histogram._buckets[bucket].inc(count)
    histogram._sum.inc(sum(values))
