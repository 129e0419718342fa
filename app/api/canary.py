"""GET /models/{name}/canaries: each alias that shares the traffic with stable, and how it compares."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Any

from fastapi import APIRouter

from app.api.examples import ERROR_RESPONSES
from app.errors import ModelNotFound
from app.monitoring.canary import Criterion
from app.monitoring.sequential import Tally
from app.registry.releases.canary_guard import CanaryJudge, Judgement
from app.registry.serving.lifecycle import Registry


class CanaryApi:
    def __init__(self, judge: CanaryJudge, registry: Registry) -> None:
        self._judge = judge
        self._registry = registry

    def add_routes(self, router: APIRouter) -> None:
        router.add_api_route(
            "/models/{name}/canaries",
            self.get_canary,
            tags=["quality"],
            responses={404: ERROR_RESPONSES[404], 503: ERROR_RESPONSES[503]},
        )

    async def get_canary(self, name: str) -> dict[str, Any]:
        """Errors, latency and accuracy of each alias with a weight, against stable's since both have these versions and
        weights. The intervals and p-values hold at whatever time they are read."""
        if name not in self._registry.models:
            known = ", ".join(self._registry.models) or "none"
            raise ModelNotFound(f"there is no model {name!r}; served are {known}")
        found = await asyncio.to_thread(self._judge_all, name, time.time_ns() // 1_000_000)
        return {"model": name, "canaries": [_describe(judgement) for judgement in found]}

    def _judge_all(self, name: str, now_ms: int) -> list[Judgement]:
        return [self._judge.judge(canary, now_ms) for canary in self._judge.find(name, now_ms)]


def _describe(judgement: Judgement) -> dict[str, Any]:
    canary = judgement.canary
    return {
        "alias": canary.alias,
        "version": canary.version,
        "stable_version": canary.stable_version,
        "weight": canary.weight,
        "since": _time(canary.since_ms),
        "until": _time(judgement.until_ms),
        "requests": {"canary": judgement.observed.answered, "stable": judgement.stable.answered},
        "is_worse": judgement.is_worse,
        "rollback": canary.analysis.rollback,
        "criteria": {criterion.name: _describe_criterion(criterion) for criterion in judgement.criteria},
    }


def _describe_criterion(criterion: Criterion) -> dict[str, Any]:
    """Shares of failed requests, of answers longer than a time, of wrong answers; null where there are none."""
    verdict = criterion.verdict
    bound = {} if criterion.longer_than_seconds is None else {"longer_than_seconds": criterion.longer_than_seconds}
    return {
        **bound,
        "canary": _describe_tally(criterion.canary),
        "stable": _describe_tally(criterion.stable),
        "difference": verdict.difference,
        "interval": list(verdict.interval),
        "margin": criterion.margin,
        "p_value": verdict.p_value,
        "is_worse": verdict.is_worse,
    }


def _describe_tally(tally: Tally) -> dict[str, Any]:
    return {"n": tally.n, "share": tally.bad / tally.n if tally.n else None}


def _time(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
