"""The memory that the master and its workers share: one record for each worker slot, the phase of the whole.

Made before the first fork, anonymous, so it ends with the last process. Each word has one writer at a time.
"""

from __future__ import annotations

import mmap
from enum import IntEnum

from app.server.options import count_slots

# The load of a slot in which nobody accepts: more than any real one, so that no neighbour waits for it.
NOT_ACCEPTING = 1 << 62
_WORD = 8
_REPORT_BYTES = 4096


class Phase(IntEnum):
    """How far the server as a whole is on its way out. It only ever rises."""

    SERVING = 0
    DRAINING = 1  # still accepting, readiness says 503, answers say `Connection: close`
    LEAVING = 2  # the window is over: no more connections, what was accepted is answered
    STOPPING = 3  # end now: a second for what is running, then it is cancelled


class Slots:
    """Worker slots 0 … workers - 1, and as many spare ones and two more."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.total = count_slots(workers)
        words = 1 + 2 * self.total
        self._memory = memoryview(mmap.mmap(-1, words * _WORD + _REPORT_BYTES))
        cells = self._memory[: words * _WORD].cast("q")
        self._phase = cells[:1]
        self._ages = cells[1 : 1 + self.total]
        self._loads = cells[1 + self.total :]
        self._report = self._memory[words * _WORD :]
        for slot in range(self.total):
            self._loads[slot] = NOT_ACCEPTING

    # --- master

    def list_free(self) -> list[int]:
        return [slot for slot in range(self.total) if self._ages[slot] == 0]

    def claim(self, slot: int, age: int) -> None:
        """Give a free slot to the worker of that age (gunicorn's number, from 1)."""
        self._loads[slot] = NOT_ACCEPTING
        self._ages[slot] = age

    def release(self, slot: int) -> None:
        """The slot's worker is dead: its connections are gone, and nobody waits for it any more."""
        self._loads[slot] = NOT_ACCEPTING
        self._ages[slot] = 0

    def get_age(self, slot: int) -> int:
        return self._ages[slot]

    def is_accepting(self, slot: int) -> bool:
        return self._loads[slot] != NOT_ACCEPTING

    def advance(self, phase: Phase) -> None:
        if phase > self._phase[0]:
            self._phase[0] = phase

    def read_report(self) -> str:
        """The last thing a worker reported with `report`; empty if none did."""
        size = int.from_bytes(self._report[:2], "little")
        return bytes(self._report[2 : 2 + size]).decode(errors="replace")

    # --- workers

    @property
    def phase(self) -> int:
        return self._phase[0]

    def publish_load(self, slot: int, connections: int) -> None:
        """This slot's worker accepts, and has so many open connections."""
        self._loads[slot] = connections

    def withdraw(self, slot: int) -> None:
        """This slot's worker accepts no more."""
        self._loads[slot] = NOT_ACCEPTING

    def share(self, slot: int, waiting: int) -> int:
        """How many of `waiting` connections are this slot's, if afterwards all are to have as many as can be."""
        level, total = 0, waiting
        for number, load in enumerate(sorted(self.count_connections()), start=1):
            if number > 1 and total <= load * (number - 1):
                break  # all go to those that have fewer
            total += load
            level = -(-total // number)
        return min(waiting, max(0, level - self._loads[slot]))

    def count_connections(self) -> list[int]:
        """The open connections of each accepting worker."""
        return [load for load in self._loads if load != NOT_ACCEPTING]

    def report(self, text: str) -> None:
        """Leave a sentence for the master, such as why this worker cannot start."""
        data = text.encode()[: _REPORT_BYTES - 2]
        self._report[2 : 2 + len(data)] = data
        self._report[:2] = len(data).to_bytes(2, "little")


class DrainFlag:
    """Whether the whole server is on its way out; asked by readiness on each probe."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def is_set(self) -> bool:
        return self._slots.phase != Phase.SERVING
