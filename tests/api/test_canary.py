"""GET /models/{name}/canaries on a real socket: counts of a real SQLite, releases of a real directory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from app.api.application import Application
from app.api.canary import CanaryApi
from app.api.middleware import KeyRing, RequestMiddleware
from app.metrics import DURATION_BUCKETS
from app.registry.releases.canary_guard import CanaryJudge
from app.registry.releases.editor import ReleaseEditor
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.storage.counts import CountsStore, RequestCounts
from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackRow, FeedbackStore
from tests.fixtures_models import write_model, write_release
from tests.running import PATIENCE_SECONDS

SINCE_MS = 1_767_261_660_000  # 2026-01-01T10:01:00Z
CHANGED = {"at": "2026-01-01T10:00:12Z", "by": "ann", "why": "try it"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """m with a canary, plain without; both as served."""
    root = tmp_path / "models"
    for version in ("1.1.0", "1.2.0"):
        write_model(root, "m", version)
    write_model(root, "plain", "1.0.0")
    release(root)
    return root


def release(root: Path, **sections: Any) -> None:
    aliases = {"canary": {"version": "1.2.0", "weight": 5}, "old": {"version": "1.1.0"}}
    write_release(root, "m", "1.1.0", aliases=aliases, revision=1, changed=CHANGED, **sections)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(None, tmp_path / "data") as database:
        yield database


@pytest.fixture
def client(root: Path, database: Database) -> Iterator[httpx.Client]:
    store = Store(root)
    registry = Registry(store)
    registry.load()
    application = Application()
    judge = CanaryJudge(ReleaseEditor(store), CountsStore(database), FeedbackStore(database))
    CanaryApi(judge, registry).add_routes(application.router)
    application.add_middleware(RequestMiddleware, keys=KeyRing([]), root_path="", record=lambda *_: None)
    listener = socket.create_server(("127.0.0.1", 0))  # connections wait in it until the server accepts
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        registry.close()
        listener.close()


def count(database: Database, version: str, alias: str, n: int, failed: int) -> None:
    durations = (0, 0, 0, 0, 0, n - failed, *[0] * 10)
    row = RequestCounts("m", version, alias, SINCE_MS, n, failed, durations)
    CountsStore(database).write(version + alias, [row], [])


def test_canary_is_compared_with_stable(client: httpx.Client, database: Database) -> None:
    count(database, "1.1.0", "stable", 10_000, 20)
    count(database, "1.2.0", "canary", 500, 50)
    rows = [
        FeedbackRow(bytes([number] * 10), "m", "1.2.0", "canary", SINCE_MS, SINCE_MS + 1, (0,), 0.9, actual=number % 2)
        for number in range(40)
    ]
    FeedbackStore(database).add(rows)
    answer = client.get("/models/m/canaries")
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["canaries"]
    criteria = found.pop("criteria")
    assert found.pop("until") > found["since"]
    assert found == {
        "alias": "canary",
        "version": "1.2.0",
        "stable_version": "1.1.0",
        "weight": 5,
        "since": "2026-01-01T10:01:00Z",
        "requests": {"canary": 500, "stable": 10_000},
        "is_worse": True,
        "rollback": True,
    }
    errors, latency, accuracy = (criteria[name] for name in ("errors", "latency", "accuracy"))
    assert (errors["canary"], errors["stable"]) == ({"n": 500, "share": 0.1}, {"n": 10_000, "share": 0.002})
    assert (errors["difference"], errors["margin"], errors["is_worse"]) == (pytest.approx(0.098), 0.01, True)
    low, high = errors["interval"]
    assert 0.01 < low < errors["difference"] < high < 0.2
    assert 0 < errors["p_value"] < 0.001
    assert (latency["difference"], latency["is_worse"], latency["p_value"]) == (0, False, 1)
    assert latency["canary"]["n"] == 450
    assert latency["longer_than_seconds"] in DURATION_BUCKETS
    assert accuracy["canary"] == {"n": 40, "share": 0.5}
    assert accuracy["stable"] == {"n": 0, "share": None}
    assert (accuracy["difference"], accuracy["is_worse"], accuracy["interval"]) == (None, False, [-1, 1])
    assert "longer_than_seconds" not in accuracy


def test_what_has_no_canary_or_no_counts(client: httpx.Client, root: Path) -> None:
    assert client.get("/models/plain/canaries").json() == {"model": "plain", "canaries": []}
    (found,) = client.get("/models/m/canaries").json()["canaries"]
    assert (found["requests"], found["is_worse"]) == ({"canary": 0, "stable": 0}, False)
    write_release(root, "m", "1.1.0", aliases={"canary": {"version": "1.2.0", "weight": 0}})
    assert client.get("/models/m/canaries").json()["canaries"] == []


def test_rules_of_the_release_are_shown(client: httpx.Client, root: Path) -> None:
    release(root, analysis={"rollback": False, "latency_margin": 0.2})
    (found,) = client.get("/models/m/canaries").json()["canaries"]
    assert (found["rollback"], found["criteria"]["latency"]["margin"]) == (False, 0.2)


def test_what_cannot_be_told(client: httpx.Client, root: Path, database: Database, tmp_path: Path) -> None:
    unknown = client.get("/models/nobody/canaries")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")
    assert "served are m, plain" in unknown.json()["error"]
    (root / "m/release.yaml").write_text("aliases: {}\n")
    broken = client.get("/models/m/canaries")
    assert (broken.status_code, broken.json()["code"]) == (503, "registry_error")
    release(root)
    database.close()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/headway.db").write_bytes(b"no database" * 1000)
    lost = client.get("/models/m/canaries")
    assert (lost.status_code, lost.json()["code"]) == (503, "feedback_unavailable")
