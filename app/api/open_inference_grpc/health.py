"""The health checking protocol of gRPC: SERVING as long as /health/ready would say 200."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc  # type: ignore[import-untyped]

from app.api.open_inference_grpc.calls import Incoming, parse
from app.api.open_inference_grpc.stubs.health_pb2 import HealthCheckRequest, HealthCheckResponse
from app.engine.readiness import Readiness
from app.errors import ModelNotFound, Unavailable

# How soon who watches hears of a change.
_WATCH_SECONDS = 0.25


class GrpcHealth:
    """Of the whole server (the empty name) and of each of `services`. `leaving` ends the watches."""

    def __init__(self, readiness: Readiness, services: frozenset[str], leaving: asyncio.Event) -> None:
        self._readiness = readiness
        self._services = services | {""}
        self._leaving = leaving

    async def check(self, incoming: Incoming) -> bytes:
        service = HealthCheckRequest.FromString(incoming.message).service
        if service not in self._services:
            raise ModelNotFound(f"there is no service {service[:100]!r} here")
        return self._reply(service)

    def watch(self) -> Any:
        """A handler: the state at once, and then each change of it."""

        async def handle(message: bytes, call: Any) -> None:
            service = (await parse(HealthCheckRequest, message, call)).service
            said = b""
            while not self._leaving.is_set():
                if (reply := self._reply(service)) != said:
                    await call.write(reply)
                    said = reply
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._leaving.wait(), _WATCH_SECONDS)

        return grpc.unary_stream_rpc_method_handler(handle)

    def is_ready(self) -> bool:
        try:
            self._readiness.check_ready()
        except Unavailable:
            return False
        return True

    def _reply(self, service: str) -> bytes:
        if service not in self._services:
            status = HealthCheckResponse.SERVICE_UNKNOWN
        else:
            status = HealthCheckResponse.SERVING if self.is_ready() else HealthCheckResponse.NOT_SERVING
        reply: bytes = HealthCheckResponse(status=status).SerializeToString()
        return reply
