"""The calls around ModelInfer: what the server and its models say of themselves, statistics, and the repository."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]

from app.api.admin import RepositoryCalls
from app.api.open_inference.describe import Description
from app.api.open_inference.repository import Repository
from app.api.open_inference.statistics import Statistics
from app.api.open_inference_grpc.calls import Incoming
from app.api.open_inference_grpc.health import GrpcHealth
from app.api.open_inference_grpc.infer import read_choices, read_ref
from app.api.open_inference_grpc.stubs import open_inference_pb2 as messages
from app.errors import Unavailable


class GrpcDescription:
    """Load and unload are for those whom `calls` lets in."""

    def __init__(
        self,
        health: GrpcHealth,
        description: Description,
        statistics: Statistics,
        repository: Repository,
        calls: RepositoryCalls,
    ) -> None:
        self._health = health
        self._description = description
        self._statistics = statistics
        self._repository = repository
        self._calls = calls

    async def live(self, _: Incoming) -> bytes:
        return _write(messages.ServerLiveResponse(live=True))

    async def ready(self, _: Incoming) -> bytes:
        return _write(messages.ServerReadyResponse(ready=self._health.is_ready()))

    async def model_ready(self, incoming: Incoming) -> bytes:
        """Raises ModelNotFound and its kin for what is not there at all."""
        request = messages.ModelReadyRequest.FromString(incoming.message)
        ref = read_ref(request.name, request.version)
        try:
            await asyncio.to_thread(self._description.check_ready, ref.name, ref.tag)
        except Unavailable:
            return _write(messages.ModelReadyResponse(ready=False))
        return _write(messages.ModelReadyResponse(ready=True))

    async def server(self, _: Incoming) -> bytes:
        return _write(_message(messages.ServerMetadataResponse(), self._description.server()))

    async def model(self, incoming: Incoming) -> bytes:
        request = messages.ModelMetadataRequest.FromString(incoming.message)
        ref = read_ref(request.name, request.version)
        found = await asyncio.to_thread(self._description.model, ref.name, ref.tag)
        return _write(_message(messages.ModelMetadataResponse(), found.metadata()))

    async def config(self, incoming: Incoming) -> bytes:
        request = messages.ModelConfigRequest.FromString(incoming.message)
        ref = read_ref(request.name, request.version)
        found = await asyncio.to_thread(self._description.model, ref.name, ref.tag)
        return _write(_message(messages.ModelConfigResponse(), {"config": found.config()}))

    async def statistics(self, incoming: Incoming) -> bytes:
        """Of all models where none is named."""
        request = messages.ModelStatisticsRequest.FromString(incoming.message)
        if not request.name:
            found = await self._statistics.read()
        else:
            ref = read_ref(request.name, request.version)
            version = self._description.find_version(ref.name, ref.tag)
            found = await self._statistics.read(ref.name, version if ref.tag is not None else None)
        return _write(_message(messages.ModelStatisticsResponse(), found))

    async def index(self, incoming: Incoming) -> bytes:
        request = messages.RepositoryIndexRequest.FromString(incoming.message)
        found = await asyncio.to_thread(self._repository.index, only_ready=request.ready)
        return _write(_message(messages.RepositoryIndexResponse(), {"models": found}))

    async def load(self, incoming: Incoming) -> bytes:
        self._calls.admit(incoming.context)
        request = messages.RepositoryModelLoadRequest.FromString(incoming.message)
        await self._repository.load(request.model_name, read_choices(request.parameters))
        return _write(messages.RepositoryModelLoadResponse())

    async def unload(self, incoming: Incoming) -> bytes:
        self._calls.admit(incoming.context)
        request = messages.RepositoryModelUnloadRequest.FromString(incoming.message)
        await self._repository.unload(request.model_name, read_choices(request.parameters))
        return _write(messages.RepositoryModelUnloadResponse())


def _message(message: Any, content: dict[str, Any]) -> Any:
    """What a message has no field for, such as the version policy of a configuration, is left out."""
    return ParseDict(content, message, ignore_unknown_fields=True)


def _write(message: Any) -> bytes:
    written: bytes = message.SerializeToString()
    return written
