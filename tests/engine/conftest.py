"""A registry of tiny models, loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from tests.fixtures_models import write_model, write_release


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """scores 1.0.0 (stable) and 2.0.0 (canary, no traffic), sum, colour, two_inputs, lookup and positive 1.0.0."""
    root = tmp_path / "models"
    for kind in ("scores", "sum", "colour", "two_inputs", "lookup", "positive"):
        write_model(root, kind, kind=kind)
    write_model(root, "scores", "2.0.0")
    write_release(root, "scores", "1.0.0", aliases={"canary": {"version": "2.0.0", "weight": 0}})
    registry = Registry(Store(root))
    registry.load()
    yield registry
    registry.close()


@pytest.fixture
def anyio_backend() -> str:
    """What the tests marked anyio run on."""
    return "asyncio"
