"""A day of an autoscaled service in steps of 15 s: traffic to the pods, their metrics to the HPA, its decision to the
pods. Deterministic; nothing is measured and nothing waits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidContent
from app.optimize.planning.hpa import Autoscaler, Decision, Hpa, Pods, Samples
from app.optimize.planning.service_model import Served, ServiceModel, weighted_quantile
from app.optimize.planning.traffic import STEP_SECONDS, Traffic
from app.tensors import Array

START_UP_SECONDS = 30.0
DEMAND, SUCCESS, ANSWER = (
    "headway_demand_ratio",
    "headway_success_duration_seconds_mean",
    # No server of ours exports it: what an HPA sees where refusals count as answers.
    "headway_answer_duration_seconds_mean",
)
METRICS = ("cpu", DEMAND, SUCCESS, ANSWER)
_RATE_STEPS = 4  # rate(…[1m]) over scrapes every 15 s
_REFUSED_SECONDS = 1e-4  # how long the caller of a refused request waits, in the mean over all answers
_LONG_AGO = -10_000  # the step at which the pods of the beginning were ready

# Response times are counted in bins that are 2 % wide.
BIN_EDGES = np.geomspace(1e-4, 1e3, 815)
BIN_SECONDS = np.concatenate([BIN_EDGES[:1], np.sqrt(BIN_EDGES[1:] * BIN_EDGES[:-1]), BIN_EDGES[-1:]])


@dataclass(frozen=True, slots=True)
class ScaleEvent:
    """`cause` is the metric that asked for the most; `seconds` since the beginning."""

    seconds: float
    before: int
    after: int
    cause: str


@dataclass(frozen=True, slots=True)
class Replay:
    """Arrays with one entry a step; response times in seconds and of answered requests only, NaN where there were none.

    `histograms` [hour of the replay, bin of BIN_SECONDS]: answered requests.
    """

    traffic: Traffic
    refused_per_second: Array
    replicas: Array
    ready: Array
    mean_seconds: Array
    p99_seconds: Array
    histograms: Array
    events: tuple[ScaleEvent, ...]


def replay(hpa: Hpa, service: ServiceModel, traffic: Traffic, start_up_seconds: float = START_UP_SECONDS) -> Replay:
    """Begins with the least replicas, all ready. A pod serves `start_up_seconds` after it was asked for; pods that go
    take no more requests. Raises InvalidContent where the HPA looks at a metric that is not known here."""
    for metric in hpa.metrics:
        if metric.name not in METRICS:
            raise InvalidContent(f"the replay knows no metric {metric.name!r}; it knows {', '.join(METRICS)}")
    steps = len(traffic.per_second)
    pods, meters, scaler = _PodTable(hpa.min_replicas, start_up_seconds), _Meters(steps, service), Autoscaler(hpa)
    counts = np.zeros((2, steps), dtype=np.int64)
    series = np.full((3, steps), math.nan)
    histograms = np.zeros((-(-steps * STEP_SECONDS // 3600), len(BIN_SECONDS)))
    events = []
    for step, rate in enumerate(traffic.per_second.tolist()):
        before, ready = len(pods), pods.count_ready(step)
        served = service.answer(rate / ready) if ready else None
        meters.record(step, served)
        counts[:, step] = before, ready
        series[:, step] = _figures(rate, ready, served)
        if served is not None:
            bins = np.searchsorted(BIN_EDGES, served.response_seconds)
            weights = served.arrivals * ready * STEP_SECONDS
            histograms[step * STEP_SECONDS // 3600] += np.bincount(bins, weights, len(BIN_SECONDS))
        end = (step + 1) * STEP_SECONDS
        # What is known at the end of a step was scraped at its beginning.
        decision = scaler.decide(end, before, pods.describe(end), meters.sample(step, pods))
        if decision.replicas != before:
            pods.resize(decision.replicas, end)
            events.append(ScaleEvent(float(end), before, decision.replicas, _cause(hpa, decision)))
    return Replay(traffic, series[0], counts[0], counts[1], series[1], series[2], histograms, tuple(events))


def _figures(rate: float, ready: int, served: Served | None) -> tuple[float, float, float]:
    """Of all pods: refused a second, mean and p99 of the response time."""
    if served is None:
        return rate, math.nan, math.nan
    answered = float(served.arrivals.sum())
    mean = served.total_seconds / answered if answered > 0 else math.nan
    return served.refused * ready, mean, weighted_quantile(served.response_seconds, served.arrivals, 0.99)


def _cause(hpa: Hpa, decision: Decision) -> str:
    asked = [(proposal, -place) for place, proposal in enumerate(decision.proposals) if proposal is not None]
    return hpa.metrics[-max(asked)[1]].name if asked else "limits"


class _PodTable:
    """The pods in the order in which they were asked for; the newest go first, as a ReplicaSet chooses them."""

    def __init__(self, replicas: int, start_up_seconds: float) -> None:
        self._start_up_seconds = start_up_seconds
        self.ready_step = np.full(replicas, _LONG_AGO)
        self.started_at = np.full(replicas, float(_LONG_AGO * STEP_SECONDS))

    def __len__(self) -> int:
        return len(self.ready_step)

    def count_ready(self, step: int) -> int:
        return int(np.count_nonzero(self.ready_step <= step))

    def describe(self, now: float) -> Pods:
        ready_at = self.ready_step * float(STEP_SECONDS)
        is_ready = ready_at <= now
        return Pods(self.started_at, is_ready, np.where(is_ready, ready_at, self.started_at))

    def resize(self, replicas: int, now: float) -> None:
        added = max(0, replicas - len(self))
        ready_step = math.ceil((now + self._start_up_seconds) / STEP_SECONDS)
        self.ready_step = np.append(self.ready_step[:replicas], np.full(added, ready_step))
        self.started_at = np.append(self.started_at[:replicas], np.full(added, float(now)))


class _Meters:
    """Counters of a pod that has been ready from the beginning, at each scrape; all ready pods get equal shares."""

    def __init__(self, steps: int, service: ServiceModel) -> None:
        self._capacity = service.capacity
        self._offered, self._refused, self._seconds, self._cpu = np.zeros((4, steps + 1))

    def record(self, step: int, served: Served | None) -> None:
        offered, refused, seconds, cpu = (
            (served.offered, served.refused, served.total_seconds, served.cpu_share) if served else (0, 0, 0, 0)
        )
        for counter, gain in (
            (self._offered, offered),
            (self._refused, refused),
            (self._seconds, seconds),
            (self._cpu, cpu),
        ):
            counter[step + 1] = counter[step] + gain * STEP_SECONDS

    def sample(self, scrape: int, pods: _PodTable) -> Mapping[str, Samples]:
        """What the scrape at the beginning of step `scrape` tells of each pod: NaN before it has served a step."""
        begin = np.clip(np.maximum(scrape - _RATE_STEPS, pods.ready_step), 0, scrape)
        elapsed = (scrape - begin) * float(STEP_SECONDS)
        offered, refused, seconds = (
            counter[scrape] - counter[begin] for counter in (self._offered, self._refused, self._seconds)
        )
        at = float(scrape * STEP_SECONDS)
        # Where nothing was answered the mean is 0.
        means = np.where((elapsed > 0) & (offered == refused), 0.0, _divide(seconds, offered - refused))
        return {
            "cpu": Samples(self._cpu_values(scrape, pods), at, float(STEP_SECONDS)),
            DEMAND: Samples(_divide(offered, elapsed * self._capacity), at),
            SUCCESS: Samples(means, at),
            ANSWER: Samples(_divide(seconds + refused * _REFUSED_SECONDS, offered), at),
        }

    def _cpu_values(self, scrape: int, pods: _PodTable) -> Array:
        """Over the last step. A pod that loads its models uses all it has; one that has just started is not known."""
        serving = (self._cpu[scrape] - self._cpu[max(scrape - 1, 0)]) / STEP_SECONDS if scrape else math.nan
        loading = np.where(pods.started_at <= (scrape - 1) * STEP_SECONDS, 1.0, math.nan)
        return np.asarray(np.where(pods.ready_step < scrape, serving, loading))


def _divide(amount: Array, by: Array) -> Array:
    """NaN where it is divided by nothing, as in PromQL."""
    return np.asarray(np.divide(amount, by, out=np.full(len(amount), math.nan), where=by > 0))
