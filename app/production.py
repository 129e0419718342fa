"""Quality in production: the parts that count, keep, report and judge, joined. All of it goes on beside predictions."""

from __future__ import annotations

import secrets
from pathlib import Path

from app.engine.counting import Counting
from app.metrics import Metrics
from app.monitoring.drift import DriftReports
from app.monitoring.drift_gauges import DriftGauges
from app.monitoring.feedback import FeedbackDesk
from app.monitoring.housekeeping import SWEEP_SECONDS, Housekeeper, Sweeper, Task
from app.monitoring.prediction_id import PredictionIds
from app.monitoring.quality_gauges import QualityGauges
from app.monitoring.reports import QualityReports
from app.monitoring.tallies import Tallies
from app.registry.answers import Answers
from app.registry.baselines import Baselines
from app.registry.releases.canary_guard import CanaryGuard
from app.registry.releases.editor import ReleaseEditor
from app.registry.serving.lifecycle import Registry
from app.settings import Settings
from app.storage.counts import CountsStore
from app.storage.database import open_configured
from app.storage.feedback import FeedbackStore
from app.storage.leases import Leases

_GAUGES_SECONDS = 15
# Less than half of a judge's lease.
_JUDGE_SECONDS = 10


class Production:
    """Of one process; made after a fork. Nothing is opened before it is used. `close` waits for a last write."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        editor: ReleaseEditor,
        prediction_ids: PredictionIds | None,
        metrics: Metrics,
        run_dir: Path | None,
    ) -> None:
        self._database = database = open_configured(settings)
        feedback, counts = FeedbackStore(database), CountsStore(database)
        labels_of, baseline_of = Answers(registry.store).labels_of, Baselines(registry.store).baseline_of
        name = secrets.token_hex(8)
        self.tallies = Tallies(counts, name)
        self.desk = FeedbackDesk(prediction_ids, feedback, labels_of, metrics)
        self.quality_reports = QualityReports(feedback, labels_of)
        self.drift_reports = DriftReports(counts, baseline_of, labels_of)
        self._guard = CanaryGuard(editor, counts, feedback, Leases(database), metrics, name)
        self.canary_judge = self._guard.judge
        self._counting = Counting(registry, self.tallies, metrics)
        quality_gauges = QualityGauges(self.quality_reports, lambda: list(registry.models), metrics)
        drift_gauges = DriftGauges(self.drift_reports, lambda: list(registry.models), metrics)
        tasks = (
            Task("updating the gauges of quality", quality_gauges.look, _GAUGES_SECONDS),
            Task("updating the gauges of drift", drift_gauges.look, _GAUGES_SECONDS),
            Task("judging canaries", self._guard.look, _JUDGE_SECONDS),
            Task("sweeping the database", Sweeper(database, settings.feedback_keep_days).look, SWEEP_SECONDS),
        )
        self._housekeeper = Housekeeper(database, tasks, run_dir)

    def start(self) -> None:
        self._counting.start()
        self._housekeeper.start()

    def close(self) -> None:
        self._housekeeper.close()
        self._counting.close()
        self._guard.close()
        self._database.close()
