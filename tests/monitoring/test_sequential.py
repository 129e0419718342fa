"""The sequential test: its e-value against scipy, false alarms over many days of equal versions, and what it finds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

from app.monitoring.sequential import SequentialTest, Tally

Array = npt.NDArray[Any]
ALPHA = 0.01


def _log_mixture(bad: Array, n: Array) -> Array:
    return np.asarray(betaln(bad + 0.5, n - bad + 0.5) - betaln(0.5, 0.5))


def _log_likelihood(bad: Array, n: Array, rate: Array) -> Array:
    return np.asarray(xlogy(bad, rate) + xlog1py(n - bad, -rate))


def _log_e_values(stable_bad: Array, stable_n: Array, bad: Array, n: Array) -> Array:
    """With margin 0 the likeliest rates of the null hypothesis are both the pooled one, unless the canary is better."""
    is_higher = bad * stable_n > stable_bad * n
    pooled = (stable_bad + bad) / (stable_n + n)
    mixture = _log_mixture(stable_bad, stable_n) + _log_mixture(bad, n)
    values = mixture - _log_likelihood(stable_bad + bad, stable_n + n, pooled)
    return np.where(is_higher, values, -np.inf)


def _random_tallies(count: int) -> list[tuple[Tally, Tally]]:
    random = np.random.default_rng(7)
    n = np.exp(random.uniform(0, 12, (count, 2))).astype(int) + 1
    bad = random.binomial(n, random.random((count, 2)) ** 3)
    return [(Tally(*map(int, pair[0])), Tally(*map(int, pair[1]))) for pair in np.stack([n, bad], axis=-1)]


def test_p_value_without_margin_equals_scipy() -> None:
    found = 0
    for stable, canary in _random_tallies(300):
        arrays = (np.array(value, float) for value in (stable.bad, stable.n, canary.bad, canary.n))
        expected = math.exp(-max(0.0, float(_log_e_values(*arrays))))
        assert SequentialTest().judge(stable, canary).p_value == pytest.approx(expected, rel=1e-6)
        found += 1e-300 < expected < 1
    assert found > 50


@pytest.mark.parametrize("margin", [-0.2, -0.01, 0.003, 0.05, 0.25])
def test_p_value_with_margin_equals_scipy(margin: float) -> None:
    found = 0
    for stable, canary in _random_tallies(300):
        difference = canary.bad / canary.n - stable.bad / stable.n

        def slope(rate: float, stable: Tally = stable, canary: Tally = canary) -> float:
            other = rate + margin
            return (stable.bad - stable.n * rate) / (rate * (1 - rate)) + (canary.bad - canary.n * other) / (
                other * (1 - other)
            )

        low, high = max(0.0, -margin) + 1e-12, min(1.0, 1 - margin) - 1e-12
        rate = low if slope(low) < 0 else high if slope(high) > 0 else brentq(slope, low, high, xtol=1e-15)
        best = sum(
            float(_log_likelihood(np.array(tally.bad), np.array(tally.n), np.array(share)))
            for tally, share in ((stable, rate), (canary, rate + margin))
        )
        mixture = sum(float(_log_mixture(np.array(t.bad), np.array(t.n))) for t in (stable, canary))
        expected = math.exp(-max(0.0, mixture - best)) if difference > margin else 1.0
        assert SequentialTest(margin=margin).judge(stable, canary).p_value == pytest.approx(expected, rel=1e-6)
        found += 1e-300 < expected < 1
    assert found > 10


def test_verdict_and_interval_say_the_same() -> None:
    for stable, canary in _random_tallies(100):
        verdict = SequentialTest(ALPHA, min_samples=1).judge(stable, canary)
        low, high = verdict.interval
        assert verdict.difference is not None
        assert -1 <= low <= verdict.difference <= high <= 1
        assert verdict.is_worse == (low >= 0) == (verdict.p_value <= ALPHA)
        if low > -1:  # the end of the interval is the margin that is just refuted
            assert SequentialTest(margin=low).judge(stable, canary).p_value == pytest.approx(ALPHA, rel=1e-3)


def test_verdict_at_the_ends_of_the_scale() -> None:
    none, good, bad = Tally(0, 0), Tally(1000, 0), Tally(1000, 1000)
    for pair in ((none, bad), (good, none), (none, none)):
        verdict = SequentialTest().judge(*pair)
        assert (verdict.is_worse, verdict.p_value, verdict.difference) == (False, 1.0, None)
        assert verdict.interval == (-1.0, 1.0)
    worst, best = SequentialTest().judge(good, bad), SequentialTest().judge(bad, good)
    assert (worst.is_worse, worst.difference, worst.interval[1]) == (True, 1.0, 1.0)
    assert worst.interval[0] > 0.98
    assert (best.is_worse, best.p_value, best.difference, best.interval[0]) == (False, 1.0, -1.0, -1.0)
    assert SequentialTest(margin=-0.999).judge(bad, good).p_value == 1.0
    assert not SequentialTest().judge(good, good).is_worse
    many = SequentialTest().judge(Tally(10**9, 10**6), Tally(10**8, 2 * 10**5))
    assert many.is_worse
    assert many.interval == pytest.approx((0.001, 0.001), abs=5e-5)


def test_verdict_waits_for_enough_of_both() -> None:
    test = SequentialTest(min_samples=100)
    assert not test.judge(Tally(1000, 0), Tally(99, 99)).is_worse
    assert not test.judge(Tally(99, 0), Tally(1000, 1000)).is_worse
    assert test.judge(Tally(100, 0), Tally(100, 100)).is_worse


def test_sums_of_tiny_values_are_taken() -> None:
    verdict = SequentialTest().judge(Tally(1000, 1e-300), Tally(1000, 1e-320))
    assert (verdict.is_worse, verdict.p_value) == (False, 1.0)
    assert verdict.interval[0] > -0.02


@pytest.mark.parametrize(("n", "bad"), [(5, 6), (5, -1), (-1, -1), (5, math.nan)])
def test_tally_refuses_impossible_counts(n: int, bad: float) -> None:
    with pytest.raises(ValueError, match="cannot be bad"):
        Tally(n, bad)


@pytest.mark.parametrize(("alpha", "margin"), [(0, 0), (1, 0), (0.01, 1), (0.01, -1)])
def test_sequential_test_refuses_impossible_levels(alpha: float, margin: float) -> None:
    with pytest.raises(ValueError, match="alpha is in 0…1 and margin in -1…1"):
        SequentialTest(alpha, margin)


# A day of looks, in minutes: every ten seconds in the first hour, when most false alarms fall, then every five minutes.
LOOKS = np.concatenate([np.arange(1, 361) / 6, np.arange(65, 1441, 5)])


def _day_counts(random: np.random.Generator, n: Array, rates: Array) -> tuple[Array, Array]:
    """Cumulative bad and all requests of days [days, looks]; `n` is of each span between two looks."""
    return random.binomial(n, rates).cumsum(axis=1), n.cumsum(axis=1)


def _equal_days(random: np.random.Generator, days: int) -> tuple[Array, Array, Array, Array]:
    """Both versions fail alike: at 0.1 % to 50 %, 10 to 3,000 requests a minute, the canary with 1 % to 50 % of them.

    On every second day there is an hour in which both fail five times as often.
    """
    rates = np.exp(random.uniform(np.log(0.001), np.log(0.5), (days, 1))) * np.ones(len(LOOKS))
    start = random.uniform(0, 1380, (days, 1))
    rates[::2] *= np.where((start < LOOKS) & (start + 60 > LOOKS), 5, 1)[::2]
    np.minimum(rates, 1, out=rates)
    a_minute = np.exp(random.uniform(np.log(10), np.log(3000), (days, 1)))
    weight = random.choice([0.01, 0.05, 0.25, 0.5], (days, 1))
    spans = np.diff(LOOKS, prepend=0)
    canary = np.diff(np.floor(LOOKS * a_minute * weight), prepend=0).astype(np.int64)
    stable = np.ceil(spans * a_minute * (1 - weight)).astype(np.int64)
    return *_day_counts(random, stable, rates), *_day_counts(random, canary, rates)


def test_equal_versions_raise_no_alarm_in_10_000_days() -> None:
    """An ordinary test at the same level, looked at as often, raises more than one on ten days."""
    random = np.random.default_rng(20_240_501)
    test, false_alarms, ordinary_alarms = SequentialTest(ALPHA), 0, 0
    for _ in range(20):
        stable_bad, stable_n, bad, n = _equal_days(random, 500)
        enough = (n >= test.min_samples) & (stable_n >= test.min_samples)
        values = np.where(enough, _log_e_values(stable_bad, stable_n, bad, np.maximum(n, 1)), -np.inf)
        worst = values.argmax(axis=1)
        for day in np.flatnonzero(values.max(axis=1) > -math.log(ALPHA) - 1):
            look = (day, worst[day])
            stable, canary = Tally(int(stable_n[look]), int(stable_bad[look])), Tally(int(n[look]), int(bad[look]))
            false_alarms += test.judge(stable, canary).is_worse
        pooled = (stable_bad + bad) / (stable_n + n)
        error = np.sqrt(pooled * (1 - pooled) * (1 / stable_n + 1 / np.maximum(n, 1)))
        distance = bad / np.maximum(n, 1) - stable_bad / stable_n
        ordinary_alarms += int(np.any(enough & (distance > 2.326 * error) & (error > 0), axis=1).sum())
    assert false_alarms <= ALPHA * 10_000
    assert ordinary_alarms > 0.1 * 10_000


# Requests of the canary within which it is found in 95 of 100 runs, looked at every 25 of them.
POWER = {
    "2 % and 7 %, one in twenty": (0.02, 0.07, 19, 750),
    "2 % and 7 %, one in two": (0.02, 0.07, 1, 1_500),
    "0.1 % and 5.1 %, one in twenty": (0.001, 0.051, 19, 300),
    "10 % and 15 %, one in twenty": (0.10, 0.15, 19, 2_400),
    "50 % and 55 %, one in twenty": (0.50, 0.55, 19, 5_800),
}


@pytest.mark.parametrize("name", POWER)
def test_canary_worse_by_five_points_is_found(name: str) -> None:
    rate, worse_rate, ratio, within = POWER[name]
    random = np.random.default_rng(3)
    runs, looks, step = 400, within // 25, 25
    shape = np.full((runs, looks), step)
    stable_bad, stable_n = _day_counts(random, shape * ratio, np.full((runs, looks), rate))
    bad, n = _day_counts(random, shape, np.full((runs, looks), worse_rate))
    values = np.where(n >= 100, _log_e_values(stable_bad, stable_n, bad, n), -np.inf)
    best = values.argmax(axis=1)
    found = 0
    for run in np.flatnonzero(values.max(axis=1) > -math.log(ALPHA) - 1e-6):
        look = (run, best[run])
        stable, canary = Tally(int(stable_n[look]), int(stable_bad[look])), Tally(int(n[look]), int(bad[look]))
        found += SequentialTest(ALPHA).judge(stable, canary).is_worse
    assert found >= 0.95 * runs


@pytest.mark.parametrize("kind", ["counts", "values"])
def test_interval_holds_the_true_difference_at_all_looks(kind: str) -> None:
    """Also of values in 0…1, which vary less than zeros and ones do. A fault on either side is a miss."""
    random = np.random.default_rng(11)
    test, missed, looks = SequentialTest(0.1), 0, [10, 20, 40, 80, 160, 640, 2560]
    for _ in range(60):
        rate = float(random.uniform(0.01, 0.6))
        true = float(random.uniform(0, 0.3))
        if kind == "counts":
            stable, canary = random.random(5120) < rate, random.random(2560) < rate + true
        else:
            stable = random.beta(2 * rate, 2 * (1 - rate), 5120)
            canary = random.beta(2 * (rate + true), 2 * (1 - rate - true), 2560)
        intervals = [
            test.judge(Tally(2 * n, float(stable[: 2 * n].sum())), Tally(n, float(canary[:n].sum()))).interval
            for n in looks
        ]
        missed += any(not low <= true <= high for low, high in intervals)
    assert missed <= 6
