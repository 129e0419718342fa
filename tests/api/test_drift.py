"""GET /models/{name}/drift over a real registry and a real SQLite database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.api.application import Application
from app.api.catalog import CatalogApi
from app.api.drift import DriftApi
from app.api.middleware import KeyRing, RequestMiddleware
from app.monitoring.binning import Bins, ClassBins
from app.monitoring.drift import BaselineOf, DriftReports
from app.registry.answers import Answers
from app.registry.baseline import Baseline
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.storage.counts import BinCounts, CountsStore
from app.storage.database import Database, open_database
from tests.fixtures_models import write_model

pytestmark = pytest.mark.anyio
RANDOM = np.random.default_rng(1)
BASELINE = Baseline(
    "rows of May", 300, {name: Bins.of(RANDOM.normal(0, 1, 300)) for name in ("one", "two", "three")},
    classes=ClassBins.of(RANDOM.integers(0, 3, 300)),
)  # fmt: skip


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Of a registry with `scores`, whose inputs were counted just now, and `idle`, which has no baseline."""
    root = tmp_path / "models"
    for name in ("scores", "idle"):
        write_model(root, name)
    with open_database(None, tmp_path / "data") as database:
        bins = {name: tuple(one.count(RANDOM.integers(0, 3, 100)).tolist()) for name, one in BASELINE.all_bins.items()}
        minute_ms = time.time_ns() // 60_000_000_000 * 60_000
        CountsStore(database).write("worker", [], [BinCounts("scores", "1.0.0", minute_ms, bins)])
        async with _client(root, database) as client:
            yield client


def _baseline_of(model: str, _version: str) -> Baseline | None:
    return BASELINE if model == "scores" else None


def _client(root: Path, database: Database, baseline_of: BaselineOf = _baseline_of) -> httpx.AsyncClient:
    store = Store(root)
    registry = Registry(store)
    registry.load()
    answers = Answers(store)
    reports = DriftReports(CountsStore(database), baseline_of, answers.labels_of)
    application = Application(redirect_slashes=False)
    for api in (DriftApi(reports, registry), CatalogApi(registry, None)):
        api.add_routes(application.router)
    application.add_middleware(RequestMiddleware, keys=KeyRing([]), root_path="", record=lambda *_: None)
    return httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://here")


async def test_drift_of_what_was_counted(client: httpx.AsyncClient) -> None:
    answer = await client.get("/models/scores/drift", params={"hours": 2, "step_hours": 0.5})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert (found["model"], found["window"]["hours"]) == ("scores", 2)
    (version,) = found["versions"]
    assert (version["version"], version["counted"], version["n"]) == ("1.0.0", True, 100)
    assert version["baseline"] == {"data": "rows of May", "n": 300}
    assert [feature["name"] for feature in version["features"]] == ["answer:classes", "one", "two", "three"]
    one = version["features"][1]
    # (10 - 1) (1 / 300 + 1 / 100)
    assert one["from_baseline"]["expected_by_chance"] == pytest.approx(0.12)
    assert one["from_baseline"]["population_stability_index"] > 0.25
    assert one["from_release"] is None
    assert version["first_hours"]["running"] is True
    assert sum(step["n"] for step in version["series"]) == 100
    assert version["features"][0]["bins"]["labels"][0] in {"low", "middle", "high"}


async def test_reports_are_made_one_at_a_time(tmp_path: Path) -> None:
    """Each takes a thread that feedback waits for, too."""
    write_model(tmp_path / "models", "scores")
    lock = threading.Lock()

    def baseline_of(_model: str, _version: str) -> Baseline:
        assert lock.acquire(blocking=False)
        # Whoever comes meanwhile finds it locked.
        threading.Event().wait(0.05)
        lock.release()
        return BASELINE

    with open_database(None, tmp_path / "data") as database:
        async with _client(tmp_path / "models", database, baseline_of) as client:
            answers = await asyncio.gather(*(client.get("/models/scores/drift") for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4


async def test_version_without_a_baseline(client: httpx.AsyncClient) -> None:
    (version,) = (await client.get("/models/idle/drift")).json()["versions"]
    assert (version["version"], version["counted"], version["features"]) == ("1.0.0", False, [])
    assert "headway baseline idle@1.0.0 DATA" in version["how"]
    (named,) = (await client.get("/models/scores/drift", params={"version": "1.0.0"})).json()["versions"]
    assert named["n"] == 100


@pytest.mark.parametrize(
    ("path", "status", "code", "words"),
    [
        ("/models/nobody/drift", 404, "model_not_found", "there is no model 'nobody'; served are idle, scores"),
        ("/models/scores/drift?version=9.9.9", 404, "version_not_found", "scores@9.9.9 was never counted"),
        ("/models/scores/drift?version=%00x", 404, "version_not_found", "was never counted"),
        ("/models/scores/drift?hours=0", 422, "malformed_request", "hours"),
        ("/models/scores/drift?hours=nan", 422, "malformed_request", "hours"),
        ("/models/scores/drift?hours=1e9", 422, "malformed_request", "hours"),
        ("/models/scores/drift?step_hours=many", 422, "malformed_request", "step_hours"),
        ("/models/scores/drift?release_hours=-1", 422, "malformed_request", "release_hours"),
        ("/models/scores/drift?hours=2000", 400, "bad_content", "more than 1,000 steps; make step_hours 2 or more"),
        ("/models/scores/drift?step_hours=0.001", 400, "bad_content", "counts are kept by the minute"),
    ],
)
async def test_bad_requests(client: httpx.AsyncClient, path: str, status: int, code: str, words: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert words in answer.json()["error"]


async def test_database_that_is_away(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "scores")
    (tmp_path / "file").write_text("")
    async with _client(tmp_path / "models", open_database(None, tmp_path / "file")) as client:
        answer = await client.get("/models/scores/drift")
    assert (answer.status_code, answer.json()["code"]) == (503, "feedback_unavailable")
