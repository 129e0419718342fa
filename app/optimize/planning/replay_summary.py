"""A replay in figures: of each hour, and of all of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.optimize.planning.replay import BIN_SECONDS, Replay, ScaleEvent
from app.optimize.planning.service_model import weighted_quantile
from app.optimize.planning.traffic import DAY_SECONDS, STEP_SECONDS

_HOUR_STEPS = 3600 // STEP_SECONDS


@dataclass(frozen=True, slots=True)
class Period:
    """Response times in ms, of answered requests; None where none was. p50 and p99 are right to 1 %.

    `refused_ratio`: share of the requests, 0 where none came. `peak_per_second`: of 15 s.
    """

    name: str
    mean_per_second: float
    peak_per_second: float
    refused_ratio: float
    mean_replicas: float
    max_replicas: int
    p50_ms: float | None
    mean_ms: float | None
    p99_ms: float | None
    scaled_up: int
    scaled_down: int


@dataclass(frozen=True, slots=True)
class Summary:
    """`pod_hours` is what all replicas together were there for."""

    total: Period
    pod_hours: float
    hours: tuple[Period, ...]
    events: tuple[ScaleEvent, ...]

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarize(replay: Replay) -> Summary:
    steps, start = len(replay.replicas), replay.traffic.start_seconds
    hours = tuple(
        _period(_clock(start + begin * STEP_SECONDS), replay, begin, min(begin + _HOUR_STEPS, steps))
        for begin in range(0, steps, _HOUR_STEPS)
    )
    pod_hours = float(replay.replicas.sum()) * STEP_SECONDS / 3600
    return Summary(_period("all", replay, 0, steps), pod_hours, hours, replay.events)


def _period(name: str, replay: Replay, begin: int, end: int) -> Period:
    part = slice(begin, end)
    offered, refused = replay.traffic.per_second[part], replay.refused_per_second[part]
    answered, means = offered - refused, replay.mean_seconds[part]
    weights = np.where(np.isnan(means), 0, answered)
    histogram = replay.histograms[begin // _HOUR_STEPS : -(-end // _HOUR_STEPS)].sum(axis=0)
    mean = float(weights @ np.nan_to_num(means)) / weights.sum() if weights.sum() > 0 else math.nan
    moves = [
        event.after - event.before
        for event in replay.events
        if begin * STEP_SECONDS < event.seconds <= end * STEP_SECONDS
    ]
    return Period(
        name,
        float(offered.mean()),
        float(offered.max()),
        float(refused.sum() / offered.sum()) if offered.sum() > 0 else 0.0,
        float(replay.replicas[part].mean()),
        int(replay.replicas[part].max()),
        _milliseconds(weighted_quantile(BIN_SECONDS, histogram, 0.5)),
        _milliseconds(mean),
        _milliseconds(weighted_quantile(BIN_SECONDS, histogram, 0.99)),
        sum(move > 0 for move in moves),
        sum(move < 0 for move in moves),
    )


def _milliseconds(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds * 1e3


def _clock(seconds: float) -> str:
    """07:00, and with the day from the second on: 2d 07:00."""
    day, rest = divmod(int(seconds), DAY_SECONDS)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}"
    return f"{day + 1}d {clock}" if day else clock
