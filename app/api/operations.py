"""What operations ask: /health/live, /health/ready, /health/startup and /metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app.api.examples import ERROR_RESPONSES
from app.engine.readiness import Readiness
from app.metrics import Metrics

_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: ERROR_RESPONSES[503]}


class HealthRead(BaseModel):
    status: str


class OperationsApi:
    def __init__(self, readiness: Readiness, metrics: Metrics) -> None:
        self._readiness = readiness
        self._metrics = metrics

    def add_routes(self, router: APIRouter) -> None:
        for path, endpoint, responses in (
            ("/health/live", self.live, {}),
            ("/health/ready", self.ready, _UNAVAILABLE),
            ("/health/startup", self.startup, _UNAVAILABLE),
        ):
            router.add_api_route(path, endpoint, response_model=HealthRead, responses=responses, tags=["operations"])
            router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
        router.add_api_route("/metrics", self.metrics, response_class=Response, tags=["operations"])

    async def live(self) -> HealthRead:
        """This process answers; it stays 200 while draining."""
        return HealthRead(status="live")

    async def ready(self) -> HealthRead:
        """Requests may be sent here: every released model was tried, and the server is not draining."""
        self._readiness.check_ready()
        return HealthRead(status="ready")

    async def startup(self) -> HealthRead:
        """The first load is over."""
        self._readiness.check_started()
        return HealthRead(status="started")

    async def metrics(self, request: Request) -> Response:
        """Prometheus exposition, summed over all workers."""
        accept = request.headers.get("accept", "")
        self._metrics.deferred.flush()
        content, content_type = await asyncio.to_thread(self._metrics.render, accept)
        return Response(content, headers={"content-type": content_type})
