"""The gRPC server of one worker, in its event loop, on a port that all workers of the server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from app.api.admin import RepositoryCalls
from app.api.body import BodyReader
from app.api.context import RequestContext
from app.api.middleware import KeyRing
from app.api.open_inference.describe import Description
from app.api.open_inference.repository import Repository
from app.api.open_inference.statistics import Statistics
from app.api.open_inference_grpc.calls import Calls
from app.api.open_inference_grpc.describe import GrpcDescription
from app.api.open_inference_grpc.health import GrpcHealth
from app.api.open_inference_grpc.infer import GrpcInfer, explain_in_stream
from app.api.open_inference_grpc.reflection import reflect
from app.api.reception import Reception
from app.engine.readiness import Readiness
from app.monitoring.prediction_id import PredictionIds

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
_REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SERVICES = (INFERENCE, HEALTH, *_REFLECTIONS)

# A channel stays with one worker: so often it is dealt anew, perhaps to one with less to do.
_CONNECTION_SECONDS = 60
# Then calls that run, and streams, have so long; and a message that never gets complete.
_CONNECTION_GRACE_SECONDS = 300
_STREAMS_OF_A_CONNECTION = 1024
# At the end of a worker, before clients are told of it and after: as long as an answer and the next call take, to
# another continent and on a machine without a free core.
_HOLD_SECONDS = 0.1
_LEAST_POLITE_SECONDS = 1.0
# Clients that ask more often whether the connection is alive are sent away.
_LEAST_PING_SECONDS = 10


@dataclass(frozen=True)
class GrpcListener:
    """`port` is held for us, and bound by every worker. TLS where there is a certificate."""

    host: str
    port: int
    max_message_bytes: int
    certfile: Path | None = None
    keyfile: Path | None = None

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class GrpcServer:
    """`stop` may be called again, for an end that is sooner."""

    def __init__(
        self, listener: GrpcListener, calls: Calls, infer: GrpcInfer, health: GrpcHealth, description: GrpcDescription
    ) -> None:
        self._listener = listener
        self._calls = calls
        self._handlers = _handlers(calls, infer, health, description)
        self._server: Any = None

    async def start(self) -> None:
        """Raises OSError where the port or the certificate cannot be used."""
        server = self._server = grpc.aio.server(options=_options(self._listener.max_message_bytes))
        for service, methods in self._handlers.items():
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, methods)])
        address = self._listener.address
        try:
            if self._listener.certfile is not None and self._listener.keyfile is not None:
                server.add_secure_port(address, await asyncio.to_thread(_credentials, self._listener))
            else:
                server.add_insecure_port(address)
        except RuntimeError as exc:
            raise OSError(f"cannot listen for gRPC on {address}: choose another port with --grpc-port") from exc
        await server.start()

    async def stop(self, seconds: float) -> None:
        """Take no more calls; those that run have so long.

        What a client sends before it has heard of the end is lost: it gets CANCELLED. A client that waits for an answer
        sends nothing, so answers are held back from a moment before clients are told until a moment after.
        """
        if self._server is None:
            return
        calls = self._calls
        if not calls.leaving.is_set() and seconds > _LEAST_POLITE_SECONDS:
            calls.answering.clear()
            await asyncio.sleep(_HOLD_SECONDS)
            asyncio.get_running_loop().call_later(_HOLD_SECONDS, calls.answering.set)
        else:
            calls.answering.set()
        calls.leaving.set()
        await self._server.stop(max(0.0, seconds))


def build_server(
    listener: GrpcListener,
    *,
    keys: KeyRing,
    bodies: BodyReader,
    record: Callable[[RequestContext], None],
    reception: Reception,
    prediction_ids: PredictionIds | None,
    max_items: int,
    readiness: Readiness,
    description: Description,
    statistics: Statistics,
    repository: Repository,
    repository_calls: RepositoryCalls,
) -> GrpcServer:
    """Of the parts that HTTP is answered by."""
    calls = Calls(keys, bodies, record)
    health = GrpcHealth(readiness, frozenset((INFERENCE,)), calls.leaving)
    return GrpcServer(
        listener,
        calls,
        GrpcInfer(reception, prediction_ids, max_items),
        health,
        GrpcDescription(health, description, statistics, repository, repository_calls),
    )


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", _STREAMS_OF_A_CONNECTION),
        ("grpc.max_connection_age_ms", _CONNECTION_SECONDS * 1000),
        ("grpc.max_connection_age_grace_ms", _CONNECTION_GRACE_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _LEAST_PING_SECONDS * 1000),
    ]


def _credentials(listener: GrpcListener) -> Any:
    assert listener.certfile is not None
    assert listener.keyfile is not None
    return grpc.ssl_server_credentials([(listener.keyfile.read_bytes(), listener.certfile.read_bytes())])


def _handlers(
    calls: Calls, infer: GrpcInfer, health: GrpcHealth, description: GrpcDescription
) -> Mapping[str, Mapping[str, Any]]:
    """By service and method. Open without a key are the probes, and what describes the protocol itself."""
    probes = {"ServerLive": description.live, "ServerReady": description.ready}
    answerers = {
        "ModelReady": description.model_ready,
        "ServerMetadata": description.server,
        "ModelMetadata": description.model,
        "ModelInfer": infer.infer,
        "ModelConfig": description.config,
        "ModelStatistics": description.statistics,
        "RepositoryIndex": description.index,
        "RepositoryModelLoad": description.load,
        "RepositoryModelUnload": description.unload,
    }
    methods = {name: calls.unary(f"/{INFERENCE}/{name}", answer, is_open=True) for name, answer in probes.items()}
    methods |= {name: calls.unary(f"/{INFERENCE}/{name}", answer) for name, answer in answerers.items()}
    methods["ModelStreamInfer"] = calls.stream(
        f"/{INFERENCE}/ModelStreamInfer", infer.infer_of_stream, explain_in_stream
    )
    checks = {"Check": calls.unary(f"/{HEALTH}/Check", health.check, is_open=True), "Watch": health.watch()}
    reflection = {"ServerReflectionInfo": reflect(SERVICES)}
    return {INFERENCE: methods, HEALTH: checks, **dict.fromkeys(_REFLECTIONS, reflection)}
