"""A server that speaks gRPC beside HTTP, and ways to call it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from app.api.open_inference_grpc.stubs import open_inference_pb2 as messages
from tests.fixtures_models import write_model, write_release
from tests.fixtures_odd_models import write_odd_models
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

INFER = "/inference.GRPCInferenceService/ModelInfer"
_ADDRESS = re.compile(r"gRPC at grpcs?://(\S+)")
# Channels of one process share connections unless told otherwise, and have limits of their own.
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


def address_of(server: RunningServer) -> str:
    found = _ADDRESS.search(server.log.read_text())
    assert found is not None, server.log.read_text()
    return found[1]


def write_models(root: Path) -> Path:
    """The odd models; scores, whose rows share runs; and count, which runs for as long as it is told."""
    write_odd_models(root)
    write_model(root, "scores", batch={"axis": 0, "max_size": 8, "max_wait_ms": 2})
    for kind in ("colour", "double", "sum", "count", "scaled"):
        write_model(root, kind, kind=kind, **({"limits": {"queue": 4}} if kind == "count" else {}))
    for kind in ("scores", "colour", "double", "sum", "count", "scaled"):
        write_release(root, kind, "1.0.0")
    return root


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("grpc") / "models")


@pytest.fixture(scope="package")
def grpc_server(models: Path) -> Iterator[RunningServer]:
    """Two workers, for tests that leave it as it is."""
    with running_server(
        models.parent / "log", "--grpc-port", "0", HEADWAY_MODELS=str(models), HEADWAY_MAX_ITEMS="8"
    ) as server:
        yield server


@pytest.fixture
def channel(grpc_server: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(address_of(grpc_server), OPTIONS) as channel:
        yield channel


Invoke = Callable[..., Any]


@pytest.fixture
def infer(channel: Any) -> Invoke:
    return inferring(channel)


def inferring(channel: Any) -> Invoke:
    return channel.unary_unary(  # type: ignore[no-any-return]
        INFER, messages.ModelInferRequest.SerializeToString, messages.ModelInferResponse.FromString
    )


def request(model: str, name: str = "x", datatype: str = "FP32", shape: Any = (1, 3), raw: bytes | None = None) -> Any:
    """For one input; its bytes are zeros unless given."""
    made = messages.ModelInferRequest(model_name=model)
    made.inputs.add(name=name, datatype=datatype, shape=shape)
    made.raw_input_contents.append(bytes(12) if raw is None else raw)
    return made


def counting(steps: int) -> Any:
    """Runs for about a second for each half a million steps."""
    return request("count", "to", "INT64", (), steps.to_bytes(8, "little"))


def in_flight(server: RunningServer, model: str = "count") -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text
    return sum(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith(f'headway_in_flight_requests{{model="{model}"')
    )


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < limit, what
        time.sleep(0.02)
