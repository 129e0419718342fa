"""A day of photos, simulated: where they get darker, drift is told before accuracy falls, and on a healthy day nothing.

Everything is real but the clock, which is an argument: the network, the photos, the database, the metrics, the rules.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from app.engine.batcher import Batcher
from app.engine.call import Call
from app.engine.counting import Counting
from app.engine.inference import Inference
from app.metrics import Metrics
from app.monitoring.drift import DriftReports
from app.monitoring.drift_gauges import DriftGauges
from app.monitoring.feedback import Feedback, FeedbackDesk, Taken
from app.monitoring.housekeeping import Sweeper
from app.monitoring.keys import SigningKeys
from app.monitoring.prediction_id import Prediction, PredictionIds, new_nonce
from app.monitoring.quality_gauges import QualityGauges
from app.monitoring.reports import QualityReports
from app.monitoring.tallies import Tallies
from app.registry.answers import Answers
from app.registry.baselines import Baselines
from app.registry.servables.bin_sample import PHOTOS_A_SECOND
from app.registry.servables.servable import Content, Item
from app.registry.serving.lifecycle import Registry
from app.registry.serving.states import ModelStates
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.storage.counts import CountsStore
from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackStore
from tests.prometheus.digit_photos import LABELS, MODEL, Camera, Photo, publish
from tests.running import ROOT
from tests.tools import require_command

RULES = [ROOT / "prometheus" / f"{name}.rules.yml" for name in ("recording", "drift", "alerts")]
# Midnight, UTC.
START_MS = 20_000 * 86_400_000
MINUTE_MS = 60_000
DAY_MINUTES = 24 * 60
SCRAPE_MINUTES, SWEEP_MINUTES = 5, 10
PHOTOS_A_MINUTE = 3.0
FEEDBACK_SHARE, FEEDBACK_LATE_MINUTES = 0.05, 120
DUSK_HOUR, NIGHT_HOUR = 15, 18

# Values by the series, both as they are written.
Scrape = dict[str, str]


class Worker:
    """What a worker has for predictions, feedback and drift, but for its threads."""

    def __init__(self, root: Path, database: Database) -> None:
        self.metrics = metrics = Metrics()
        self.registry = Registry(Store(root))
        self.registry.load()
        ModelStates(self.registry, metrics).publish()
        self._batcher = Batcher(1, metrics)
        self._inference = Inference(self.registry, self._batcher, metrics)
        self._prediction_ids = PredictionIds(SigningKeys.parse(["1:a secret of some length"]), 30 * 86_400)
        feedback, counts = FeedbackStore(database), CountsStore(database)
        labels_of, baseline_of = Answers(self.registry.store).labels_of, Baselines(self.registry.store).baseline_of
        self.desk = FeedbackDesk(self._prediction_ids, feedback, labels_of, metrics)
        self.tallies = Tallies(counts, "this")
        self.counting = Counting(self.registry, self.tallies, metrics)
        self.counting.look()
        self.quality = QualityGauges(QualityReports(feedback, labels_of), lambda: [MODEL], metrics)
        self.drift = DriftGauges(DriftReports(counts, baseline_of, labels_of), lambda: [MODEL], metrics)
        self.sweeper = Sweeper(database, 400)

    async def answer(self, photo: Photo, now_ms: int) -> str:
        """The id of the prediction, with the time that the API would take from the clock."""
        call = Call(Content("image", (photo.jpeg,)), deadline=math.inf)
        answer = await self._inference.predict(call, self._inference.resolve(ModelRef(MODEL), "image"))
        (item,) = answer.items or ()
        assert isinstance(item, Item)
        self.metrics.model(answer.model, answer.version).count("predict", 200, 0.001)
        indices = tuple(one.index for one in item.predictions)
        names = answer.model, answer.version, answer.alias
        confidence = item.predictions[0].confidence
        return self._prediction_ids.sign(Prediction(*names, now_ms, new_nonce(), indices, confidence))

    def scrape(self) -> Scrape:
        self.metrics.deferred.flush()
        lines = self.metrics.render("text/plain")[0].decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    def close(self) -> None:
        self._inference.close()
        self._batcher.close()
        self.registry.close()


class Day:
    """Photos come as people are awake, more or fewer; of some the truth is told, two hours later."""

    def __init__(self, worker: Worker, light_at: Callable[[float], float]) -> None:
        """`light_at` gives the light at an hour of the day, 1 where it is as in the baseline."""
        self._worker = worker
        self._light_at = light_at
        self._random = random = np.random.default_rng(2)
        self._camera = Camera(random)
        self._late: deque[tuple[int, Feedback]] = deque()
        self.photos = 0

    async def live(self) -> list[Scrape]:
        scrapes, worker = [], self._worker
        for minute in range(DAY_MINUTES + 1):
            now_ms = START_MS + minute * MINUTE_MS
            await self._send_photos(minute, now_ms)
            self._send_feedback(now_ms)
            worker.counting.look()
            worker.tallies.write(now_ms)
            if minute % SWEEP_MINUTES == 0:
                worker.sweeper.look(now_ms)
            if minute % SCRAPE_MINUTES == 0:
                worker.quality.look(now_ms)
                worker.drift.look(now_ms)
                scrapes.append(worker.scrape())
        return scrapes

    async def _send_photos(self, minute: int, now_ms: int) -> None:
        hour = minute / 60
        awake = 1 - 0.4 * math.cos(2 * math.pi * (hour - 4) / 24)
        # No day is like another, and no hour: a few percent of light more or less.
        light = self._light_at(hour) * (1 + 0.02 * math.sin(2 * math.pi * hour / 5))
        for _ in range(min(self._random.poisson(PHOTOS_A_MINUTE * awake), PHOTOS_A_SECOND)):
            photo = self._camera.take(light)
            prediction_id = await self._worker.answer(photo, now_ms)
            self.photos += 1
            if self._random.random() < FEEDBACK_SHARE:
                told_ms = now_ms + FEEDBACK_LATE_MINUTES * MINUTE_MS
                self._late.append((told_ms, Feedback(prediction_id, label=LABELS[photo.digit])))

    def _send_feedback(self, now_ms: int) -> None:
        given = []
        while self._late and self._late[0][0] <= now_ms:
            given.append(self._late.popleft()[1])
        assert all(isinstance(taken, Taken) for taken in self._worker.desk.take(given, now_ms))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_command("promtool", "prometheus")
    folder = tmp_path_factory.mktemp("registry")
    publish(folder / "models", folder / "photos")
    return folder / "models"


def _live(root: Path, folder: Path, light_at: Callable[[float], float]) -> list[Scrape]:
    with open_database(None, folder) as database:
        worker = Worker(root, database)
        day = Day(worker, light_at)
        scrapes = asyncio.run(day.live())
        worker.close()
    counted = {name: value for name, value in scrapes[-1].items() if name.startswith("headway_input_bin_total{")}
    # Nothing is left out, so that the sample is the traffic.
    assert sum(float(value) for name, value in counted.items() if 'feature="brightness"' in name) == day.photos
    return scrapes


def _series(scrapes: Sequence[Scrape]) -> list[dict[str, str]]:
    """In the notation of promtool; `_` where a series was not there yet."""
    names = sorted({name for scrape in scrapes for name in scrape})
    return [{"series": name, "values": " ".join(scrape.get(name, "_") for scrape in scrapes)} for name in names]


def _check(folder: Path, scrapes: Sequence[Scrape], expressions: Sequence[str]) -> None:
    """Asks promtool, with the rules of this project, whether each expression is true at the end of the day."""
    case = {
        "interval": f"{SCRAPE_MINUTES}m",
        "input_series": _series(scrapes),
        "promql_expr_test": [
            {"expr": text, "eval_time": f"{DAY_MINUTES}m", "exp_samples": [{"labels": "{}", "value": 1}]}
            for text in expressions
        ],
    }
    document = {
        "rule_files": list(map(str, RULES)),
        "evaluation_interval": f"{SCRAPE_MINUTES}m",
        "group_eval_order": [group["name"] for path in RULES for group in yaml.safe_load(path.read_text())["groups"]],
        "tests": [case],
    }
    path = folder / "day.test.yml"
    path.write_text(json.dumps(document))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _firing(alert: str, *matchers: str) -> str:
    selectors = ",".join((f'alertname="{alert}"', 'alertstate="firing"', *matchers))
    return f"ALERTS{{{selectors}}}"


def _first(expression: str) -> str:
    """The second of the day at which there was something for the first time."""
    return f"min(min_over_time(timestamp({expression})[1d:{SCRAPE_MINUTES}m]))"


DRIFT, ACCURACY = _firing("HeadwayInputDrift"), _firing("HeadwayAccuracyLow")
ENOUGH_LABELS = 'headway_labelled_answers{window="1d"} >= 100'
ENOUGH_INPUTS = "model_version_feature:headway_drift_inputs:increase1h >= 100"


def _agree(window: str) -> str:
    """The gauge that is told from the database is what Prometheus makes of the counters, but for its guesses."""
    told = f'max by (model, version, feature) (headway_drift_psi{{window="{window}"}})'
    made = f"model_version_feature:headway_drift:psi_{window}"
    return f"max(abs({told} - {made}) - 0.05 * {made}) < bool 0.02"


def _healthy(_hour: float) -> float:
    return 1.0


def _fading(hour: float) -> float:
    """From DUSK_HOUR to NIGHT_HOUR all light but a twentieth goes."""
    return float(np.interp(hour, (DUSK_HOUR, NIGHT_HOUR), (1.0, 0.05)))


def test_drift_is_told_before_accuracy_falls(root: Path, tmp_path: Path) -> None:
    scrapes = _live(root, tmp_path, _fading)
    of_brightness = _firing("HeadwayInputDrift", 'feature="brightness"')
    checks = [
        f"{_first(DRIFT)} > bool {DUSK_HOUR * 3600}",
        # From then on low accuracy would be told, too.
        f"{_first(ENOUGH_LABELS)} < bool {_first(of_brightness)}",
        f"{_first(of_brightness)} + 3600 < bool {_first(ACCURACY)}",
        f"count({of_brightness}) == bool 1",
        f"count({ACCURACY}) == bool 1",
        # And nothing else was told.
        'count(count by (alertname) (last_over_time(ALERTS{alertstate="firing"}[1d]))) == bool 2',
        _agree("1h"),
        _agree("1d"),
    ]
    _check(tmp_path, scrapes, checks)


def test_healthy_day_is_quiet(root: Path, tmp_path: Path) -> None:
    scrapes = _live(root, tmp_path, _healthy)
    checks = [
        # No alert at any look, one every five minutes, and this is not for want of photos or labels.
        'absent(last_over_time(ALERTS{alertstate="firing"}[1d]))',
        f"{_first(ENOUGH_LABELS)} < bool {18 * 3600}",
        f"{_first(ENOUGH_INPUTS)} < bool {6 * 3600}",
        _agree("1h"),
        _agree("1d"),
    ]
    _check(tmp_path, scrapes, checks)
