"""GET /models/{name}/quality: how right the answers were, of each version and alias, in a window of feedback."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.examples import ERROR_RESPONSES
from app.errors import InvalidContent, ModelNotFound
from app.monitoring.reports import QualityReports, Window
from app.registry.serving.lifecycle import Registry

_DEFAULT = Window(hours=24)


class QualityApi:
    def __init__(self, reports: QualityReports, registry: Registry) -> None:
        self._reports = reports
        self._registry = registry

    def add_routes(self, router: APIRouter) -> None:
        router.add_api_route(
            "/models/{name}/quality",
            self.get_quality,
            tags=["quality"],
            responses={status: ERROR_RESPONSES[status] for status in (400, 404, 503)},
        )

    async def get_quality(
        self,
        name: str,
        last: Annotated[int | None, Query(ge=1, le=200_000, description="The newest so many labelled answers.")] = None,
        hours: Annotated[float | None, Query(gt=0, le=24 * 366, description="Feedback of the last hours; 24.")] = None,
        version: Annotated[str | None, Query(description="Only of this version.")] = None,
        alias: Annotated[str | None, Query(description="Only of answers under this alias.")] = None,
    ) -> dict[str, Any]:
        """Accuracy, precision, recall, F1 (macro and of each class), top-k accuracy, confusions, calibration; of a
        regression MAE, RMSE and R². Of each version and alias that has feedback."""
        if name not in self._registry.models:
            known = ", ".join(self._registry.models) or "none"
            raise ModelNotFound(f"there is no model {name!r}; served are {known}")
        if last is not None and hours is not None:
            raise InvalidContent("give last or hours, not both")
        window = Window(last=last, hours=hours) if last or hours else _DEFAULT
        now_ms = time.time_ns() // 1_000_000
        return await asyncio.to_thread(self._reports.describe, name, window, now_ms, version, alias)
