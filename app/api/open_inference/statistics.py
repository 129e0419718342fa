"""The statistics extension: what the metrics of all workers say of each version, in the words of the protocol.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.samples import Sample

from app.deferred import FLUSH_SECONDS
from app.metrics import Metrics
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import VersionStatus

# Of all samples of a scrape, those that are told here.
_SECONDS, _ANSWERS = "headway_request_duration_seconds_sum", "headway_request_duration_seconds_count"
_STAGE_SECONDS, _STAGE_COUNT = "headway_stage_duration_seconds_sum", "headway_stage_duration_seconds_count"
_ROWS, _RUNS = "headway_batch_size_sum", "headway_batch_size_count"
_REQUESTS, _FAILED_SECONDS = "headway_requests_total", "headway_failed_request_seconds_total"
_LAST = "headway_last_answer_timestamp_seconds"
_PLAIN = frozenset({_SECONDS, _ANSWERS, _ROWS, _RUNS, _FAILED_SECONDS, _LAST})
_STAGED = frozenset({_STAGE_SECONDS, _STAGE_COUNT})
_POLL_SECONDS = 0.05
# Of a worker that was killed before it had written its last figures they never come.
_LONGEST_WAIT_SECONDS = 5 * FLUSH_SECONDS

# Of one version: figures by their sample's name, with the stage or `ok`/`failed` behind it where there is one.
Figures = Mapping[str, float]


class Statistics:
    """Of this server, all workers and protocols."""

    def __init__(self, metrics: Metrics, registry: Registry) -> None:
        self._metrics = metrics
        self._registry = registry

    async def read(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Of every released version, or those of one model, or one of them; the caller knows that it is there."""
        figures = await self._read_complete()
        models = self._registry.models.values()
        return {
            "model_stats": [
                _describe(status, figures.get((status.name, status.version), {}))
                for model in models
                if name in (None, model.name)
                for status in model.versions.values()
                if version in (None, status.version)
            ]
        }

    async def _read_complete(self) -> Mapping[tuple[str, str], Figures]:
        """With all that was answered before: the other workers write part of their figures a moment later."""
        self._metrics.deferred.flush()
        first = figures = await asyncio.to_thread(self._read)
        limit = time.monotonic() + _LONGEST_WAIT_SECONDS
        while not _covers(figures, first) and time.monotonic() < limit:
            await asyncio.sleep(_POLL_SECONDS)
            self._metrics.deferred.flush()
            figures = await asyncio.to_thread(self._read)
        return figures

    def _read(self) -> Mapping[tuple[str, str], Figures]:
        return gather_figures(self._metrics.samples())


def gather_figures(samples: Iterable[Sample]) -> dict[tuple[str, str], Figures]:
    """By model and version, the protocols added up."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for sample in samples:
        key = sample.name
        if key == _REQUESTS:
            key += "ok" if int(sample.labels["code"]) < 400 else "failed"
        elif key in _STAGED:
            key += sample.labels["stage"]
        elif key not in _PLAIN:
            continue
        found[sample.labels["model"], sample.labels["version"]][key] += sample.value
    return dict(found)


def _covers(figures: Mapping[tuple[str, str], Figures], first: Mapping[tuple[str, str], Figures]) -> bool:
    """Whether the figures that come later hold all that was counted at once when `first` was read."""
    return all(
        figures.get(key, {}).get(_ANSWERS, 0) >= counted.get(_REQUESTS + "ok", 0) for key, counted in first.items()
    )


def _describe(status: VersionStatus, figures: Figures) -> dict[str, Any]:
    """Every field is a whole number from 0 on: some clients end where one is missing."""
    answers = _whole(figures.get(_ANSWERS, 0))
    servable = status.servable
    is_composition = servable is not None and servable.manifest.composition is not None
    # A composition runs nothing itself; what it does is counted by answers.
    rows, runs = (
        (answers, answers) if is_composition else (_whole(figures.get(_ROWS, 0)), _whole(figures.get(_RUNS, 0)))
    )
    compute_input = {
        "count": _stage(figures, "preprocess")["count"],
        "ns": _stage(figures, "decode")["ns"] + _stage(figures, "preprocess")["ns"],
    }
    compute = {
        "compute_input": compute_input,
        "compute_infer": _stage(figures, "inference"),
        "compute_output": _stage(figures, "postprocess"),
    }
    return {
        "name": status.name,
        "version": status.version,
        "last_inference": _whole(figures.get(_LAST, 0) * 1e3),
        "inference_count": rows,
        "execution_count": runs,
        "inference_stats": {
            "success": {"count": answers, "ns": _nanoseconds(figures.get(_SECONDS, 0))},
            "fail": {
                "count": _whole(figures.get(_REQUESTS + "failed", 0)),
                "ns": _nanoseconds(figures.get(_FAILED_SECONDS, 0)),
            },
            "queue": _stage(figures, "queue"),
            **compute,
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        # Known only where every run has the same size.
        "batch_stats": [{"batch_size": 1, **compute}]
        if runs and servable is not None and servable.max_batch_size == 1 and not is_composition
        else [],
    }


def _stage(figures: Figures, stage: str) -> dict[str, int]:
    return {
        "count": _whole(figures.get(_STAGE_COUNT + stage, 0)),
        "ns": _nanoseconds(figures.get(_STAGE_SECONDS + stage, 0)),
    }


def _whole(value: float) -> int:
    return max(0, round(value))


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
