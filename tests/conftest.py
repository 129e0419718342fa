"""What several test packages share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from _pytest.nodeid import coerce_node_id

from tests.running import CAT, PATIENCE_SECONDS, RunningServer, running_server


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> Iterator[None]:
    """Tests that share what their module started go to one worker, else each worker would start it.

    pytest-xdist 3.8 writes a test's group into an attribute that pytest 9.2 no longer reads.
    """
    for item in items:
        if _has_fixture_of_module(item) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    yield
    for item in items:
        grouped = item.__dict__.get("_nodeid")
        if grouped is not None:
            item._id = coerce_node_id(grouped)


def _has_fixture_of_module(item: pytest.Function) -> bool:
    assert isinstance(item, pytest.Function)
    found = item._fixtureinfo.name2fixturedefs.values()
    return any(one.scope == "module" and one.baseid for definitions in found for one in definitions)


@pytest.fixture(scope="session", autouse=True)
def _data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What applications made by tests, and programs started by them, keep is not kept in the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers with the shipped models, for tests that leave them as they are."""
    with running_server(tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="session")
def cat() -> bytes:
    """The example photo: a ginger tabby, whom the model calls a tiger cat."""
    return CAT.read_bytes()


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    """A client of its own for each test: its connections end with it."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as client:
        yield client
