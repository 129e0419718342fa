"""The autoscaler's algorithm on cases worked by hand, from the words and numbers of Kubernetes' own page about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from app.optimize.planning.hpa import (
    Autoscaler,
    Decision,
    Hpa,
    Metric,
    Pods,
    Policy,
    Samples,
    ScalingRules,
    combine_proposals,
    propose_replicas,
)

NOW = 10_000.0
LATENCY, CPU = Metric("latency", 100), Metric("cpu", 0.7)
NONE = math.nan
FREE = ScalingRules(0, (Policy("Percent", 1000, 15),))


def _old_pods(count: int) -> Pods:
    """All ready for an hour."""
    long_ago = np.full(count, NOW - 3600)
    return Pods(long_ago, np.full(count, True), long_ago)


def _pods(*pods: tuple[float, bool, float]) -> Pods:
    """(started, ready, changed) as seconds before NOW; started NaN: pending."""
    started, ready, changed = zip(*pods, strict=True)
    return Pods(NOW - np.array(started, float), np.array(ready), NOW - np.array(changed, float))


def _propose(
    metric: Metric, values: Sequence[float], pods: Pods | None = None, current: int | None = None, window: float = 0
) -> int | None:
    pods = _old_pods(len(values)) if pods is None else pods
    samples = Samples(np.array(values, float), NOW, window)
    return propose_replicas(metric, pods, samples, len(values) if current is None else current, NOW, 0.1, 0.1)


@pytest.mark.parametrize(
    ("values", "replicas"),
    [
        ([200, 200, 200], 6),  # 200 / 100: doubled
        ([50, 50, 50, 50], 2),  # 50 / 100: halved
        ([100, 200, 60], 4),  # mean 120: 3 × 1.2 = 3.6
        ([0, 0], 0),
    ],
)
def test_ratio(values: list[float], replicas: int) -> None:
    assert _propose(LATENCY, values) == replicas


@pytest.mark.parametrize(("value", "replicas"), [(110, 10), (111, 12), (90, 10), (89, 9), (100, 10)])
def test_tolerance(value: float, replicas: int) -> None:
    """0.9 … 1.1 of the target is near enough; 10 × 1.11 = 11.1 and 10 × 0.89 = 8.9."""
    assert _propose(LATENCY, [value] * 10) == replicas


def test_tolerance_of_each_direction() -> None:
    samples = Samples(np.full(10, 106.0), NOW)
    for up, replicas in ((0.05, 11), (0.06, 10)):
        assert propose_replicas(LATENCY, _old_pods(10), samples, 10, NOW, 0.5, up) == replicas
    samples = Samples(np.full(10, 60.0), NOW)
    for down, replicas in ((0.5, 10), (0.1, 6)):
        assert propose_replicas(LATENCY, _old_pods(10), samples, 10, NOW, down, 0.1) == replicas


def test_no_rounding_error_is_a_pod() -> None:
    """3 × 1.2 in floating point, and 0.1 + 0.2 over 0.1 a pod."""
    assert _propose(Metric("m", 0.1), [0.3, 0.3, 0.3]) == 9
    assert _propose(Metric("m", 0.7), [0.77] * 10) == 10  # 1.1, with noise


def test_missing_metrics_scaling_up() -> None:
    """Counted as 0: (200 + 200 + 200 + 0) / 4 = 150, so 4 × 1.5 = 6 and not 4 × 2 = 8."""
    assert _propose(LATENCY, [200, 200, 200, NONE]) == 6


def test_missing_metrics_scaling_down() -> None:
    """Counted as the target: (50 + 50 + 50 + 100) / 4 = 62.5, so 4 × 0.625 = 2.5 and not 2."""
    assert _propose(LATENCY, [50, 50, 50, NONE]) == 3


def test_missing_metrics_that_turn_the_direction() -> None:
    """(120 + 120 + 0 + 0) / 4 = 60 asks for fewer, 120 alone for more: nothing happens."""
    assert _propose(LATENCY, [120, 120, NONE, NONE]) == 4


def test_missing_metrics_within_tolerance() -> None:
    """(140 × 3 + 0) / 4 = 105."""
    assert _propose(LATENCY, [140, 140, 140, NONE]) == 4


def test_missing_metrics_on_target() -> None:
    assert _propose(LATENCY, [100, 100, NONE]) == 3


def test_all_metrics_missing() -> None:
    assert _propose(LATENCY, [NONE, NONE]) is None


def test_fewer_values_than_replicas_do_not_turn_the_direction() -> None:
    """10 are wanted and 2 are there: (150 + 150 + 0) / 3 × … = 3 would be fewer than 10."""
    assert _propose(LATENCY, [180, 180, NONE], current=10) == 10


READY, NOT_READY = (3600.0, True, 3600.0), (20.0, False, 20.0)


def test_not_yet_ready_pods_scaling_up() -> None:
    """CPU of 140 % on three, two start: (1.4 × 3 + 0 × 2) / 5 = 0.84; 0.84 / 0.7 = 1.2; 5 × 1.2 = 6, not 5 × 2 = 10."""
    pods = _pods(READY, READY, READY, NOT_READY, NOT_READY)
    assert _propose(CPU, [1.4, 1.4, 1.4, 1.0, 1.0], pods) == 6


def test_not_yet_ready_pods_hold_what_is_coming() -> None:
    """(1.05 × 2 + 0) / 3 = 0.7: the third pod will be enough. Without it 1.05 / 0.7 = 1.5."""
    assert _propose(CPU, [1.05, 1.05, 1.0], _pods(READY, READY, NOT_READY)) == 3
    assert _propose(CPU, [1.05, 1.05]) == 3


def test_not_yet_ready_pods_scaling_down() -> None:
    """Set aside: 0.35 / 0.7 = 0.5 of the three that count."""
    assert _propose(CPU, [0.35, 0.35, 0.35, 1.0, 1.0], _pods(READY, READY, READY, NOT_READY, NOT_READY)) == 2


def test_pending_pods_count_as_idle_for_every_metric() -> None:
    """(300 × 2 + 0 × 2) / 4 = 150; 4 × 1.5 = 6."""
    pending = (NONE, False, 0.0)
    assert _propose(LATENCY, [300, 300, NONE, NONE], _pods(READY, READY, pending, pending)) == 6


def test_readiness_does_not_matter_but_for_cpu() -> None:
    assert _propose(LATENCY, [200, 200], _pods(READY, NOT_READY)) == 4


@pytest.mark.parametrize(
    ("pod", "counts"),
    [
        ((100, True, 10), False),  # ready for 10 s; the sample is of the last 15 s
        ((100, True, 15), True),
        ((100, False, 100), False),  # still loading
        ((100, False, 40), False),  # was ready, within the first five minutes
        ((400, False, 400), False),  # never ready
        ((400, False, 371), False),  # not ready since 29 s after its start: never ready
        ((400, False, 100), True),  # was ready, and is not any more
        ((400, True, 10), True),  # after five minutes a sample counts at once
    ],
)
def test_whose_cpu_counts(pod: tuple[float, bool, float], counts: bool) -> None:
    """One old pod at 70 %, one at 210 %: the mean is twice the target if both count, and on it if the first does."""
    assert _propose(CPU, [0.7, 2.1], _pods(READY, pod), window=15) == (4 if counts else 2)


def test_metrics_that_disagree() -> None:
    """CPU of 35 % asks for 3 × 0.5, demand of 0.9 for 3 × 1.5: the largest wins."""
    hpa = Hpa((CPU, Metric("demand", 0.6)), 1, 20, FREE, FREE)
    samples = {"cpu": Samples(np.full(3, 0.35), NOW), "demand": Samples(np.full(3, 0.9), NOW)}
    assert Autoscaler(hpa).decide(NOW, 3, _old_pods(3), samples) == Decision(5, 5, (2, 5))


def test_a_metric_that_is_unknown_forbids_scaling_down_only() -> None:
    assert combine_proposals([2, None], 3) is None
    assert combine_proposals([3, None], 3) == 3
    assert combine_proposals([5, None], 3) == 5
    assert combine_proposals([None, None], 3) is None
    assert combine_proposals([2, 1], 3) == 2
    hpa = Hpa((LATENCY, CPU), 1, 20, FREE, FREE)
    samples = {"latency": Samples(np.full(3, 50.0), NOW)}
    assert Autoscaler(hpa).decide(NOW, 3, _old_pods(3), samples) == Decision(3, None, (2, None))


class Scene:
    """An autoscaler on one metric whose target is 100 and a Deployment that follows it at once."""

    def __init__(self, replicas: int, up: ScalingRules = FREE, down: ScalingRules = FREE, most: int = 1000) -> None:
        self.scaler = Autoscaler(Hpa((LATENCY,), 1, most, up, down))
        self.replicas = replicas

    def ask(self, seconds: float, wanted: int) -> int:
        """The metric says that `wanted` replicas would be right."""
        values = np.full(self.replicas, 100 * wanted / self.replicas)
        decision = self.scaler.decide(
            seconds, self.replicas, _old_pods(self.replicas), {"latency": Samples(values, NOW)}
        )
        self.replicas = decision.replicas
        return self.replicas


@pytest.mark.parametrize(
    ("select", "start", "replicas"),
    [("Max", 3, 7), ("Max", 10, 20), ("Min", 3, 6), ("Min", 10, 14), ("Disabled", 10, 10)],
)
def test_select_policy_scaling_up(select: Literal["Max", "Min", "Disabled"], start: int, replicas: int) -> None:
    """100 % or 4 pods: 3 + 4 > 3 × 2, and 10 × 2 > 10 + 4."""
    rules = ScalingRules(0, (Policy("Percent", 100, 15), Policy("Pods", 4, 15)), select)
    assert Scene(start, up=rules).ask(0, 100) == replicas


@pytest.mark.parametrize(
    ("select", "start", "replicas"),
    [("Max", 80, 72), ("Max", 20, 16), ("Min", 80, 76), ("Min", 20, 18), ("Disabled", 20, 20)],
)
def test_select_policy_scaling_down(select: Literal["Max", "Min", "Disabled"], start: int, replicas: int) -> None:
    """10 % or 4 pods."""
    rules = ScalingRules(0, (Policy("Pods", 4, 60), Policy("Percent", 10, 60)), select)
    assert Scene(start, down=rules).ask(0, 1) == replicas


def test_scaling_down_as_the_page_tells_it() -> None:
    """From 80 to 10 with 4 pods or 10 % a minute: 8 go, then 7.2, rounded up to 8 …; from 40 on it is 4."""
    scene = Scene(80, down=ScalingRules(0, (Policy("Pods", 4, 60), Policy("Percent", 10, 60))))
    told = [scene.ask(60.0 * minute, 10) for minute in range(16)]
    assert told == [72, 64, 57, 51, 45, 40, 36, 32, 28, 24, 20, 16, 12, 10, 10, 10]


def test_a_policy_holds_for_its_period() -> None:
    """4 pods in 60 s: two at 0 s, two more at 15 s, then none until the first two are 60 s ago."""
    scene = Scene(10, up=ScalingRules(0, (Policy("Pods", 4, 60),)))
    wanted = {0: 12, 15: 20, 30: 20, 59: 20, 60: 20, 74: 20, 75: 20}
    assert [scene.ask(at, number) for at, number in wanted.items()] == [12, 14, 14, 14, 16, 16, 18]


def test_a_policy_counts_from_what_there_was_when_its_period_began() -> None:
    """10 % of 100 a minute are 10, also where 5 of them have gone before; what was added in between may go as well."""
    scene = Scene(100, down=ScalingRules(0, (Policy("Percent", 10, 60),)))
    assert [scene.ask(0, 95 - 10), scene.ask(15, 1)] == [90, 90]
    scene = Scene(100, down=ScalingRules(0, (Policy("Percent", 10, 60),)))
    assert [scene.ask(0, 120), scene.ask(15, 1)] == [120, 90]


def test_scale_down_takes_the_maximum_of_the_window() -> None:
    """8 was asked for at 60 s: nothing less before 360 s."""
    down = ScalingRules(300, (Policy("Percent", 100, 15),))
    scene = Scene(10, down=down)
    wanted = {0: 10, 15: 6, 60: 8, 75: 3, 299: 3, 300: 3, 345: 3, 359: 3, 360: 3}
    assert [scene.ask(at, number) for at, number in wanted.items()] == [10, 10, 10, 10, 10, 8, 8, 8, 3]


def test_what_was_asked_for_beyond_the_limit_holds_it() -> None:
    """50 were asked for and 20 are the limit: of 20 none goes within the window, then all down to the 15 of 15 s."""
    scene = Scene(10, down=ScalingRules(300, (Policy("Percent", 100, 15),)), most=20)
    wanted = {0: 50, 15: 15, 299: 5, 300: 5, 315: 5}
    assert [scene.ask(at, number) for at, number in wanted.items()] == [20, 20, 20, 15, 5]


def test_scale_up_takes_the_minimum_of_the_window() -> None:
    """A minute of asking for 8 before it comes, and the least of what was asked for meanwhile."""
    scene = Scene(4, up=ScalingRules(60, (Policy("Percent", 1000, 15),)))
    wanted = {0: 4, 15: 12, 30: 8, 45: 16, 60: 16, 75: 16, 90: 16}
    assert [scene.ask(at, number) for at, number in wanted.items()] == [4, 4, 4, 4, 8, 8, 16]


@pytest.mark.parametrize(("current", "replicas"), [(30, 20), (1, 3)])
def test_limits_come_before_any_metric(current: int, replicas: int) -> None:
    hpa = Hpa((LATENCY,), 3, 20)
    assert Autoscaler(hpa).decide(0, current, _old_pods(current), {}) == Decision(replicas, None, (None,))


def test_limits_of_what_metrics_ask_for() -> None:
    hpa = Hpa((LATENCY,), 3, 20, FREE, replace(FREE, window_seconds=0))
    for value, replicas in ((1000.0, 20), (1.0, 3)):
        samples = {"latency": Samples(np.full(10, value), NOW)}
        assert Autoscaler(hpa).decide(NOW, 10, _old_pods(10), samples).replicas == replicas


def test_defaults_are_those_of_kubernetes() -> None:
    """Up at once by 4 pods or 100 % each 15 s; down after 300 s, by all there is."""
    scaler = Autoscaler(Hpa((LATENCY,), 1, 100))
    replicas, told = 3, []
    for at, value in ((0, 1000.0), (15, 1000.0), (30, 1.0), (314, 1.0), (315, 1.0)):
        samples = {"latency": Samples(np.full(replicas, value), NOW)}
        replicas = scaler.decide(at, replicas, _old_pods(replicas), samples).replicas
        told.append(replicas)
    assert told == [7, 14, 14, 14, 1]
