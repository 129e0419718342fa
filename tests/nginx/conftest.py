"""Three replicas of one worker each, and nginx before them: by TLS, and as in a cluster."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures_models import write_model, write_release
from tests.nginx.balancer import Nginx, Replica, list_replicas, make_certificates, raise_limits, running_nginx
from tests.running import PATIENCE_SECONDS


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m answers rows at once, slow takes as long as it is told, broken cannot be loaded."""
    root = tmp_path_factory.mktemp("models")
    for name, kind in (("m", "scores"), ("slow", "count"), ("broken", "scores")):
        changes = {"batch": {"axis": 0, "max_size": 64}} if name == "m" else {}
        directory = write_model(root, name, kind=kind, **changes)
        write_release(root, name, "1.0.0")
    with (directory / "model.onnx").open("ab") as file:
        file.write(b"not what the manifest says")
    return root


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[list[Replica]]:
    replicas = [Replica(tmp_path_factory.mktemp("replica"), tiny_models) for _ in range(3)]
    try:
        for replica in replicas:
            replica.start()
        yield replicas
    finally:
        for replica in replicas:
            replica.stop()


@pytest.fixture
def replicas(started: list[Replica]) -> list[Replica]:
    """All three are up, whatever the test before has done to them."""
    for replica in started:
        if not replica.is_running:
            replica.start()
    return started


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def authority(certificates: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates / "ca.pem")


@pytest.fixture(scope="session")
def secure_nginx(
    tmp_path_factory: pytest.TempPathFactory, started: list[Replica], certificates: Path
) -> Iterator[Nginx]:
    """As on a machine of one's own: TLS, and the limits that are shipped."""
    addresses = [replica.address for replica in started]
    with running_nginx(tmp_path_factory.mktemp("nginx"), list_replicas(addresses), certificates) as nginx:
        yield nginx


@pytest.fixture
def secure(secure_nginx: Nginx, replicas: list[Replica], authority: ssl.SSLContext) -> Iterator[httpx.Client]:
    assert replicas
    url = f"https://localhost:{secure_nginx.port}"
    with httpx.Client(base_url=url, verify=authority, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture
def nginx(tmp_path: Path, replicas: list[Replica]) -> Iterator[Nginx]:
    """As in a cluster, without TLS; for many requests of one caller."""
    changes = list_replicas([replica.address for replica in replicas]) | raise_limits()
    with running_nginx(tmp_path, changes) as running:
        yield running
