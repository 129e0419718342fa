"""What is written together is what would have been written one by one."""

from __future__ import annotations

import asyncio
import random

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram

from app.deferred import FLUSH_SECONDS, DeferredHistograms, HistogramRows

pytestmark = pytest.mark.anyio
BUCKETS = (0.1, 0.5, 1.0, 5.0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _histogram() -> Histogram:
    return Histogram("seconds", "Some time.", ("model",), buckets=BUCKETS, registry=CollectorRegistry()).labels("m")


def _samples(histogram: Histogram) -> dict[str, float]:
    (family,) = [histogram._child_samples()]
    return {f"{sample.name} {sample.labels}": pytest.approx(sample.value) for sample in family}


@pytest.mark.parametrize("count", [1, 3, 4, 500])
async def test_flush_equals_observe(count: int) -> None:
    choice = random.Random(count)
    values = [choice.choice([*BUCKETS, choice.uniform(0, 8)]) for _ in range(count)]
    one_by_one, together, deferred = _histogram(), _histogram(), DeferredHistograms()
    for value in values:
        one_by_one.observe(value)
        deferred.observe(together, value)
    assert _samples(together) == _samples(_histogram())
    deferred.flush()
    deferred.flush()
    assert _samples(together) == _samples(one_by_one)


async def test_values_are_written_after_a_moment() -> None:
    histogram, deferred = _histogram(), DeferredHistograms()
    for _ in range(2):
        deferred.observe(histogram, 0.3)
        await asyncio.sleep(3 * FLUSH_SECONDS)
    expected = _histogram()
    expected.observe(0.3)
    expected.observe(0.3)
    assert _samples(histogram) == _samples(expected)


def test_values_are_written_at_once_without_an_event_loop() -> None:
    histogram, expected = _histogram(), _histogram()
    DeferredHistograms().observe(histogram, 2.0)
    expected.observe(2.0)
    assert _samples(histogram) == _samples(expected)


async def test_rows_of_several_histograms() -> None:
    choice = random.Random(7)
    rows = [(choice.uniform(0, 8), choice.uniform(0, 1)) for _ in range(50)]
    together, expected = (_histogram(), _histogram()), (_histogram(), _histogram())
    deferred, bound = DeferredHistograms(), HistogramRows(together)
    for number, row in enumerate(rows):
        deferred.observe_row(bound, row)
        if number == 20:
            deferred.flush()
        for histogram, value in zip(expected, row, strict=True):
            histogram.observe(value)
    deferred.flush()
    deferred.flush()
    assert [_samples(histogram) for histogram in together] == [_samples(histogram) for histogram in expected]


def test_a_gauge_gets_the_last_value() -> None:
    gauge = Gauge("at", "A time.", registry=CollectorRegistry())
    deferred = DeferredHistograms()

    async def set_twice() -> float:
        deferred.set(gauge, 1.0)
        deferred.set(gauge, 2.0)
        before = gauge._value.get()
        deferred.flush()
        return float(before)

    assert asyncio.run(set_twice()) == 0
    assert gauge._value.get() == 2
