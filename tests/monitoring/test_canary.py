"""A canary against stable: false alarms over many days of equal versions, and what each criterion finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from app.metrics import DURATION_BUCKETS
from app.monitoring.canary import Criterion, Observed, Rules, compare, describe_worse
from app.monitoring.sequential import SequentialTest, Tally
from tests.monitoring.test_sequential import _log_e_values

Array = npt.NDArray[Any]
# One point worse is enough: the hardest rules to keep without a false alarm.
STRICT = Rules(errors_margin=0, latency_margin=0, accuracy_margin=0)
FAST = (0, 0, 0, 0, 5, 60, 20, 10, 5, 0, 0, 0, 0, 0, 0, 0)  # of each 100: most within 20 ms
SLOW = (0, 0, 0, 0, 5, 40, 20, 10, 25, 0, 0, 0, 0, 0, 0, 0)  # 25 instead of 5 above 100 ms


def _observed(n: int = 1000, failed: int = 0, durations: tuple[int, ...] = FAST, wrong: int = 0) -> Observed:
    return Observed(n, failed, tuple(count * (n - failed) // 100 for count in durations), n // 4, wrong)


def _worse(criteria: tuple[Criterion, ...]) -> list[str]:
    return [criterion.name for criterion in criteria if criterion.verdict.is_worse]


def test_equal_canary_is_not_worse() -> None:
    criteria = compare(Rules(), _observed(20_000, 40, wrong=400), _observed(wrong=20, failed=2))
    assert [criterion.name for criterion in criteria] == ["errors", "latency", "accuracy"]
    assert _worse(criteria) == []
    assert [criterion.margin for criterion in criteria] == [0.01, 0.05, 0.05]


@pytest.mark.parametrize(
    ("bad", "criterion", "words"),
    [
        (_observed(failed=70), "errors", "fails 7 % of 1,000 requests, stable 1.1.0 fails 0.2 % of 20,000 (margin 1 %"),
        (
            _observed(durations=SLOW),
            "latency",
            "takes longer than 100 ms for 25 % of 1,000 answers, stable 1.1.0 for 5 % of 19,960 (margin 5 %",
        ),
        (
            _observed(4000, wrong=300),
            "accuracy",
            "is wrong in 30 % of 1,000 labelled answers, stable 1.1.0 in 8 % of 5,000 (margin 5 %",
        ),
    ],
    ids=["errors", "latency", "accuracy"],
)
def test_each_criterion_finds_its_fault_and_no_other(bad: Observed, criterion: str, words: str) -> None:
    criteria = compare(Rules(), _observed(20_000, 40, wrong=400), bad)
    assert _worse(criteria) == [criterion]
    assert describe_worse("canary 1.2.0", "stable 1.1.0", criteria) == f"canary 1.2.0 {words}, p < 0.001)"


def test_better_canary_is_not_worse() -> None:
    stable = _observed(20_000, 2_000, SLOW, wrong=2_000)
    assert _worse(compare(STRICT, stable, _observed(5_000))) == []


def test_nothing_counted_gives_no_verdict() -> None:
    for stable, canary in ((Observed(), Observed()), (_observed(), Observed()), (Observed(), _observed(failed=500))):
        criteria = compare(Rules(), stable, canary)
        assert _worse(criteria) == []
        assert {criterion.verdict.difference for criterion in criteria} == {None}
        assert {criterion.verdict.p_value for criterion in criteria} == {1.0}


def test_verdicts_wait_for_enough_requests_and_labels() -> None:
    stable = _observed(20_000)
    few = Observed(99, 99, (0,) * 15 + (99,), 29, 29)
    assert _worse(compare(Rules(), stable, few)) == []
    assert _worse(compare(Rules(min_requests=99, min_labelled=29), stable, few)) == ["errors", "latency", "accuracy"]


def test_false_alarms_are_shared_out() -> None:
    """Each criterion has a third of them, each bound of latency a 15th of that; its p-value is corrected for that."""
    stable, canary = _observed(20_000, 40, wrong=400), _observed(4_000, 60, SLOW, wrong=90)
    errors, latency, accuracy = compare(STRICT, stable, canary)
    alone = SequentialTest(0.01 / 3)
    assert errors.verdict == alone.judge(Tally(20_000, 40), Tally(4_000, 60))
    assert accuracy.verdict == alone.judge(Tally(5_000, 400), Tally(1_000, 90))
    assert latency.longer_than_seconds == 0.1
    single = SequentialTest(0.01 / 45).judge(latency.stable, latency.canary)
    assert latency.verdict.interval == single.interval
    assert latency.verdict.p_value == pytest.approx(15 * single.p_value)
    assert (latency.canary.n, latency.canary.bad) == (sum(canary.durations), sum(canary.durations[8:]))


def test_verdict_and_p_value_agree_on_random_counts() -> None:
    random = np.random.default_rng(5)
    found = set()
    for _ in range(50):
        shares = random.dirichlet(np.ones(16))
        slower = random.dirichlet(shares * 100 + 0.1)
        durations = [tuple(map(int, random.multinomial(600, pvals))) for pvals in (shares, slower)]
        stable, canary = (Observed(1000, int(random.integers(0, 60)), one, 90, 9) for one in durations)
        criteria = compare(STRICT, stable, canary)
        assert all(
            one.verdict.is_worse == (one.verdict.p_value <= 0.01 / 3) == (one.verdict.interval[0] >= 0)
            for one in criteria
        )
        # All bounds, each alone: none that was skipped would have been worse.
        single = SequentialTest(0.01 / 45)
        tails = [
            [Tally(600, sum(one.durations[index + 1 :])) for one in (stable, canary)]
            for index in range(len(DURATION_BUCKETS))
        ]
        assert criteria[1].verdict.is_worse == any(single.judge(*pair).is_worse for pair in tails)
        found |= set(_worse(criteria))
    assert {"errors", "latency"} <= found


def test_reason_of_three_criteria_fits_the_history() -> None:
    stable = _observed(10**9, 1, wrong=3)
    criteria = compare(Rules(), stable, _observed(123_456_789, 98_765_432, SLOW, wrong=30_000_000))
    assert len(_worse(criteria)) == 3
    assert len(describe_worse(f"{'a' * 20} {'1' * 20}", f"stable {'2' * 20}", criteria)) <= 500


# --- days of equal versions

DAYS, BATCHES = 800, 5
# Every minute in the first quarter of an hour, when most false alarms fall, then every ten.
MINUTES = np.concatenate([np.arange(1, 16), np.arange(20, 1441, 10)])


def _equal_days(random: np.random.Generator) -> tuple[Array, Array]:
    """Cumulative counts of both sides [days, looks, answered, failed, labelled, wrong and 16 durations].

    Both fail, are wrong and take time alike; 10 to 3,000 requests a minute, of which the canary has 1 % to 50 % and one
    in twenty is labelled. On every second day there is an hour in which both fail five times as often, and take longer.
    """
    shape = (DAYS, len(MINUTES))
    start = random.uniform(0, 1380, (DAYS, 1))
    is_bad_hour = (start < MINUTES) & (start + 60 > MINUTES) & (np.arange(DAYS) % 2 == 0)[:, None]
    failing = np.exp(random.uniform(np.log(0.001), np.log(0.2), (DAYS, 1))) * np.where(is_bad_hour, 5, 1)
    being_wrong = random.uniform(0.01, 0.5, (DAYS, 1)) * np.ones(shape)
    durations = random.dirichlet(np.full(16, 0.4), DAYS)[:, None] * np.ones((*shape, 1))
    durations[is_bad_hour] = np.roll(durations[is_bad_hour], 1, axis=-1)
    a_minute = np.exp(random.uniform(np.log(10), np.log(3000), (DAYS, 1)))
    weight = random.choice([0.01, 0.05, 0.25, 0.5], (DAYS, 1))
    sides = []
    for share in (1 - weight, weight):
        n = np.diff(np.floor(MINUTES * a_minute * share), prepend=0).astype(np.int64)
        failed = random.binomial(n, np.minimum(failing, 1))
        labelled = random.binomial(n - failed, 0.05)
        wrong = random.binomial(labelled, being_wrong)
        counts = [n, failed, labelled, wrong, *np.moveaxis(random.multinomial(n - failed, durations), -1, 0)]
        sides.append(np.stack(counts, axis=-1).cumsum(axis=1))
    return sides[0], sides[1]


def _tests(side: Array) -> list[tuple[Array, Array]]:
    """Bad and all of each test that `compare` makes: errors, accuracy, and each bound of latency."""
    durations = side[..., 4:]
    answers = durations.sum(axis=-1)
    tails = [(answers - durations[..., : index + 1].sum(axis=-1), answers) for index in range(15)]
    return [(side[..., 1], side[..., 0]), (side[..., 3], side[..., 2]), *tails]


def _side(counts: Array) -> Observed:
    answered, failed, labelled, wrong, *durations = map(int, counts)
    return Observed(answered, failed, tuple(durations), labelled, wrong)


def test_equal_versions_raise_no_more_alarms_than_allowed() -> None:
    """4,000 days: all looks are screened by scipy, and those that come near an alarm are judged by `compare`.

    Ordinary tests of the same criteria, each at the same 1 % and looked at as often, raise one on most days.
    """
    random = np.random.default_rng(20_261_121)
    near = alarms = ordinary_alarms = 0
    for _ in range(BATCHES):
        stable, canary = _equal_days(random)
        is_near, is_far = np.zeros((2, DAYS, len(MINUTES)), bool)
        for (stable_bad, stable_n), (bad, n) in zip(_tests(stable), _tests(canary), strict=True):
            enough = (n >= 30) & (stable_n >= 30)
            is_near |= enough & (_log_e_values(stable_bad, np.maximum(stable_n, 1), bad, n) > np.log(2))
            pooled = (stable_bad + bad) / np.maximum(stable_n + n, 1)
            error = np.sqrt(pooled * (1 - pooled) * (1 / np.maximum(stable_n, 1) + 1 / np.maximum(n, 1)))
            distance = bad / np.maximum(n, 1) - stable_bad / np.maximum(stable_n, 1)
            is_far |= enough & (distance > 2.326 * error) & (error > 0)
        worse = {day for day, look in np.argwhere(is_near) if _is_worse(stable[day, look], canary[day, look])}
        near, alarms = near + int(is_near.any(axis=1).sum()), alarms + len(worse)
        ordinary_alarms += int(is_far.any(axis=1).sum())
    assert near >= 20  # chance alone comes that near
    assert alarms <= STRICT.false_alarm * DAYS * BATCHES
    assert ordinary_alarms > 0.5 * DAYS * BATCHES


def _is_worse(stable: Array, canary: Array) -> bool:
    return bool(_worse(compare(STRICT, _side(stable), _side(canary))))


@pytest.mark.parametrize(("share", "minutes"), [(0.07, 60), (0.12, 20)])
def test_bad_version_is_found_soon(share: float, minutes: int) -> None:
    """With 5 % of 600 requests a minute, where stable fails 1 %; in 95 of 100 runs, looked at every five minutes."""
    random = np.random.default_rng(4)
    found = 0
    for _ in range(100):
        bad = random.binomial(30, share, minutes).cumsum(), random.binomial(570, 0.01, minutes).cumsum()
        found += any(
            _worse(compare(Rules(), Observed(570 * at, int(bad[1][at - 1])), Observed(30 * at, int(bad[0][at - 1]))))
            for at in range(5, minutes + 1, 5)
        )
    assert found >= 95
