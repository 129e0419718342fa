"""The repository: its index for all, load and unload for who has the admin token."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.api.open_inference.repository import Repository
from app.errors import Conflict
from app.registry.serving.lifecycle import Registry
from app.registry.serving.wishes import Wishes
from app.registry.store import Store
from tests.api.conftest import TOKEN, open_admin
from tests.fixtures_models import write_model
from tests.running import PATIENCE_SECONDS, RunningServer

BODY = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 1]}]}


@pytest.fixture
def admin(spoken: RunningServer) -> Iterator[httpx.Client]:
    with open_admin(spoken) as client:
        yield client


def states(client: httpx.Client, name: str) -> list[tuple[str, str]]:
    listed = client.post("/v2/repository/index").json()
    return [(entry["state"], entry["reason"]) for entry in listed if entry["name"] == name]


def answers(server: RunningServer, model: str) -> set[tuple[int, str | None]]:
    """Status and code, over connections to all workers."""
    url = f"{server.url}/v2/models/{model}/infer"
    found = [httpx.post(url, json=BODY, timeout=PATIENCE_SECONDS) for _ in range(12)]
    return {(answer.status_code, answer.json().get("code")) for answer in found}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": false}', b'{"ready": null}'])
@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/any/index"])
def test_index_p9(v2: httpx.Client, path: str, body: bytes) -> None:
    listed = v2.post(path, content=body).json()
    assert {"name": "scores", "version": "2.0.0", "state": "READY", "reason": ""} in listed
    assert all(set(entry) == {"name", "version", "state", "reason"} for entry in listed)
    (broken,) = [entry for entry in listed if entry["name"] == "broken"]
    assert broken["state"] == "UNAVAILABLE"
    assert "labels.txt" in broken["reason"]


def test_index_of_what_is_ready_p9(v2: httpx.Client) -> None:
    listed = v2.post("/v2/repository/index", content=b'{"ready": true}').json()
    assert {entry["state"] for entry in listed} == {"READY"}
    assert "broken" not in {entry["name"] for entry in listed}


def test_index_agrees_with_readiness(v2: httpx.Client) -> None:
    """What is loaded on demand is ready before, and in the index of what is."""
    listed = v2.post("/v2/repository/index").json()
    for entry in listed:
        status = v2.get(f"/v2/models/{entry['name']}/versions/{entry['version']}/ready").status_code
        assert (status == 200) == (entry["state"] == "READY"), entry
    assert [entry for entry in listed if entry["name"] == "lazy"] == [
        {"name": "lazy", "version": "1.0.0", "state": "READY", "reason": "loaded at its first request"}
    ]


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"ready": "soon"}', b"\xff"])
def test_index_refuses_what_is_no_request(v2: httpx.Client, body: bytes) -> None:
    answer = v2.post("/v2/repository/index", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_content")


@pytest.mark.parametrize("action", ["load", "unload"])
def test_public_listener_loads_nothing(v2: httpx.Client, action: str) -> None:
    answer = v2.post(f"/v2/repository/models/scores/{action}", headers={"authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "HEADWAY_MANAGEMENT_BIND" in answer.json()["error"]
    assert states(v2, "scores") == [("READY", "")] * 2


@pytest.mark.parametrize("action", ["load", "unload"])
def test_management_wants_the_token(spoken: RunningServer, action: str) -> None:
    with open_admin(spoken, "wrong") as stranger:
        answer = stranger.post(f"/v2/repository/models/scores/{action}")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_management_listener_reads_but_does_not_predict(admin: httpx.Client) -> None:
    for path in ("/v2", "/v2/models/scores", "/v2/models/scores/ready", "/v2/health/ready"):
        assert admin.get(path).status_code == 200
    assert admin.post("/v2/models/scores/infer", json=BODY).json()["code"] == "not_found"


def test_unload_and_load_in_every_worker_p9(spoken: RunningServer, v2: httpx.Client, admin: httpx.Client) -> None:
    dependents = {"parameters": {"unload_dependents": False}}
    try:
        answer = admin.post("/v2/repository/models/positive/unload", json=dependents)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answers(spoken, "positive") == {(503, "model_unloaded")}
        assert states(v2, "positive") == [("UNAVAILABLE", "unloaded")]
        for path in ("", "/ready", "/config", "/versions/1.0.0/ready"):
            refused = v2.get(f"/v2/models/positive{path}")
            assert (refused.status_code, refused.json()["code"]) == (503, "model_unloaded")
        assert v2.get("/models/positive").json()["has_converged"] is False
        assert v2.get("/v2/health/ready").status_code == 200
        # Once more changes nothing; nor does the replacement of a worker.
        assert admin.post("/v2/repository/models/positive/unload").status_code == 200
        replace_worker(spoken)
        assert answers(spoken, "positive") == {(503, "model_unloaded")}
    finally:
        answer = admin.post("/v2/repository/models/positive/load", content=b"{}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answers(spoken, "positive") == {(200, None)}
    assert states(v2, "positive") == [("READY", "")]
    assert v2.get("/models/positive").json()["has_converged"] is True
    assert admin.post("/v2/repository/models/positive/load").status_code == 200


def replace_worker(server: RunningServer) -> None:
    pids = server.worker_pids()
    os.kill(pids[0], signal.SIGKILL)
    limit = time.monotonic() + PATIENCE_SECONDS
    while len(server.worker_pids()) < 2 or pids[0] in server.worker_pids() or workers_of(server) < 2:
        assert time.monotonic() < limit


def workers_of(server: RunningServer) -> int:
    (version,) = httpx.get(f"{server.url}/models/double", timeout=PATIENCE_SECONDS).json()["versions"]
    return sum(version["workers"].values())


def test_load_of_what_fails_says_why(admin: httpx.Client) -> None:
    answer = admin.post("/v2/repository/models/broken/load")
    assert (answer.status_code, answer.json()["code"]) == (503, "model_failed")
    assert "labels.txt" in answer.json()["error"]


def test_load_of_what_is_not_there(admin: httpx.Client) -> None:
    for action in ("load", "unload"):
        answer = admin.post(f"/v2/repository/models/nothing/{action}")
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_pinned_stays(admin: httpx.Client, v2: httpx.Client) -> None:
    answer = admin.post("/v2/repository/models/pinned/unload")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert states(v2, "pinned") == [("READY", "")]


@pytest.mark.parametrize(
    ("action", "body", "named"),
    [
        ("load", {"parameters": {"config": '{"max_batch_size": 2}'}}, "config"),
        ("load", {"parameters": {"file:1/model.onnx": "AAAA"}}, "file:1/model.onnx"),
        ("load", {"parameters": [1]}, "parameters"),
        ("unload", {"parameters": {"now": True}}, "now"),
        ("unload", {"parameters": {"unload_dependents": "yes"}}, "unload_dependents"),
    ],
)
def test_parameters_that_are_not_taken(
    admin: httpx.Client, v2: httpx.Client, action: str, body: object, named: str
) -> None:
    answer = admin.post(f"/v2/repository/models/scores/{action}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_content")
    assert named in answer.json()["error"]
    assert states(v2, "scores") == [("READY", "")] * 2


def test_one_process_alone(tmp_path: Path) -> None:
    write_model(tmp_path)
    wishes = Wishes(None)
    registry = Registry(Store(tmp_path), wishes=wishes)
    registry.load()

    async def change(repository: Repository) -> None:
        for action, state in ((repository.unload, "UNAVAILABLE"), (repository.load, "READY")):
            changing = asyncio.create_task(action("scores", {}))
            await asyncio.to_thread(registry.has_more_to_do.wait)
            registry.has_more_to_do.clear()
            await asyncio.to_thread(registry.reconcile)
            await changing
            assert [entry["state"] for entry in repository.index()] == [state]

    asyncio.run(change(Repository(registry, wishes)))
    with pytest.raises(Conflict, match="use one worker"):
        asyncio.run(Repository(registry, wishes, workers=2).unload("scores", {}))
    registry.close()
