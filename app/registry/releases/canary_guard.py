"""Holds each canary against stable by the counts of all servers, and takes its traffic from one that is worse.

Any process may judge; one at a time changes releases, the holder of a lease. How is compared: monitoring/canary.py.
"""

from __future__ import annotations

import datetime
import logging
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

from app.errors import FeedbackUnavailable, HeadwayError, ReleaseConflict
from app.metrics import DURATION_BUCKETS, Metrics
from app.monitoring.canary import Criterion, Observed, Rules, compare, describe_worse
from app.registry.releases.changes import Withdraw
from app.registry.releases.editor import Note, ReleaseEditor
from app.registry.releases.release import STABLE, AliasEntry, Analysis, Changed, HistoryEntry, Release
from app.storage.counts import CountsStore, RequestCounts
from app.storage.feedback import FeedbackStore
from app.storage.leases import Leases
from app.storage.sums import MINUTE_MS

logger = logging.getLogger(__name__)

BY = "headway canary judge"
LEASE = "canary judge"
LEASE_SECONDS = 30.0
# What a history keeps of a reason.
LONGEST_WHY = 500


@dataclass(frozen=True, slots=True)
class Canary:
    """An alias that gets a share of the traffic, by the same versions and weights since `since_ms`, a full minute.

    `digest` is that of the release in which it was found; two that differ in it alone are the same canary.
    """

    model: str
    alias: str
    version: str
    stable_version: str
    weight: float
    since_ms: int
    analysis: Analysis
    digest: str = field(compare=False)

    @property
    def labels(self) -> tuple[str, str, str]:
        return self.model, self.version, self.alias


@dataclass(frozen=True, slots=True)
class Judgement:
    """`stable` and `observed` (the canary) are from `canary.since_ms` until before `until_ms`."""

    canary: Canary
    until_ms: int
    stable: Observed
    observed: Observed
    criteria: tuple[Criterion, ...]

    @property
    def is_worse(self) -> bool:
        return any(criterion.verdict.is_worse for criterion in self.criteria)

    @property
    def why(self) -> str:
        """In one line, of the criteria by which it is worse."""
        canary = self.canary
        name, stable = f"{canary.alias} {canary.version}", f"{STABLE} {canary.stable_version}"
        return describe_worse(name, stable, self.criteria)


class CanaryJudge:
    """For any thread, and the same in every process: changes nothing, and remembers nothing."""

    def __init__(self, editor: ReleaseEditor, counts: CountsStore, feedback: FeedbackStore) -> None:
        self._editor = editor
        self._counts = counts
        self._feedback = feedback

    def find(self, model: str, now_ms: int) -> list[Canary]:
        """The aliases that are to be judged. Raises ModelNotFound, or RegistryError where release.yaml is wrong."""
        current = self._editor.read(model)
        release = current.release
        if release is None:
            return []
        return [
            Canary(
                model=model,
                alias=alias,
                version=entry.version,
                stable_version=release.aliases[STABLE].version,
                weight=entry.weight,
                since_ms=_next_minute(_find_start_ms(release, alias) or self._editor.written_ms(model) or now_ms),
                analysis=release.analysis or Analysis(),
                digest=current.digest,
            )
            for alias, entry in release.aliases.items()
            if alias != STABLE and entry.weight
        ]

    def judge(self, canary: Canary, now_ms: int) -> Judgement:
        """By the full minutes that are over. Raises FeedbackUnavailable."""
        until_ms = max(canary.since_ms, now_ms - now_ms % MINUTE_MS)
        rows = self._counts.requests(canary.model, canary.since_ms, until_ms)
        counted = {(row.version, row.alias): row for row in rows}
        labelled = self._feedback.tally(canary.model, canary.since_ms)
        sides = ((canary.stable_version, STABLE), (canary.version, canary.alias))
        stable, observed = (_observed(counted.get(side), *labelled.get(side, (0, 0))) for side in sides)
        rules = Rules(**canary.analysis.model_dump(exclude={"rollback"}))
        return Judgement(canary, until_ms, stable, observed, compare(rules, stable, observed))


class CanaryGuard:
    """For one thread. `holder` names this process among all that share the database; `judge` is for others, too."""

    def __init__(
        self,
        editor: ReleaseEditor,
        counts: CountsStore,
        feedback: FeedbackStore,
        leases: Leases,
        metrics: Metrics,
        holder: str,
    ) -> None:
        self.judge = CanaryJudge(editor, counts, feedback)
        self._editor = editor
        self._leases = leases
        self._gauge = metrics.canary_should_roll_back
        self._holder = holder
        self._has_lease = False
        self._unreadable: dict[str, str] = {}  # model to why
        self._worse: dict[Canary, str] = {}  # to why; a verdict is final
        self._told: dict[Canary, str] = {}
        self._shown: set[tuple[str, str, str]] = set()

    def look(self, now_ms: int) -> None:
        """Judge every canary, and act. Raises FeedbackUnavailable.

        Where no alias has a weight the database is not touched.
        """
        canaries = self._find(now_ms)
        self._has_lease = bool(canaries) and self._leases.take(LEASE, self._holder, now_ms, LEASE_SECONDS)
        if canaries and not self._has_lease:
            self._forget_gauges()
            return
        for known in (self._worse, self._told):
            for canary in [one for one in known if one not in canaries and one.model not in self._unreadable]:
                del known[canary]
        shown: dict[tuple[str, str, str], float] = {}
        for _, group in groupby(canaries, key=lambda canary: canary.model):
            shown |= self._look_at(list(group), now_ms)
        self._show(shown)

    def close(self) -> None:
        """Let another process judge at once."""
        if self._has_lease:
            with suppress(FeedbackUnavailable):  # then it runs out by itself
                self._leases.give_back(LEASE, self._holder)

    def _find(self, now_ms: int) -> list[Canary]:
        """Of all models."""
        found: list[Canary] = []
        names = self._editor.list_models()
        self._unreadable = {model: why for model, why in self._unreadable.items() if model in names}
        for model in names:
            try:
                found += self.judge.find(model, now_ms)
                self._unreadable.pop(model, None)
            except HeadwayError as exc:
                if self._unreadable.get(model) != str(exc):
                    logger.error("canaries of %s are not judged: %s", model, exc)
                self._unreadable[model] = str(exc)
        return found

    def _look_at(self, canaries: list[Canary], now_ms: int) -> dict[tuple[str, str, str], float]:
        """The gauges of one model's canaries, after what was done about them."""
        for canary in canaries:
            if canary not in self._worse:
                judgement = self.judge.judge(canary, now_ms)
                if judgement.is_worse:
                    self._worse[canary] = judgement.why
        worse = [canary for canary in canaries if canary in self._worse]
        stays = bool(worse) and not self._roll_back(worse, now_ms)
        return {canary.labels: float(stays and canary in worse) for canary in canaries}

    def _roll_back(self, canaries: list[Canary], now_ms: int) -> bool:
        """Whether they get no traffic any more, or another release than the one that was read is there now."""
        model, digest = canaries[0].model, canaries[0].digest
        if not canaries[0].analysis.rollback:
            self._tell(canaries, "analysis.rollback is off")
            return False
        why = textwrap.shorten("; ".join(self._worse[canary] for canary in canaries), LONGEST_WHY, placeholder=" …")
        change = Withdraw(tuple(canary.alias for canary in canaries))
        at = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC)
        try:
            self._editor.change(model, change, Note(BY, why, at), seen=digest)
        except ReleaseConflict as exc:
            logger.info("canaries of %s are looked at again: %s", model, exc)
            return True
        except HeadwayError as exc:  # read-only, full, busy, broken: the canary still gets traffic
            self._tell(canaries, str(exc))
            return False
        logger.warning("model %s: rolled back, gets no traffic any more: %s", model, why)
        return True

    def _tell(self, canaries: Iterable[Canary], obstacle: str) -> None:
        """What to commit, once for each canary and obstacle."""
        for canary in canaries:
            if self._told.get(canary) != obstacle:
                self._told[canary] = obstacle
                logger.warning(
                    "model %s: %s; it should get no traffic, but %s; commit in %s/release.yaml: aliases.%s.weight: 0",
                    *(canary.model, self._worse[canary], obstacle, canary.model, canary.alias),
                )

    def _show(self, values: Mapping[tuple[str, str, str], float]) -> None:
        """Where a release cannot be read, what was found by the one before it stays."""
        kept = {labels for labels in self._shown - values.keys() if labels[0] in self._unreadable}
        for labels in self._shown - values.keys() - kept:
            self._gauge.labels(*labels).set(0)
        for labels, value in values.items():
            self._gauge.labels(*labels).set(value)
        self._shown = {*values, *kept}

    def _forget_gauges(self) -> None:
        """Once: of several processes the newest value counts, and that is the judge's."""
        for labels in self._shown:
            self._gauge.labels(*labels).set(math.nan)
        self._shown = set()


def _observed(row: RequestCounts | None, labelled: int, wrong: int) -> Observed:
    if row is None:
        return Observed(labelled=labelled, wrong=wrong)
    if len(row.durations) != len(DURATION_BUCKETS) + 1:  # of a Headway with other buckets
        return Observed(row.answered, row.failed, labelled=labelled, wrong=wrong)
    return Observed(row.answered, row.failed, row.durations, labelled, wrong)


def _find_start_ms(release: Release, alias: str) -> int | None:
    """When the versions and weights of `alias` and stable became what they are, as far back as that is known.

    None where this revision was written by hand: without a time, or with one that is still that of the revision before,
    as where `revision` was raised and nothing was added to the history.
    """
    place = _place(release.aliases, alias)
    start: datetime.datetime | None = None
    for aliases, at in _timed_revisions(release):
        if at is None or _place(aliases, alias) != place:
            break
        start = at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)
    return None if start is None else round(start.timestamp() * 1000)


def _timed_revisions(release: Release) -> Iterator[tuple[Mapping[str, AliasEntry], datetime.datetime | None]]:
    """Aliases and time of this revision and those before, newest first."""
    entries: list[tuple[int, Mapping[str, AliasEntry], Changed | HistoryEntry | None]] = [
        (release.revision, release.aliases, release.changed),
        *((entry.revision, entry.aliases, entry) for entry in release.history),
    ]
    before = [*(revision for revision, _, _ in entries[1:]), entries[-1][0] - 1]
    for (revision, aliases, author), one_before in zip(entries, before, strict=True):
        yield aliases, author.at if author is not None and one_before == revision - 1 else None


def _place(aliases: Mapping[str, AliasEntry], alias: str) -> tuple[object, ...]:
    """What the counts of a canary and of stable hang on: their versions, and their shares of the traffic."""
    others = sum(entry.weight or 0 for entry in aliases.values())
    stable = aliases.get(STABLE)
    return aliases.get(alias), stable and stable.version, round(others, 6)


def _next_minute(at_ms: int) -> int:
    """The first that has begun after it: the one that it is in is not a full one."""
    return at_ms - at_ms % MINUTE_MS + MINUTE_MS
