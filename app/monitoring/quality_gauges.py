"""The gauges of quality, from the feedback in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from app.metrics import Metrics, ShownGauges
from app.monitoring.reports import QualityReports, Window

# The label `window` of the gauges.
WINDOWS = {"1h": Window(hours=1), "1d": Window(hours=24), "7d": Window(hours=168), "last_1000": Window(last=1000)}
SOURCE = "database"


class QualityGauges:
    """`models` names the models that are served."""

    def __init__(self, reports: QualityReports, models: Callable[[], Iterable[str]], metrics: Metrics) -> None:
        self._reports = reports
        self._models = models
        self._shown = {name: ShownGauges(gauge) for name, gauge in metrics.quality.items()}

    def look(self, now_ms: int) -> None:
        """Set the gauges from the feedback at that time (Unix, ms). Raises FeedbackUnavailable."""
        found: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in self._shown}
        for model in self._models():
            for label, window in WINDOWS.items():
                for group in self._reports.measure(model, window, now_ms):
                    labels = (model, group.version, group.alias or "", label, SOURCE)
                    for name, value in group.gauges.items():
                        found[name][labels] = value
        for name, shown in self._shown.items():
            shown.show(found[name])
