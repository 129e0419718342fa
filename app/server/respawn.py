"""When a dead worker may be replaced: at once, but with a growing pause where workers keep dying young."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
# A worker that had accepted was able to serve: it was killed, or one request in many ends it. Its place is worth
# the attempt.
LONGEST_PAUSE_AFTER_SERVING_SECONDS = 0.5
# A worker that lived so long did not die of its start.
SETTLED_SECONDS = 60.0


@dataclass
class Vacancy:
    """A slot whose worker died unasked. `due_at` is None while a worker is in it again."""

    young_deaths: int = 0
    due_at: float | None = None


class RespawnPlan:
    """The slots that wait for a replacement. Times are of any one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._vacancies: dict[int, Vacancy] = {}

    def record_death(
        self, slot: int, lived_seconds: float, is_failure: bool, now: float, *, has_served: bool = False
    ) -> float:
        """Returns the pause before the slot is due. `has_served`: the worker had begun to accept."""
        vacancy = self._vacancies.setdefault(slot, Vacancy())
        if lived_seconds >= SETTLED_SECONDS:
            vacancy.young_deaths = 0
        pause = 0.0
        if is_failure and lived_seconds < SETTLED_SECONDS:
            longest = LONGEST_PAUSE_AFTER_SERVING_SECONDS if has_served else LONGEST_PAUSE_SECONDS
            pause = min(longest, FIRST_PAUSE_SECONDS * 2 ** min(vacancy.young_deaths, 20))
            vacancy.young_deaths += 1
        vacancy.due_at = now + pause
        return pause

    def list_waiting(self) -> list[int]:
        """Every slot that waits for a worker, due or not, the longest due first."""
        waiting = [(each.due_at, slot) for slot, each in self._vacancies.items() if each.due_at is not None]
        return [slot for _, slot in sorted(waiting)]

    def list_due(self, now: float) -> list[int]:
        return [slot for slot in self.list_waiting() if (self._vacancies[slot].due_at or 0.0) <= now]

    def fill(self, slot: int) -> None:
        """A worker is in that slot again."""
        if slot in self._vacancies:
            self._vacancies[slot].due_at = None

    def forget_waiting(self) -> None:
        """All the workers wanted are there: no slot waits any more."""
        for vacancy in self._vacancies.values():
            vacancy.due_at = None
