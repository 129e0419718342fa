"""Contenders for one job, timed in turn: medians of CPU time, which a busy neighbour disturbs least."""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

ROUNDS = 15
# Each round of a contender takes about so long.
ROUND_SECONDS = 0.02

Contenders = dict[str, Callable[[Any], Any]]


@cache
def optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: left out")
        return None


def cpu_microseconds(contenders: Contenders, data: Any) -> dict[str, float]:
    """CPU time of one call of each, all of this process's threads together: the median over interleaved rounds."""
    times: dict[str, list[float]] = defaultdict(list)
    repeats = {name: _repeats(work, data) for name, work in contenders.items()}
    for _ in range(ROUNDS):
        for name, work in contenders.items():
            times[name].append(_cpu_seconds(work, data, repeats[name]) * 1e6)
    return {name: statistics.median(found) for name, found in times.items()}


def cold_microseconds(contenders: Contenders, data: Any, before: Callable[[], Any]) -> dict[str, float]:
    """The same with `before` ahead of each call, to drive out of the processor's caches what the call needs."""
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(10 * ROUNDS):
        for name, work in contenders.items():
            before()
            times[name].append(_cpu_seconds(work, data, 1) * 1e6)
    return {name: statistics.median(found) for name, found in times.items()}


def _repeats(work: Callable[[Any], Any], data: Any) -> int:
    once = min(_cpu_seconds(work, data, 3) for _ in range(3))
    return max(3, math.ceil(ROUND_SECONDS / max(once, 1e-7)))


def _cpu_seconds(work: Callable[[Any], Any], data: Any, repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        work(data)
    return (time.process_time() - started) / repeats
