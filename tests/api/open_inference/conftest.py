"""A server of odd models, for tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api.conftest import ENVIRONMENT
from tests.fixtures_models import write_model, write_release
from tests.fixtures_odd_models import write_odd_models
from tests.fixtures_tflite import tflite_bytes
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

TFLITE_KINDS = ("two_inputs", "double", "one_row", "positive")


@pytest.fixture(scope="package")
def odd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One worker with two threads: the odd models, and those whose answers have labels or whose rows are fixed."""
    root = write_odd_models(tmp_path_factory.mktemp("odd") / "models")
    for kind in ("scores", "colour", "double", "transpose", "sum", "scaled", "lookup"):
        write_model(root, kind, kind=kind)
        write_release(root, kind, "1.0.0")
    for kind in TFLITE_KINDS:
        name = f"tflite-{kind.replace('_', '-')}"
        write_model(root, name, kind=kind, runtime="tflite", files={"model.tflite": tflite_bytes(kind)})
        write_release(root, name, "1.0.0")
    with running_server(
        root.parent / "log", "--threads", "2", workers=1, HEADWAY_MODELS=str(root), HEADWAY_MAX_ITEMS="8"
    ) as server:
        yield server


@pytest.fixture
def odd(odd_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=odd_server.url, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="package")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers with an open management API and models of many shapes.

    scores: 1.0.0 stable, 2.0.0 canary without traffic; rows share runs. lazy is loaded on demand, pinned stays,
    broken cannot be loaded.
    """
    root = tmp_path_factory.mktemp("spoken") / "models"
    for version in ("1.0.0", "2.0.0"):
        write_model(root, "scores", version, batch={"axis": 0, "max_size": 8, "max_wait_ms": 2})
    write_release(root, "scores", "1.0.0", aliases={"canary": {"version": "2.0.0"}})
    for kind in ("double", "transpose", "one_row", "scaled", "same", "lookup", "positive", "two_inputs", "colour"):
        write_model(root, kind, kind=kind)
        write_release(root, kind, "1.0.0")
    for name in ("lazy", "pinned", "broken"):
        directory = write_model(root, name)
        if name == "broken":
            (directory / "labels.txt").write_text("one\n")
        write_release(root, name, "1.0.0", load={"lazy": "lazy", "pinned": "pinned"}.get(name, "eager"))
    with running_server(root.parent / "log", HEADWAY_MODELS=str(root), **ENVIRONMENT) as server:
        yield server


@pytest.fixture
def v2(spoken: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=spoken.url, timeout=PATIENCE_SECONDS) as client:
        yield client
