"""A server with an open management API, and a client that has its token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures_models import GOLDEN, write_model, write_release
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

TOKEN = "correct horse battery staple"
ENVIRONMENT = {"HEADWAY_ADMIN_TOKEN": TOKEN, "HEADWAY_MANAGEMENT_BIND": "127.0.0.1:0"}


@pytest.fixture(scope="session")
def managed_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m 1.0.0, 2.0.0 and 3.0.0, all with golden requests."""
    root = tmp_path_factory.mktemp("management") / "models"
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        write_model(root, "m", version, **GOLDEN)
    return root


@pytest.fixture(scope="session")
def managed(managed_root: Path) -> Iterator[RunningServer]:
    with running_server(managed_root.parent / "log", HEADWAY_MODELS=str(managed_root), **ENVIRONMENT) as server:
        yield server


@pytest.fixture
def admin(managed: RunningServer, managed_root: Path) -> Iterator[httpx.Client]:
    """With the token, on the management listener; m is at revision 1 of 1.0.0, and served."""
    write_release(managed_root, "m", "1.0.0", revision=1)
    with open_admin(managed) as client:
        yield client


def open_admin(server: RunningServer, token: str = TOKEN) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=server.management_url, headers=headers, timeout=PATIENCE_SECONDS)


def change(
    client: httpx.Client, action: str, *, match: str | None = None, wait: float = 0, **rest: Any
) -> httpx.Response:
    headers = {"If-Match": match} if match is not None else {}
    return client.post(
        "/models/m/release", json={"action": action, **rest}, headers=headers, params={"wait_seconds": wait}
    )


def aliases(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code in (200, 201), answer.text
    return {alias: entry["version"] for alias, entry in answer.json()["release"]["aliases"].items()}


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def answering(server: RunningServer) -> set[str]:
    """The versions that answer, over connections to all workers."""
    body = {"model": "m", "inputs": [[0, 0, 1]]}
    return {httpx.post(f"{server.url}/predict", json=body).json()["version"] for _ in range(12)}
