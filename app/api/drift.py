"""GET /models/{name}/drift: how far what a model is asked, and answers, has moved, of each version."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.api.examples import ERROR_RESPONSES
from app.errors import ModelNotFound
from app.monitoring.drift import MOST_HOURS, MOST_STEPS, DriftReports
from app.registry.serving.lifecycle import Registry


class DriftApi:
    def __init__(self, reports: DriftReports, registry: Registry) -> None:
        self._reports = reports
        self._registry = registry
        # One at a time: a year of 64 features takes 8 s of a core and 70 MB, and feedback waits for the same threads.
        self._turn = asyncio.Lock()

    def add_routes(self, router: APIRouter) -> None:
        """Before those of `/models/{name}/{version}`, which would take `drift` for a version."""
        router.add_api_route(
            "/models/{name}/drift",
            self.get_drift,
            tags=["quality"],
            responses={status: ERROR_RESPONSES[status] for status in (400, 404, 503)},
        )

    async def get_drift(
        self,
        name: str,
        hours: Annotated[float, Query(gt=0, le=MOST_HOURS, description="What was counted in the last hours.")] = 24,
        step_hours: Annotated[
            float, Query(gt=0, le=MOST_HOURS, description=f"Of the series; {MOST_STEPS:,} steps at most.")
        ] = 1,
        release_hours: Annotated[
            float, Query(gt=0, le=MOST_HOURS, description="How long the first hours of a version are.")
        ] = 24,
        version: Annotated[str | None, Query(description="Only of this version.")] = None,
    ) -> Response:
        """Distances (population stability index, Jensen-Shannon, Kolmogorov-Smirnov, chi-squared) of each feature of
        the inputs and answers: from the version's baseline, and from its own first hours; with a series over time."""
        found = self._registry.models.get(name)
        if found is None:
            known = ", ".join(self._registry.models) or "none"
            raise ModelNotFound(f"there is no model {name!r}; served are {known}")
        describe = partial(
            self._reports.describe,
            name,
            hours,
            time.time_ns() // 1_000_000,
            version=version,
            step_hours=step_hours,
            release_hours=release_hours,
            released=found.release.versions if found.release is not None else (),
        )
        async with self._turn:
            text = await asyncio.to_thread(lambda: _render(describe()))
        return Response(text, media_type="application/json")


def _render(found: dict[str, Any]) -> str:
    """A long series of many features is 14 MB, and json.dumps would hold the interpreter for 0.2 s: here others run."""
    return "".join(json.JSONEncoder(ensure_ascii=False, allow_nan=False).iterencode(found))
