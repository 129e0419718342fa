"""The Horizontal Pod Autoscaler's algorithm: from what pods say of themselves to a number of replicas. Pure: time is
an argument, and nothing is read or written.

As documented under "Algorithm details" and "Configurable scaling behavior" of
https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ (autoscaling/v2, Kubernetes 1.33 and
later), and, where the page is silent, as kube-controller-manager does it. The controller counts in whole percents and
thousandths; nothing is rounded here but the number of replicas. A pod that misses its CPU while the rest scales down is
taken at the target, as the page says; the controller takes it at the whole of its request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.tensors import Array

TOLERANCE = 0.1
INITIAL_READINESS_DELAY_SECONDS = 30.0
CPU_INITIALIZATION_SECONDS = 300.0
_NOISE = 1e-9  # of floating point: 3 × 1.1 is 3.3000000000000003


@dataclass(frozen=True, slots=True)
class Policy:
    """At most `value` pods, or percent of the replicas at the start of the period, within `period_seconds`."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_seconds: int


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """Of one direction."""

    window_seconds: int
    policies: tuple[Policy, ...]
    select: Literal["Max", "Min", "Disabled"] = "Max"
    tolerance: float = TOLERANCE


# What Kubernetes takes where the object says nothing.
DEFAULT_UP = ScalingRules(0, (Policy("Pods", 4, 15), Policy("Percent", 100, 15)))
DEFAULT_DOWN = ScalingRules(300, (Policy("Percent", 100, 15),))


@dataclass(frozen=True, slots=True)
class Metric:
    """`target` is the wanted mean over the pods: of "cpu" a share of the requests, else in the metric's own unit."""

    name: str
    target: float

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


@dataclass(frozen=True, slots=True)
class Hpa:
    metrics: tuple[Metric, ...]
    min_replicas: int
    max_replicas: int
    up: ScalingRules = DEFAULT_UP
    down: ScalingRules = DEFAULT_DOWN


@dataclass(frozen=True, slots=True)
class Pods:
    """Arrays with one entry a pod, without those that are being deleted or have failed. Times in seconds.

    `started_at` is NaN of a pending pod; `changed_at` is when `is_ready` became what it is.
    """

    started_at: Array
    is_ready: Array
    changed_at: Array


@dataclass(frozen=True, slots=True)
class Samples:
    """Of one metric: a value for each pod, NaN where there is none; measured in the `window_seconds` before `at`."""

    values: Array
    at: float
    window_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """`replicas` is what to set; `recommended` is before windows, policies and limits, None where nothing was known.

    `proposals` are those of each metric, in order; None where it could not be computed.
    """

    replicas: int
    recommended: int | None
    proposals: tuple[int | None, ...]


def propose_replicas(
    metric: Metric, pods: Pods, samples: Samples, current: int, now: float, down: float, up: float
) -> int | None:
    """What one metric asks for, None where no pod has a value that counts. `down`, `up`: tolerances."""
    pending = np.isnan(pods.started_at)
    missing = ~pending & np.isnan(samples.values)
    unready = pending | (_is_unready(pods, samples, now) & ~missing) if metric.is_cpu else pending
    counted = ~(missing | unready)
    if not counted.any():
        return None
    total, count = float(samples.values[counted].sum()), int(counted.sum())
    ratio = total / count / metric.target
    missed, waiting = int(missing.sum()), int(unready.sum()) if ratio > 1 else 0
    if not missed and not waiting:
        return current if _is_within(ratio, down, up) else _ceil(ratio * count)
    # Below the target those without a value count as on it, above it they and those not yet ready count as idle.
    if missed and ratio != 1:
        total, count = total + (missed * metric.target if ratio < 1 else 0), count + missed
    count += waiting
    damped = total / count / metric.target
    if _is_within(damped, down, up) or (ratio < 1) != (damped < 1):
        return current
    proposal = _ceil(damped * count)
    turns = proposal > current if damped < 1 else proposal < current
    return current if turns else proposal


def _is_unready(pods: Pods, samples: Samples, now: float) -> Array:
    """Whose CPU does not count: measured before the pod was ready in its first minutes, or of one never ready."""
    age = now - pods.started_at
    early = ~pods.is_ready | (samples.at < pods.changed_at + samples.window_seconds)
    never = ~pods.is_ready & (pods.started_at + INITIAL_READINESS_DELAY_SECONDS > pods.changed_at)
    return np.asarray(np.where(age < CPU_INITIALIZATION_SECONDS, early, never))


def _is_within(ratio: float, down: float, up: float) -> bool:
    return 1 - down - _NOISE <= ratio <= 1 + up + _NOISE


def _ceil(replicas: float) -> int:
    return math.ceil(replicas - _NOISE)


class Autoscaler:
    """One HPA with its memory: past recommendations and past changes. `decide` is called with growing `now`."""

    def __init__(self, hpa: Hpa) -> None:
        self._hpa = hpa
        self._recommended: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []
        periods = [policy.period_seconds for rules in (hpa.up, hpa.down) for policy in rules.policies]
        self._memory_seconds = max(hpa.up.window_seconds, hpa.down.window_seconds, *periods, 0)

    def decide(self, now: float, current: int, pods: Pods, samples: Mapping[str, Samples]) -> Decision:
        """`current` is the target's number of replicas; `samples` by the name of the metric."""
        hpa = self._hpa
        if not hpa.min_replicas <= current <= hpa.max_replicas:
            replicas = min(max(current, hpa.min_replicas), hpa.max_replicas)
            self._remember(now, current, replicas)
            return Decision(replicas, None, (None,) * len(hpa.metrics))
        proposals = tuple(self._propose(metric, pods, samples, current, now) for metric in hpa.metrics)
        recommended = combine_proposals(proposals, current)
        if recommended is None:
            return Decision(current, None, proposals)
        replicas = self._limit(now, current, self._stabilize(now, current, recommended))
        self._remember(now, current, replicas)
        return Decision(replicas, recommended, proposals)

    def _propose(
        self, metric: Metric, pods: Pods, samples: Mapping[str, Samples], current: int, now: float
    ) -> int | None:
        found = samples.get(metric.name)
        if found is None:
            return None
        return propose_replicas(metric, pods, found, current, now, self._hpa.down.tolerance, self._hpa.up.tolerance)

    def _stabilize(self, now: float, current: int, recommended: int) -> int:
        """Up to the least, down to the most that was recommended within the window of the direction."""
        floor = ceiling = recommended
        for at, past in self._recommended:
            if at > now - self._hpa.up.window_seconds:
                floor = min(floor, past)
            if at > now - self._hpa.down.window_seconds:
                ceiling = max(ceiling, past)
        self._recommended = [entry for entry in self._recommended if entry[0] > now - self._memory_seconds]
        self._recommended.append((now, recommended))
        return min(max(current, floor), ceiling)

    def _limit(self, now: float, current: int, wanted: int) -> int:
        hpa = self._hpa
        if wanted > current:
            most = max(current, self._farthest(now, current, hpa.up, 1))
            return min(wanted, most, hpa.max_replicas)
        if wanted < current:
            least = min(current, self._farthest(now, current, hpa.down, -1))
            return max(wanted, least, hpa.min_replicas)
        return current

    def _farthest(self, now: float, current: int, rules: ScalingRules, sign: Literal[1, -1]) -> int:
        """The replicas that the policies allow, from what there was when each policy's period began."""
        if rules.select == "Disabled" or not rules.policies:
            return current
        allowed = []
        for policy in rules.policies:
            start = current - sum(change for at, change in self._changes if at > now - policy.period_seconds)
            percent = policy.kind == "Percent"
            # Rounded so that a percentage of few pods is still a pod, in both directions.
            step = -(-start * policy.value // 100) if percent else policy.value
            allowed.append(start + sign * step)
        return max(allowed) if (rules.select == "Max") == (sign == 1) else min(allowed)

    def _remember(self, now: float, current: int, replicas: int) -> None:
        self._changes = [change for change in self._changes if change[0] > now - self._memory_seconds]
        if replicas != current:
            self._changes.append((now, replicas - current))


def combine_proposals(proposals: Sequence[int | None], current: int) -> int | None:
    """The largest; None where none is known, or where one is unknown and the others would scale down."""
    known = [proposal for proposal in proposals if proposal is not None]
    if not known or (len(known) < len(proposals) and max(known) < current):
        return None
    return max(known)
