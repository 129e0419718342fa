"""Health as clients of the protocol ask for it, in all states of a server."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.fixtures_models import write_model, write_release
from tests.running import PATIENCE_SECONDS, running_server


def test_bodies_say_live_and_ready_p18(v2: httpx.Client) -> None:
    assert v2.get("/v2/health/live").json() == {"live": True}
    assert v2.get("/v2/health/ready").json() == {"ready": True, "live": True}


@pytest.mark.parametrize("probe", ["live", "ready"])
def test_head_and_slash_p30(v2: httpx.Client, probe: str) -> None:
    answer = v2.head(f"/v2/health/{probe}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert v2.get(f"/v2/health/{probe}/").status_code == 200


def test_health_needs_no_key_and_a_strict_server_is_not_ready_with_a_broken_model_p29(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_model(root)
    (write_model(root, "broken") / "labels.txt").write_text("one\n")
    write_release(root, "broken", "1.0.0")
    environment = {"HEADWAY_MODELS": str(root), "HEADWAY_STRICT": "true", "HEADWAY_API_KEYS": "a-key"}
    with running_server(tmp_path / "log", workers=1, **environment) as server:
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        answer = httpx.get(f"{server.url}/v2/health/ready")
        assert answer.status_code == 503
        assert "broken@1.0.0" in answer.json()["error"]
        assert answer.json()["ready"] is False
        for path in ("/v2", "/v2/models", "/v2/models/scores", "/v2/models/scores/ready", "/v2/models/stats"):
            assert httpx.get(server.url + path).status_code == 401
            assert httpx.get(server.url + path, headers={"x-api-key": "a-key"}).status_code == 200


def test_not_ready_but_live_while_draining_p29(tmp_path: Path) -> None:
    write_model(tmp_path / "models")
    environment = {"HEADWAY_MODELS": str(tmp_path / "models"), "HEADWAY_DRAIN_SECONDS": "5"}
    with running_server(tmp_path / "log", workers=1, **environment) as server:
        server.process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + PATIENCE_SECONDS
        while (ready := httpx.get(f"{server.url}/v2/health/ready")).status_code == 200:
            assert time.monotonic() < limit
        assert ready.status_code == 503
        assert ready.headers["retry-after"] == "1"
        body = ready.json()
        assert (body["ready"], body["live"], body["code"]) == (False, True, "draining")
        assert "shutting down" in body["error"]
        assert httpx.get(f"{server.url}/v2/health/live").json() == {"live": True}
        assert httpx.get(f"{server.url}/v2/models/scores/ready").status_code == 200
        server.process.send_signal(signal.SIGTERM)  # a second one ends the wait
