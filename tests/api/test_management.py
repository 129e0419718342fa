"""The management API over real workers: its listener, its token, changes of releases, versions in and out."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import ENVIRONMENT, TOKEN, aliases, answering, change, code, open_admin
from tests.fixtures_models import GOLDEN, write_model
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

ROUTES = [
    ("GET", "/models/m/release"),
    ("POST", "/models/m/release"),
    ("PUT", "/models/m/release"),
    ("DELETE", "/models/m/versions/1.0.0"),
    ("POST", "/models/m/versions/1.0.0/undelete"),
    ("POST", "/update"),
    ("GET", "/update"),
]


# --- who may


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_public_listener_has_no_management(managed: RunningServer, method: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Forwarded-Port": managed.management_url.rpartition(":")[2]}
    answer = httpx.request(method, f"{managed.url}{path}", headers=headers)
    assert code(answer) == (404, "not_found")


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/models"), ("GET", "/nothing")])
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_management_wants_the_token(managed: RunningServer, method: str, path: str, header: str | None) -> None:
    headers = {"Authorization": header} if header is not None else {}
    answer = httpx.request(method, f"{managed.management_url}{path}", headers={**headers, "X-API-Key": TOKEN})
    assert code(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_probes_and_metrics_are_on_both_listeners(managed: RunningServer) -> None:
    for url in (managed.url, managed.management_url):
        assert httpx.get(f"{url}/health/ready").status_code == 200
        assert "headway_model_info" in httpx.get(f"{url}/metrics").text


def test_predictions_are_not_on_the_management_listener(admin: httpx.Client) -> None:
    assert code(admin.post("/predict", json={"model": "m", "inputs": [[0, 0, 1]]})) == (404, "not_found")
    assert admin.get("/models").status_code == 200


def test_management_is_closed_without_a_token(managed_root: Path, tmp_path: Path) -> None:
    with running_server(
        tmp_path / "log", workers=1, HEADWAY_MODELS=str(managed_root), HEADWAY_MANAGEMENT_BIND="127.0.0.1:0"
    ) as server:
        assert "management at" not in server.log.read_text()
        assert code(httpx.get(f"{server.url}/models/m/release")) == (404, "not_found")


def test_token_may_be_in_a_file(managed_root: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from a file\n")
    environment = {"HEADWAY_MODELS": str(managed_root), "HEADWAY_MANAGEMENT_BIND": "127.0.0.1:0"}
    with running_server(tmp_path / "log", workers=1, HEADWAY_ADMIN_TOKEN_FILE=str(file), **environment) as server:
        with open_admin(server, "from a file") as client:
            assert client.get("/models/m/release").status_code == 200
        with open_admin(server) as client:
            assert client.get("/models/m/release").status_code == 401


# --- releases


def test_release_is_read_with_its_etag(admin: httpx.Client) -> None:
    answer = admin.get("/models/m/release")
    read = answer.json()
    assert aliases(answer) == {"stable": "1.0.0"}
    assert answer.headers["etag"] == f'"{read["digest"]}"'
    assert read["is_explicit"]
    assert code(admin.get("/models/nothing/release")) == (404, "model_not_found")


def test_canary_promote_rollback(managed: RunningServer, admin: httpx.Client) -> None:
    answer = change(admin, "canary", version="2.0.0", weight=0, wait=PATIENCE_SECONDS, why="try", by="ann")
    assert aliases(answer) == {"stable": "1.0.0", "canary": "2.0.0"}
    assert answer.json()["has_converged"]
    assert answer.json()["versions"]["2.0.0"] == {"state": "ready", "workers": {"ready": 2}}
    assert answer.json()["release"]["changed"] | {"at": ""} == {"at": "", "by": "ann", "why": "try"}
    assert aliases(change(admin, "promote", version="canary", wait=PATIENCE_SECONDS)) == {"stable": "2.0.0"}
    assert answering(managed) == {"2.0.0"}
    answer = change(admin, "rollback", wait=PATIENCE_SECONDS)
    assert answer.json()["release"]["revision"] == 4
    assert answer.json()["release"]["changed"]["by"] == "management API"
    assert answering(managed) == {"1.0.0"}


def test_every_action(admin: httpx.Client) -> None:
    assert aliases(change(admin, "set", alias="beta", version="2.0.0", weight=1))["beta"] == "2.0.0"
    assert change(admin, "shadow", version="beta", share=5).json()["release"]["shadow"]["share"] == 5
    assert change(admin, "also_serve", version="3.0.0").json()["release"]["also_serve"] == ["3.0.0"]
    assert "beta" not in aliases(change(admin, "drop", name="beta"))
    assert change(admin, "load", load="pinned").json()["release"]["load"] == "pinned"
    judged = change(admin, "analysis", analysis={"errors_margin": 0.03}).json()["release"]["analysis"]
    assert judged["errors_margin"] == 0.03
    assert change(admin, "rollback", to=2).json()["release"]["changed"]["restores"] == 2


def test_whole_release_at_once(admin: httpx.Client) -> None:
    wanted = {
        "aliases": {"stable": {"version": "2.0.0"}, "canary": {"version": "3.0.0", "weight": 5}},
        "also_serve": ["1.0.0"],
        "load": "pinned",
    }
    release = admin.post("/models/m/release", json=wanted).json()["release"]
    assert {key: release[key] for key in wanted} == wanted
    assert release["revision"] == 2


@pytest.mark.parametrize(
    ("body", "expected", "words"),
    [
        ({"action": "promote", "version": "9.9.9"}, (404, "version_not_found"), "it has 1.0.0, 2.0.0, 3.0.0"),
        ({"action": "explode"}, (422, "malformed_request"), "action is one of set, canary"),
        ({"action": "promote"}, (422, "malformed_request"), "version"),
        ({"action": "promote", "version": "2.0.0", "versoin": 1}, (422, "malformed_request"), "versoin"),
        ({}, (422, "malformed_request"), "aliases"),
        ({"action": "canary", "version": "2.0.0", "weight": 101}, (400, "bad_release"), "weight"),
        ({"action": "rollback"}, (400, "bad_release"), "kept are none"),
    ],
)
def test_refused_change(
    admin: httpx.Client, managed_root: Path, body: Any, expected: tuple[int, str], words: str
) -> None:
    before = (managed_root / "m/release.yaml").read_bytes()
    answer = admin.post("/models/m/release", json=body)
    assert code(answer) == expected
    assert words in answer.json()["error"]
    assert (managed_root / "m/release.yaml").read_bytes() == before


def test_bodies_that_are_none(admin: httpx.Client) -> None:
    assert code(admin.post("/models/m/release", content=b"{", headers={"content-type": "application/json"})) == (
        422,
        "malformed_request",
    )
    assert code(admin.post("/models/m/release", content=b" " * 1_000_001)) == (413, "body_too_large")


def test_change_of_a_release_that_was_changed_is_refused(admin: httpx.Client) -> None:
    etag = admin.get("/models/m/release").headers["etag"]
    first = change(admin, "promote", version="2.0.0", match=etag)
    assert first.status_code == 200
    assert code(change(admin, "promote", version="3.0.0", match=etag)) == (409, "release_conflict")
    # A proxy may have made the ETag weak.
    assert change(admin, "promote", version="3.0.0", match=f"W/{first.headers['etag']}").status_code == 200
    assert change(admin, "rollback", match="*").status_code == 200


def test_one_of_many_with_the_same_etag_wins(managed: RunningServer, admin: httpx.Client) -> None:
    etag = admin.get("/models/m/release").headers["etag"]
    statuses: list[int] = []

    def race(number: int) -> None:
        with open_admin(managed) as client:
            statuses.append(change(client, "canary", version="2.0.0", weight=number + 1, match=etag).status_code)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sorted(statuses) == [200] + [409] * 7
    assert admin.get("/models/m/release").json()["release"]["revision"] == 2


def test_changes_at_one_time_lose_nothing(managed: RunningServer, admin: httpx.Client) -> None:
    def work(name: str) -> None:
        with open_admin(managed) as client:
            for weight in range(1, 11):
                assert change(client, "set", alias=name, version="2.0.0", weight=weight).status_code == 200

    threads = [threading.Thread(target=work, args=(f"alias-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    release = admin.get("/models/m/release").json()["release"]
    assert release["revision"] == 41
    assert {entry.get("weight") for alias, entry in release["aliases"].items() if alias != "stable"} == {10}


def test_registry_that_is_read_only(managed_root: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", "1.0.0", **GOLDEN)
    for directory in (tmp_path / "models/m/1.0.0", tmp_path / "models/m", tmp_path / "models"):
        directory.chmod(0o555)
    environment = {"HEADWAY_MODELS": str(tmp_path / "models"), **ENVIRONMENT}
    with (
        running_server(tmp_path / "log", workers=1, heeds_rights=True, **environment) as server,
        open_admin(server) as client,
    ):
        answers = [
            change(client, "promote", version="1.0.0"),
            client.post("/update", json={"path": str(managed_root / "m/2.0.0")}),
            client.post("/models/m/versions/1.0.0/undelete"),
        ]
        assert code(answers[0]) == code(answers[1]) == (409, "registry_read_only")
        assert "m/release.yaml is edited and committed" in answers[0].json()["error"]
        assert code(answers[2]) == (404, "version_not_found")
        assert aliases(client.get("/models/m/release")) == {"stable": "1.0.0"}


# --- documentation


def test_openapi_shows_management_apart(managed: RunningServer) -> None:
    paths = httpx.get(f"{managed.url}/openapi.json").json()["paths"]
    tagged = {
        path for path, methods in paths.items() for method in methods.values() if method["tags"] == ["management"]
    }
    assert tagged == {
        "/models/{name}/release",
        "/v2/repository/models/{name}/load",
        "/v2/repository/models/{name}/unload",
        "/models/{name}/versions/{version}",
        "/models/{name}/versions/{version}/undelete",
        "/update",
    }
