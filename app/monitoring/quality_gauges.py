"""Keeps the quality gauges up to date, and the feedback within its time: one process of a machine does it for all."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, NamedTuple

from app.errors import FeedbackUnavailable
from app.metrics import Metrics
from app.monitoring.reports import QualityReports, Window
from app.storage.database import Database
from app.storage.feedback import FeedbackStore

logger = logging.getLogger(__name__)

# The label `window` of the gauges.
WINDOWS = {"1h": Window(hours=1), "1d": Window(hours=24), "7d": Window(hours=168), "last_1000": Window(last=1000)}
SOURCE = "database"
LOOK_SECONDS = 15.0
_SWEEP_SECONDS = 3600.0
_SWEPT_AT_ONCE = 20_000
_DAY_MS = 86_400_000


class _Series(NamedTuple):
    name: str
    labels: tuple[str, ...]


class QualityWatch:
    """`models` names the models that are served. `keep_days`: how long feedback is kept."""

    def __init__(
        self,
        database: Database,
        reports: QualityReports,
        models: Callable[[], Iterable[str]],
        metrics: Metrics,
        run_dir: Path | None,
        keep_days: float,
    ) -> None:
        self._database = database
        self._store = FeedbackStore(database)
        self._reports = reports
        self._models = models
        self._metrics = metrics
        self._run_dir = run_dir
        self._keep_ms = keep_days * _DAY_MS
        self._shown: set[_Series] = set()
        self._swept_at = 0.0
        self._is_failing = False
        self._lock_file: IO[bytes] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="quality", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=0.5)

    def look(self, now_ms: int) -> None:
        """Set the gauges from the feedback at that time (Unix, ms). Raises FeedbackUnavailable."""
        found: dict[_Series, float] = {}
        for model in self._models():
            for label, window in WINDOWS.items():
                for group in self._reports.measure(model, window, now_ms):
                    labels = (model, group.version, group.alias or "", label, SOURCE)
                    found |= {_Series(name, labels): value for name, value in group.gauges.items()}
        # A gauge of several processes cannot be taken away; what is not known any more is no number.
        for series in self._shown - found.keys():
            self._set(series, math.nan)
        for series, value in found.items():
            self._set(series, value)
        self._shown = set(found)

    def _set(self, series: _Series, value: float) -> None:
        self._metrics.quality[series.name].labels(*series.labels).set(value)

    def sweep(self, now_ms: int) -> int:
        """Delete feedback that is older than it is kept; returns how many. Raises FeedbackUnavailable."""
        return self._store.delete_before(now_ms - round(self._keep_ms), _SWEPT_AT_ONCE)

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                if self._is_my_turn() and self._database.exists():
                    self._work(time.time_ns() // 1_000_000)
                self._is_failing = False
            except FeedbackUnavailable as exc:
                if not self._is_failing:
                    logger.error("quality cannot be shown: %s", exc)
                self._is_failing = True
            except Exception:
                logger.exception("quality could not be computed; tried again")
            self._closing.wait(LOOK_SECONDS)

    def _work(self, now_ms: int) -> None:
        self.look(now_ms)
        now = time.monotonic()
        if now - self._swept_at > _SWEEP_SECONDS or not self._swept_at:
            self.sweep(now_ms)
            self._swept_at = now

    def _is_my_turn(self) -> bool:
        """Whether this process is the one that does it: whoever has the lock keeps it until it ends."""
        if self._run_dir is None or self._lock_file is not None:
            return True
        import fcntl  # not on Windows, where there is one process and no run_dir

        file = (self._run_dir / "quality.lock").open("ab")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock_file = file
            return True
        file.close()
        return False
