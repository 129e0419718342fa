"""Load and unload on the public ports, where a setting opens them: tritonclient over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.api.conftest import ENVIRONMENT, TOKEN
from tests.api.open_inference_grpc.conftest import address_of
from tests.fixtures_models import write_model, write_release
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

KEY = "an api key"
BEARER = {"authorization": f"Bearer {TOKEN}"}
BODY = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 1]}]}
WARNING = "everybody who reaches the server load and unload models"

Client = Callable[[RunningServer], Any]


def start(log: Path, **environment: str) -> Any:
    root = log.parent / "models"
    write_model(root, "scores")
    write_release(root, "scores", "1.0.0")
    settings = {"HEADWAY_MODELS": str(root), "HEADWAY_REPOSITORY_CALLS": "true", **environment}
    return running_server(log, "--grpc-port", "0", workers=2, **settings)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers, an admin token and an API key."""
    with start(tmp_path_factory.mktemp("guarded") / "log", HEADWAY_API_KEYS=KEY, **ENVIRONMENT) as server:
        yield server


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start(tmp_path_factory.mktemp("unguarded") / "log") as server:
        yield server


def over_http(server: RunningServer) -> Any:
    return triton_http.InferenceServerClient(server.url.partition("://")[2])


def over_grpc(server: RunningServer) -> Any:
    return triton_grpc.InferenceServerClient(address_of(server))


PROTOCOLS = pytest.mark.parametrize("connect", [over_http, over_grpc])


def statuses(server: RunningServer) -> set[int]:
    """Over connections to all workers."""
    url, headers = f"{server.url}/v2/models/scores/infer", {"x-api-key": KEY}
    return {httpx.post(url, json=BODY, headers=headers, timeout=PATIENCE_SECONDS).status_code for _ in range(12)}


def change_and_back(server: RunningServer, connect: Client, headers: dict[str, str] | None) -> None:
    with connect(server) as client:
        client.unload_model("scores", headers=headers, unload_dependents=False)
        try:
            assert statuses(server) == {503}
        finally:
            client.load_model("scores", headers=headers)
        assert statuses(server) == {200}


@pytest.mark.parametrize(("connect", "headers"), [(over_http, BEARER | {"x-api-key": KEY}), (over_grpc, BEARER)])
def test_the_admin_token_opens_them_in_every_worker(
    guarded: RunningServer, connect: Client, headers: dict[str, str]
) -> None:
    change_and_back(guarded, connect, headers)


@PROTOCOLS
@pytest.mark.parametrize("headers", [{"x-api-key": KEY}, {"x-api-key": KEY, "authorization": "Bearer wrong"}, {}])
def test_without_the_token(guarded: RunningServer, connect: Client, headers: dict[str, str]) -> None:
    with connect(guarded) as client:
        for call in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException) as refused:
                call("scores", headers=headers)
            assert refused.value.status() in ("401", "StatusCode.UNAUTHENTICATED")
    assert statuses(guarded) == {200}


@PROTOCOLS
def test_without_a_token_they_are_open_to_all(unguarded: RunningServer, connect: Client) -> None:
    change_and_back(unguarded, connect, None)


def test_what_is_open_to_all_is_told_at_the_start(guarded: RunningServer, unguarded: RunningServer) -> None:
    assert unguarded.log.read_text().count(WARNING) == 1
    assert WARNING not in guarded.log.read_text()


@PROTOCOLS
def test_what_they_do_not_take(unguarded: RunningServer, connect: Client) -> None:
    invalid = ("400", "StatusCode.INVALID_ARGUMENT")
    refusals: list[tuple[str, dict[str, Any], tuple[str, str], str]] = [
        ("scores", {"config": "{}"}, invalid, "'config'.* POST /update"),
        ("scores", {"config": "{}", "files": {"file:1/model.onnx": b"x"}}, invalid, "POST /update"),
        ("nothing", {}, ("404", "StatusCode.NOT_FOUND"), "nothing"),
    ]
    with connect(unguarded) as client:
        for name, parameters, allowed, words in refusals:
            with pytest.raises(InferenceServerException, match=words) as refused:
                client.load_model(name, **parameters)
            assert refused.value.status() in allowed
    assert statuses(unguarded) == {200}
