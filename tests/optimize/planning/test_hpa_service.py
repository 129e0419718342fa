"""The model of a pod against Erlang's formulas and against what was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.optimize.planning.service_model import ServiceModel, weighted_quantile

# docs/benchmarks/benchmark.md of 2026-11-21, (e) base64 JSON photo: offered, goodput, accepted p50 in ms. At 1 × the
# queue is between empty and full, and a percent of the capacity decides which; so it is no measure of the model.
MEASURED = [(171.4, 171.4, 6.9), (685.5, 312.4, 412), (1028.3, 287.1, 455)]


@pytest.mark.parametrize(("offered", "goodput", "p50_ms"), MEASURED)
def test_model_is_near_the_measurement(offered: float, goodput: float, p50_ms: float) -> None:
    served = ServiceModel(deadline_seconds=1).answer(offered)
    assert offered - served.refused == pytest.approx(goodput, rel=0.05)
    assert 1e3 * weighted_quantile(served.response_seconds, served.arrivals, 0.5) == pytest.approx(p50_ms, rel=0.05)


def _erlang_b(load: float, threads: int) -> float:
    """Share that is lost where nothing waits, by the usual recursion."""
    lost = 1.0
    for busy in range(1, threads + 1):
        lost = load * lost / (busy + load * lost)
    return lost


@settings(deadline=None)
@given(threads=st.integers(1, 30), load=st.floats(0.01, 3))
def test_without_a_queue_it_is_erlang_b(threads: int, load: float) -> None:
    model = ServiceModel(0.01, threads, refusal_seconds=0, queue_per_thread=0)
    served = model.answer(load * threads / 0.01)
    assert served.refused / served.offered == pytest.approx(_erlang_b(load * threads, threads), rel=1e-6, abs=1e-12)


@settings(deadline=None)
@given(threads=st.integers(1, 16), load=st.floats(0.05, 0.9))
def test_with_a_long_queue_it_is_erlang_c(threads: int, load: float) -> None:
    """Share of requests that wait: B / (1 - load × (1 - B))."""
    served = ServiceModel(0.01, threads, queue_per_thread=500).answer(load * threads / 0.01)
    lost = _erlang_b(load * threads, threads)
    waiting = served.arrivals[threads:].sum() / served.arrivals.sum()
    assert waiting == pytest.approx(lost / (1 - load * (1 - lost)), rel=1e-4, abs=1e-9)
    assert served.refused / served.offered < 1e-6
    assert served.cpu_share == pytest.approx(load, rel=1e-4)


@settings(deadline=None)
@given(
    rate=st.floats(0, 1e6),
    service_ms=st.floats(0.05, 5000),
    threads=st.integers(1, 64),
    deadline_ms=st.floats(1, 60_000),
)
def test_whatever_comes_is_answered_in_time_or_refused(
    rate: float, service_ms: float, threads: int, deadline_ms: float
) -> None:
    model = ServiceModel(service_ms / 1e3, threads, deadline_seconds=deadline_ms / 1e3, refusal_seconds=0)
    served = model.answer(rate)
    answered = float(served.arrivals.sum())
    assert answered + served.refused == pytest.approx(rate, rel=1e-9)
    assert -1e-9 <= answered <= model.capacity * (1 + 1e-9)
    assert 0 <= served.cpu_share <= 1
    assert np.all(np.diff(served.response_seconds) >= 0)
    # Where no thread is free the answer is due within the deadline; what finds one is tried.
    late = served.response_seconds - model.base_seconds > max(deadline_ms, service_ms) / 1e3 * (1 + 1e-9)
    assert not late.any()


def test_refusals_cost_what_they_cost() -> None:
    """At 3 × (1029/s) some 732 are refused, 0.37 ms each: 0.27 of two threads, and the answers lose as much."""
    served = ServiceModel().answer(1029)
    assert served.refused * 0.37e-3 == pytest.approx(0.271, abs=0.001)
    assert float(served.arrivals.sum()) == pytest.approx((2 - 0.271) / 5.83e-3, rel=1e-3)
    assert served.cpu_share == pytest.approx(1, abs=1e-3)
    assert ServiceModel().answer(1e6).arrivals.sum() < 10


def test_no_load() -> None:
    served = ServiceModel().answer(0)
    assert (served.refused, served.arrivals.sum(), served.cpu_share, served.total_seconds) == (0, 0, 0, 0)
    assert math.isnan(weighted_quantile(served.response_seconds, served.arrivals, 0.5))


def test_quantile() -> None:
    values, weights = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 1.0])
    assert [weighted_quantile(values, weights, share) for share in (0.25, 0.26, 0.75, 0.76, 1)] == [1, 2, 2, 3, 3]
