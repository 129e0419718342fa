"""A canary against stable by three criteria: errors, latency, accuracy. Pure: counts come in, verdicts go out.

Who is compared, and what is done about a worse one, is decided in registry/releases/canary_guard.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.metrics import DURATION_BUCKETS
from app.monitoring.sequential import SequentialTest, Tally, Verdict

ERRORS, LATENCY, ACCURACY = "errors", "latency", "accuracy"
_CRITERIA = 3


@dataclass(frozen=True, slots=True)
class Rules:
    """Margins are shares by which a canary may be worse; `false_alarm` bounds the chance to call one worse that is not.

    That is over all criteria and all looks together, as long as the same versions have the same weights.
    """

    errors_margin: float = 0.01
    latency_margin: float = 0.05
    accuracy_margin: float = 0.05
    false_alarm: float = 0.01
    min_requests: int = 100
    min_labelled: int = 30


@dataclass(frozen=True, slots=True)
class Observed:
    """What one version did under one alias.

    `failed` of the `answered` requests were its own failures; `durations`: how many good answers took up to each of
    DURATION_BUCKETS (not cumulative), last: longer. `wrong` of the `labelled` answers.
    """

    answered: int = 0
    failed: int = 0
    durations: tuple[int, ...] = (0,) * (len(DURATION_BUCKETS) + 1)
    labelled: int = 0
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class Criterion:
    """One comparison. `verdict` is at this criterion's part of the false alarms.

    Of latency it is the bound that speaks most against the canary, `longer_than_seconds`; its p-value is corrected for
    the choice, and so is the level of its interval.
    """

    name: str
    margin: float
    stable: Tally
    canary: Tally
    verdict: Verdict
    longer_than_seconds: float | None = None


def compare(rules: Rules, stable: Observed, canary: Observed) -> tuple[Criterion, ...]:
    """Errors, latency, accuracy. Takes 2 ms for each criterion, and for each bound of latency that differs."""
    alpha = rules.false_alarm / _CRITERIA
    errors = SequentialTest(alpha, rules.errors_margin, rules.min_requests)
    accuracy = SequentialTest(alpha, rules.accuracy_margin, rules.min_labelled)
    return (
        _judge(ERRORS, errors, Tally(stable.answered, stable.failed), Tally(canary.answered, canary.failed)),
        _judge_latency(alpha, rules, stable.durations, canary.durations),
        _judge(ACCURACY, accuracy, Tally(stable.labelled, stable.wrong), Tally(canary.labelled, canary.wrong)),
    )


def describe_worse(name: str, stable: str, criteria: Sequence[Criterion]) -> str:
    """What speaks against the canary `name`, as "canary 1.2.0", in one line; of the criteria by which it is worse."""
    found = []
    for criterion in criteria:
        if criterion.verdict.is_worse:
            first, second, noun = _words(criterion)
            found.append(
                f"{first} {_share(criterion.canary)} {noun}, {stable} {second} {_share(criterion.stable)} "
                f"(margin {_percent(criterion.margin)}, {_p_value(criterion.verdict.p_value)})"
            )
    return f"{name} {'; '.join(found)}"


def _judge(name: str, test: SequentialTest, stable: Tally, canary: Tally) -> Criterion:
    return Criterion(name, test.margin, stable, canary, test.judge(stable, canary))


def _judge_latency(alpha: float, rules: Rules, stable: tuple[int, ...], canary: tuple[int, ...]) -> Criterion:
    """All bounds are tested, each at its part of alpha (Bonferroni): none is chosen because of what was seen."""
    count = len(DURATION_BUCKETS)
    test = SequentialTest(alpha / count, rules.latency_margin, rules.min_requests)
    pairs = [(_longer(stable, index), _longer(canary, index)) for index in range(count)]
    distances = [_distance(*pair) for pair in pairs]
    # Where the difference is within the margin no verdict can come; then the largest is shown.
    chosen = [index for index in range(count) if distances[index] > rules.latency_margin]
    judged = [
        replace(_judge(LATENCY, test, *pairs[index]), longer_than_seconds=DURATION_BUCKETS[index])
        for index in chosen or [max(range(count), key=distances.__getitem__)]
    ]
    # Of equals the longest bound.
    worst = min(reversed(judged), key=lambda one: (one.verdict.p_value, -(one.verdict.difference or 0.0)))
    return replace(worst, verdict=replace(worst.verdict, p_value=min(1.0, worst.verdict.p_value * count)))


def _longer(durations: tuple[int, ...], index: int) -> Tally:
    return Tally(sum(durations), sum(durations[index + 1 :]))


def _distance(stable: Tally, canary: Tally) -> float:
    return canary.bad / canary.n - stable.bad / stable.n if stable.n and canary.n else 0.0


def _words(criterion: Criterion) -> tuple[str, str, str]:
    """Before the canary's share, before stable's, and what it is a share of."""
    if criterion.name == ERRORS:
        return "fails", "fails", "requests"
    if criterion.longer_than_seconds is not None:
        return f"takes longer than {_duration(criterion.longer_than_seconds)} for", "for", "answers"
    return "is wrong in", "in", "labelled answers"


def _share(tally: Tally) -> str:
    return f"{_percent(tally.bad / tally.n)} of {tally.n:,}"


def _percent(share: float) -> str:
    return f"{round(100 * share, 2):g} %"


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:g} ms" if seconds < 1 else f"{seconds:g} s"


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
