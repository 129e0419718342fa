"""headway_drift_psi: how far the last hour and the last day are from the baseline, from the counts in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from app.metrics import Metrics, ShownGauges
from app.monitoring.drift import DriftReports

# The label `window` of the gauge, in hours.
WINDOWS = {"1h": 1.0, "1d": 24.0}
SOURCE = "database"
OTHERS = "others"
# Of a version; those whose bins are exported too.
NAMED_FEATURES = 32


class DriftGauges:
    """`models` names the models that are served."""

    def __init__(self, reports: DriftReports, models: Callable[[], Iterable[str]], metrics: Metrics) -> None:
        self._reports = reports
        self._models = models
        self._shown = ShownGauges(metrics.drift_psi)

    def look(self, now_ms: int) -> None:
        """Set the gauges from the counts at that time (Unix, ms). Raises FeedbackUnavailable."""
        found: dict[tuple[str, ...], float] = {}
        for model in self._models():
            for label, hours in WINDOWS.items():
                for version, indexes in self._reports.find_indexes(model, hours, now_ms).items():
                    for feature, value in _exported(indexes).items():
                        found[model, version, feature, label, SOURCE] = value
        self._shown.show(found)


def _exported(indexes: Mapping[str, float | None]) -> dict[str, float]:
    """The first features under their names, the largest of the rest as `others`; a column may have that name too."""
    found: dict[str, float] = {}
    for number, (feature, value) in enumerate(indexes.items()):
        name = feature if number < NAMED_FEATURES else OTHERS
        if value is not None:
            found[name] = max(value, found.get(name, 0.0))
    return found
