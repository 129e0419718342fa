"""Executors of our own for the batcher: what they run, how long it takes and whether it ends is up to the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.engine.lane import Work
from app.runtimes.base import Cancellation

PATIENCE_SECONDS = 30.0


@dataclass(eq=False)
class Functions:
    """The content of a work is a function; it is called with the seconds that the work waited."""

    model: str = "m"
    queue_limit: int = 99
    max_rows: int = 1
    max_wait_seconds: float = 0.0
    max_runs: int | None = None
    max_run_seconds: float = PATIENCE_SECONDS
    guess_seconds: float = 0.0
    is_steady: bool = True
    runs: list[list[Any]] = field(default_factory=list)

    def run(self, works: Sequence[Work], waited: Sequence[float], _: Cancellation) -> list[Any]:
        self.runs.append([work.signature for work in works])
        return [_call(work.content, seconds) for work, seconds in zip(works, waited, strict=True)]


def _call(function: Callable[[float], Any], waited: float) -> Any:
    try:
        return function(waited)
    except BaseException as exc:
        return exc


class Gate:
    """A work that holds its thread until it is opened."""

    def __init__(self) -> None:
        self.entered, self._opened = threading.Event(), threading.Event()

    def __call__(self, _waited: float) -> str:
        self.entered.set()
        assert self._opened.wait(PATIENCE_SECONDS)
        return "gate"

    def open(self) -> None:
        self._opened.set()


@dataclass(eq=False)
class Endless(Functions):
    """A run goes on until it is told to end, or, deaf, until the gate opens."""

    model: str = "endless"
    max_run_seconds: float = 0.2
    is_deaf: bool = False
    gate: Gate = field(default_factory=Gate)
    cancellations: list[Cancellation] = field(default_factory=list)

    def run(self, works: Sequence[Work], _: Sequence[float], cancellation: Cancellation) -> list[Any]:
        self.cancellations.append(cancellation)
        self.gate.entered.set()
        if not self.is_deaf:
            cancellation.on_cancel(self.gate.open)
        self.gate(0.0)
        return [RuntimeError("ended")] * len(works)


def sleeper(seconds: float) -> Callable[[float], float]:
    def sleep(_: float) -> float:
        time.sleep(seconds)
        return seconds

    return sleep


def spinner(seconds: float) -> Callable[[float], None]:
    """Takes CPU time."""

    def spin(_: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    return spin
