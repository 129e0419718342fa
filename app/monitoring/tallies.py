"""What this process has counted, by the minute, until the database has it."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Mapping

import numpy as np

from app.errors import HeadwayError
from app.metrics import DURATION_BUCKETS
from app.storage.counts import BinCounts, CountsStore, RequestCounts
from app.tensors import Array

logger = logging.getLogger(__name__)

MINUTE_MS = 60_000
# What the database does not take is kept so long, counted from the newest minute.
_KEPT_MS = 60 * MINUTE_MS

# Model, version, alias ("" where the caller named one, or an exact version).
_Requests = dict[tuple[str, str, str], tuple[int, int, Array]]
_Bins = dict[tuple[str, str], dict[str, Array]]


class Tallies:
    """For all threads. `writer` is a name that no other process has, nor a former one.

    Requests are counted of the models in `watched` only, which is replaced as a whole.
    """

    def __init__(self, store: CountsStore, writer: str) -> None:
        self.watched: frozenset[str] = frozenset()
        self._store = store
        self._writer = writer
        self._lock = threading.Lock()
        self._requests: _Requests = {}
        self._bins: _Bins = {}
        # By the minute; those in `_changed` are not in the database as they are here.
        self._request_minutes: dict[int, _Requests] = {}
        self._bin_minutes: dict[int, _Bins] = {}
        self._changed: set[int] = set()
        self._newest_ms = 0
        self._is_failing = False

    def count_request(self, model: str, version: str, alias: str | None, seconds: float | None) -> None:
        """One that was answered in `seconds`, or, None, at which the version failed. `alias`: where it was drawn."""
        key = (model, version, alias or "")
        with self._lock:
            found = self._requests.get(key)
            answered, failed, durations = found or (0, 0, np.zeros(len(DURATION_BUCKETS) + 1, np.int64))
            if seconds is not None:
                durations[bisect_left(DURATION_BUCKETS, seconds)] += 1
            self._requests[key] = (answered + 1, failed + (seconds is None), durations)

    def add_bins(self, model: str, version: str, counts: Mapping[str, Array]) -> None:
        """More of each feature's bins and missing values."""
        with self._lock:
            kept = self._bins.setdefault((model, version), {})
            for feature, found in counts.items():
                kept[feature] = kept[feature] + found if feature in kept else found

    def write(self, now_ms: int) -> None:
        """`collect`, and give all that is new to the database. In one thread.

        Where that fails, it is told once, and tried again with the next call.
        """
        self.collect(now_ms)
        if not self._changed:
            return
        try:
            self._store.write(self._writer, self._request_rows(), self._bin_rows())
        except HeadwayError as exc:
            if not self._is_failing:
                logger.error("counts cannot be kept: %s", exc)
            self._is_failing = True
            self._forget(now_ms - _KEPT_MS)
        else:
            if self._is_failing:
                logger.info("counts are kept again")
            self._is_failing = False
            self._changed.clear()
            self._forget(now_ms - MINUTE_MS)

    def collect(self, now_ms: int) -> None:
        """What was counted since the last call belongs to the minute of `now_ms`. In the thread of `write`."""
        minute_ms = now_ms - now_ms % MINUTE_MS
        if minute_ms < self._newest_ms:
            # The clock was set back: minutes that are written already must not be written anew with less in them.
            self._writer += "+"
            self._request_minutes.clear()
            self._bin_minutes.clear()
            self._changed.clear()
        self._newest_ms = minute_ms
        with self._lock:
            requests, self._requests = self._requests, {}
            bins, self._bins = self._bins, {}
        for key, (answered, failed, durations) in requests.items():
            kept = self._request_minutes.setdefault(minute_ms, {})
            before = kept.get(key, (0, 0, np.zeros_like(durations)))
            kept[key] = (before[0] + answered, before[1] + failed, before[2] + durations)
        for version, counts in bins.items():
            features = self._bin_minutes.setdefault(minute_ms, {}).setdefault(version, {})
            for feature, found in counts.items():
                features[feature] = features[feature] + found if feature in features else found
        if requests or bins:
            self._changed.add(minute_ms)

    def _request_rows(self) -> list[RequestCounts]:
        return [
            RequestCounts(*key, minute_ms, answered, failed, tuple(durations.tolist()))
            for minute_ms in self._changed
            for key, (answered, failed, durations) in self._request_minutes.get(minute_ms, {}).items()
        ]

    def _bin_rows(self) -> list[BinCounts]:
        return [
            BinCounts(*version, minute_ms, {feature: tuple(found.tolist()) for feature, found in counts.items()})
            for minute_ms in self._changed
            for version, counts in self._bin_minutes.get(minute_ms, {}).items()
        ]

    def _forget(self, before_ms: int) -> None:
        """Minutes that ended before: nothing is added to them any more."""
        for minutes in (self._request_minutes, self._bin_minutes):
            for minute_ms in [minute_ms for minute_ms in minutes if minute_ms + MINUTE_MS <= before_ms]:
                del minutes[minute_ms]
                self._changed.discard(minute_ms)
