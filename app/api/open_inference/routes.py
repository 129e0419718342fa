"""The Open Inference Protocol over HTTP, but for `infer`: health, metadata, configuration, statistics, repository."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.admin import RepositoryCalls
from app.api.body import BodyReader
from app.api.context import context_of
from app.api.open_inference import schemas
from app.api.open_inference.describe import Description
from app.api.open_inference.repository import Repository
from app.api.open_inference.statistics import Statistics
from app.api.openapi import path_parameters, schema_of
from app.api.problems import explain_invalid
from app.api.schemas import ErrorResponse
from app.engine.readiness import Readiness
from app.errors import HeadwayError, InvalidContent
from app.registry.versions import ModelRef

_Body = TypeVar("_Body", bound=BaseModel)
_TAG = "open inference protocol"
_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
_MISSING = (400, 404, 503)
_CHANGE_ERRORS = {
    400: "A body or a parameter that is not taken here",
    401: "No admin token",
    403: "This is the public listener, and HEADWAY_REPOSITORY_CALLS is not set",
    404: "No such model",
    409: "The release says that the model stays loaded",
    503: "It cannot be loaded; the error says why",
}


class IndexRequest(BaseModel):
    """`ready`: only what is ready."""

    model_config = ConfigDict(extra="ignore")

    ready: bool | None = False


class ChangeRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    parameters: dict[str, Any] | None = None


class ProtocolApi:
    """Load and unload are for those whom `calls` lets in."""

    def __init__(
        self,
        readiness: Readiness,
        description: Description,
        statistics: Statistics,
        repository: Repository,
        calls: RepositoryCalls,
        bodies: BodyReader,
    ) -> None:
        self._readiness = readiness
        self._description = description
        self._statistics = statistics
        self._repository = repository
        self._calls = calls
        self._bodies = bodies

    def add_routes(self, router: APIRouter) -> None:
        reads: tuple[tuple[str, Callable[..., Any], type[Any], tuple[int, ...]], ...] = (
            ("/v2", self.server, schemas.ServerRead, ()),
            ("/v2/health/live", self.live, schemas.LiveRead, ()),
            ("/v2/health/ready", self.ready, schemas.ReadyRead, (503,)),
            ("/v2/models", self.list_models, schemas.ModelNames, ()),
            ("/v2/models/stats", self.all_stats, schemas.StatisticsRead, ()),
            (_MODEL, self.model, schemas.ModelMetadata, _MISSING),
            (_VERSION, self.model, schemas.ModelMetadata, _MISSING),
            (_MODEL + "/ready", self.model_ready, schemas.ModelReadyRead, _MISSING),
            (_VERSION + "/ready", self.model_ready, schemas.ModelReadyRead, _MISSING),
            (_MODEL + "/config", self.config, schemas.ModelConfig, _MISSING),
            (_VERSION + "/config", self.config, schemas.ModelConfig, _MISSING),
            (_MODEL + "/stats", self.stats, schemas.StatisticsRead, _MISSING),
            (_VERSION + "/stats", self.stats, schemas.StatisticsRead, _MISSING),
        )
        for path, endpoint, model, errors in reads:
            responses: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in errors}
            router.add_api_route(
                path,
                endpoint,
                response_model=model,
                response_model_exclude_unset=True,
                responses=responses,
                tags=[_TAG],
            )
            # Clients follow no redirects.
            router.add_api_route(path + "/", endpoint, include_in_schema=False)
            if "/health/" in path:
                router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
        self._add_repository_routes(router)

    def _add_repository_routes(self, router: APIRouter) -> None:
        for path in ("/v2/repository/index", "/v2/repository/{repository}/index"):
            router.add_api_route(
                path,
                self.index,
                methods=["POST"],
                response_model=list[schemas.IndexEntry],
                responses={400: {"model": ErrorResponse}},
                openapi_extra=_body(IndexRequest)
                | ({"parameters": path_parameters(["repository"])} if "{repository}" in path else {}),
                tags=[_TAG],
            )
        for action, endpoint in (("load", self.load), ("unload", self.unload)):
            router.add_api_route(
                f"/v2/repository/models/{{name}}/{action}",
                endpoint,
                methods=["POST"],
                response_class=Response,
                responses={
                    status: {"model": ErrorResponse, "description": text} for status, text in _CHANGE_ERRORS.items()
                },
                openapi_extra=_body(ChangeRequest),
                tags=["management"],
            )

    def server(self) -> dict[str, Any]:
        """The server's name and version, and which extensions of the protocol work."""
        return self._description.server()

    async def live(self) -> dict[str, bool]:
        """This process answers; it stays 200 while draining."""
        return {"live": True}

    async def ready(self, request: Request) -> Response:
        """Requests may be sent here: every released model was tried, and the server is not draining."""
        try:
            self._readiness.check_ready()
        except HeadwayError as exc:
            context = context_of(request.scope)
            context.error_code = exc.code
            content = {"ready": False, "live": True, "error": str(exc), "code": exc.code}
            return JSONResponse(
                {**content, "request_id": context.request_id},
                exc.status,
                headers={"retry-after": str(exc.retry_after_seconds)},
            )
        return JSONResponse({"ready": True, "live": True})

    def list_models(self) -> dict[str, list[str]]:
        """The names of all models."""
        return {"models": self._description.model_names()}

    def model(self, name: str, version: str | None = None) -> dict[str, Any]:
        """The inputs and outputs of a version (or alias); without one, of what is stable."""
        return self._description.model(*_named(name, version)).metadata()

    def model_ready(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Whether requests may be sent for it; a version that is loaded on demand is ready."""
        self._description.check_ready(*_named(name, version))
        return {"name": name, "ready": True}

    def config(self, name: str, version: str | None = None) -> dict[str, Any]:
        """What there is of a model configuration as Triton has it."""
        return self._description.model(*_named(name, version)).config()

    async def all_stats(self) -> dict[str, Any]:
        """What was counted of every released version since the start, over all workers and protocols."""
        return await self._statistics.read()

    async def stats(self, name: str, version: str | None = None) -> dict[str, Any]:
        """What was counted of a model's released versions, or of one version."""
        found = self._description.find_version(*_named(name, version))
        return await self._statistics.read(name, found if version is not None else None)

    async def index(self, request: Request) -> list[dict[str, str]]:
        """Every released version and its state. The body may be empty, or {"ready": true}."""
        wish = await self._read(request, IndexRequest)
        return await asyncio.to_thread(self._repository.index, only_ready=bool(wish.ready))

    async def load(self, name: str, request: Request) -> Response:
        """Load every released version of a model in every worker now, and answer when that is done."""
        parameters = await self._admit(request)
        await self._repository.load(name, parameters)
        return Response(status_code=200)

    async def unload(self, name: str, request: Request) -> Response:
        """Serve a model no more and give back its memory, until it is loaded or the server is started again."""
        parameters = await self._admit(request)
        await self._repository.unload(name, parameters)
        return Response(status_code=200)

    async def _admit(self, request: Request) -> dict[str, Any]:
        self._calls.admit(context_of(request.scope))
        return (await self._read(request, ChangeRequest)).parameters or {}

    async def _read(self, request: Request, kind: type[_Body]) -> _Body:
        """The body, which may be empty. Raises InvalidContent."""
        body = await self._bodies.read(request, takes_compressed=True)
        try:
            return kind.model_validate_json(body) if body.strip() else kind()
        except ValidationError as exc:
            raise InvalidContent(explain_invalid(exc, kind.model_fields, "{}")) from exc


def _named(name: str, version: str | None) -> tuple[str, str | None]:
    """As a path names them. Raises InvalidContent for what cannot be a name."""
    try:
        ref = ModelRef.parse(name if version is None else f"{name}@{version}")
    except ValueError as exc:
        raise InvalidContent(f"the path names no model: {exc}") from exc
    return ref.name, ref.tag


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema_of(kind)}}}}
