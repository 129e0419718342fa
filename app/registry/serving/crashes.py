"""Which version is to blame for the crashes of workers, and when that is often enough. Holds no clock."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

# So many crashes of one version, within the window, and it is not run again.
CRASH_LIMIT = 3
# A rare crash costs less than the model: a worker is replaced within a second.
WINDOW_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class InFlight:
    """What one thread was running or loading. `thread` is its `threading.get_ident()`."""

    label: str  # name@version
    thread: int
    is_loading: bool


@dataclass(frozen=True, slots=True)
class _Crash:
    suspects: frozenset[str]
    expires_at: float


class CrashTally:
    """The crashes so far. Times are of any one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._crashes: list[_Crash] = []

    def record(self, suspects: Collection[InFlight], now: float) -> str | None:
        """One worker crashed with one of these in flight; returns the label that has now reached the limit, if one has.

        Suspects share a crash: the guilty one is among them every time, so no innocent can be ahead of it. A crash
        while loading never expires: that worker had served nobody, and the next may take an hour to come so far.
        """
        labels = frozenset(suspect.label for suspect in suspects)
        if not labels:
            return None
        loading = {suspect.label for suspect in suspects if suspect.is_loading}  # its trial runs are suspects, too
        lasts_for = float("inf") if labels == loading else WINDOW_SECONDS
        self._crashes = [crash for crash in self._crashes if crash.expires_at > now]
        self._crashes.append(_Crash(labels, now + lasts_for))
        worst = max(sorted(labels), key=self.count)
        if self.count(worst) < CRASH_LIMIT:
            return None
        # These are explained now; they tell nothing about the others that were in flight.
        self._crashes = [crash for crash in self._crashes if worst not in crash.suspects]
        return worst

    def count(self, label: str) -> Fraction:
        """This version's share of the crashes that were not expired at the last one."""
        shares = (Fraction(1, len(crash.suspects)) for crash in self._crashes if label in crash.suspects)
        return sum(shares, Fraction(0))


def find_suspects(in_flight: Collection[InFlight], thread: int | None) -> list[InFlight]:
    """What may have crashed. Where the thread is known: what it ran, so nothing if it ran none; else whatever ran."""
    if thread is None:
        return list(in_flight)
    return [entry for entry in in_flight if entry.thread == thread]
