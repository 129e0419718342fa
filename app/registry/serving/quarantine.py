"""Which versions crash workers, known to all processes of a server: anonymous memory made before the first fork.

A worker marks in it what each of its threads runs; the marks outlive its crash. The master reads them, counts,
and puts a version that crashed workers too often on the list that every worker looks at. Layout:

    1 byte          the length of the list; it only ever grows
    255 labels      the list
    for each worker slot, for each of its threads twice (running, loading):
        8 bytes     the thread's identifier
        1 label     what it runs or loads; all zero while it does not
"""

from __future__ import annotations

import logging
import mmap
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident

from app.registry.serving.crashes import CRASH_LIMIT, CrashTally, InFlight, find_suspects

# SIGKILL and SIGTERM are an operator's or the out-of-memory killer's: they hit whatever is busiest.
_CRASH_SIGNALS = frozenset(
    getattr(signal, name).value
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
    if hasattr(signal, name)
)
_LONGEST_LIST = 255
# A name has at most 63 characters, a version 64.
_LABEL_BYTES = 128
_IDLE = bytes(_LABEL_BYTES)
_THREAD_BYTES = 8
_ENTRY_BYTES = _THREAD_BYTES + _LABEL_BYTES
_TABLES_AT = 1 + _LONGEST_LIST * _LABEL_BYTES
# Beside the inference threads: the event loop's and its helpers.
_OTHER_THREADS = 64

logger = logging.getLogger(__name__)


def describe_quarantine(label: str) -> str:
    """What a caller of a quarantined version is told."""
    return (
        f"{label} crashed a worker {CRASH_LIMIT} times and is quarantined; "
        "restart the server, or release another version"
    )


class Quarantine:
    """The master's part. `slots` and `threads` are the most that a server, and a worker, can have."""

    def __init__(self, slots: int, threads: int) -> None:
        self._rows = threads + _OTHER_THREADS
        self._table_bytes = 2 * self._rows * _ENTRY_BYTES
        # One entry more than there are tables: what finds no place in its table is written there, and read by nobody.
        self._memory = mmap.mmap(-1, _TABLES_AT + slots * self._table_bytes + _ENTRY_BYTES)
        self._tally = CrashTally()

    def join(self, slot: int) -> WorkerQuarantine:
        """The part of the worker in that slot; called in the worker."""
        return WorkerQuarantine(self._memory, _TABLES_AT + slot * self._table_bytes, self._rows)

    def record_exit(self, slot: int, signal_number: int | None, thread: int | None, now: float) -> None:
        """A worker has ended, by that signal if by one. `thread` is the one that crashed, where that is known."""
        in_flight = self._take(slot)
        if signal_number not in _CRASH_SIGNALS:
            return
        suspects = find_suspects(in_flight, thread)
        known = _read_list(self._memory)
        if any(entry.label in known for entry in suspects):
            return  # a run that had begun before its version was quarantined explains it
        guilty = self._tally.record(suspects, now)
        for label in sorted({entry.label for entry in suspects} - {guilty}):
            logger.error(
                "%s was in flight as worker %d crashed: %.3g of %d times, then it is quarantined",
                label,
                slot,
                self._tally.count(label),
                CRASH_LIMIT,
            )
        if guilty is not None:
            self._add(guilty)

    def _add(self, label: str) -> None:
        length = self._memory[0]
        if length == _LONGEST_LIST:
            logger.error("%s crashed workers %d times, but the quarantine is full", label, CRASH_LIMIT)
            return
        start = 1 + length * _LABEL_BYTES
        self._memory[start : start + _LABEL_BYTES] = _pad(label)
        self._memory[0] = length + 1  # last: a worker that sees it finds the label
        logger.critical(
            "%s crashed a worker %d times and is quarantined: no worker runs it until the server is restarted; "
            "the other models go on",
            label,
            CRASH_LIMIT,
        )

    def _take(self, slot: int) -> list[InFlight]:
        """What the slot's worker had in flight; the table is clean for the next."""
        start = _TABLES_AT + slot * self._table_bytes
        table = self._memory[start : start + self._table_bytes]
        self._memory[start : start + self._table_bytes] = bytes(self._table_bytes)
        found = []
        for row in range(2 * self._rows):
            entry = table[row * _ENTRY_BYTES : (row + 1) * _ENTRY_BYTES]
            label = entry[_THREAD_BYTES:].rstrip(b"\0").decode(errors="replace")
            if label:
                thread = int.from_bytes(entry[:_THREAD_BYTES], "little")
                found.append(InFlight(label, thread, is_loading=row >= self._rows))
        return found


class WorkerQuarantine:
    """One worker's part. Thread-safe."""

    def __init__(self, memory: mmap.mmap, table: int, rows: int) -> None:
        self._memory = memory
        self._running = _Table(memory, table, rows)
        self._loading = _Table(memory, table + rows * _ENTRY_BYTES, rows)

    @property
    def length(self) -> int:
        """How many versions are quarantined; asked for each request, 0.04 µs."""
        return self._memory[0]

    def list_labels(self) -> list[str]:
        """The quarantined versions as name@version, oldest first."""
        return _read_list(self._memory)

    def marker(self, name: str, version: str) -> Marker:
        """For the runs of one version."""
        return Marker(self._memory, self._running, f"{name}@{version}")

    @contextmanager
    def loading(self, name: str, version: str) -> Iterator[None]:
        """While this thread loads and tests a version; runs of it in there are marked for themselves."""
        marker = Marker(self._memory, self._loading, f"{name}@{version}")
        place = marker.enter()
        try:
            yield
        finally:
            marker.leave(place)


class Marker:
    """Marks that this thread runs a version: `place = enter()`, and `leave(place)` whatever happens; 0.15 µs together.

    Any number of threads may use one at once; one thread is in one run at a time.
    """

    __slots__ = ("_label", "_memory", "_places", "_take_place")

    def __init__(self, memory: mmap.mmap, table: _Table, label: str) -> None:
        self._memory = memory
        self._label = _pad(label)
        self._places = table.places
        self._take_place: Callable[[], slice] = table.take_place

    def enter(self) -> slice:
        place = self._places.get(get_ident()) or self._take_place()
        self._memory[place] = self._label
        return place

    def leave(self, place: slice) -> None:
        self._memory[place] = _IDLE


class _Table:
    """Where each thread of this process writes; one with the identifier of an ended one has its place, too."""

    def __init__(self, memory: mmap.mmap, start: int, rows: int) -> None:
        self.places: dict[int, slice] = {}
        self._memory = memory
        self._start = start
        self._rows = rows
        self._lock = threading.Lock()

    def take_place(self) -> slice:
        """The place of this thread, its first time."""
        with self._lock:
            if len(self.places) == self._rows:
                end = len(self._memory)
                return slice(end - _LABEL_BYTES, end)
            start = self._start + len(self.places) * _ENTRY_BYTES
            label = start + _THREAD_BYTES
            self._memory[start:label] = get_ident().to_bytes(_THREAD_BYTES, "little")
            self.places[get_ident()] = place = slice(label, label + _LABEL_BYTES)
            return place


def _pad(label: str) -> bytes:
    return label.encode()[:_LABEL_BYTES].ljust(_LABEL_BYTES, b"\0")


def _read_list(memory: mmap.mmap) -> list[str]:
    starts = (1 + number * _LABEL_BYTES for number in range(memory[0]))
    labels = (memory[start : start + _LABEL_BYTES].rstrip(b"\0").decode(errors="replace") for start in starts)
    return [label for label in labels if label]
