"""Runs a share of the requests on another version too, when this worker has nothing else to do, and compares.

It makes a caller wait for one run that has begun at the most: one request at a time, from a queue of a few, only while
no live request waits or runs. What finds no room is dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from app.engine.call import Answer, Call
from app.errors import HeadwayError
from app.metrics import Metrics, ShadowMetrics
from app.registry.servables.servable import Item, Servable
from app.registry.serving.lifecycle import Resolved
from app.tensors import Tensors

logger = logging.getLogger(__name__)

QUEUE_LENGTH = 8
_LOOK_SECONDS = 0.01
# Outputs that differ by less, relative to the largest, are the same: kernels add up in different orders.
_SAME = 1e-3

PredictNow = Callable[[Call, Resolved], Answer]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`agrees`: every item has the same top-1 label (a regression or tensor: the same within 0.1 %).

    `difference`: the mean distance of the confidences in the first label, or of the values.
    """

    agrees: bool
    difference: float


@dataclass(frozen=True, slots=True)
class _Copy:
    servable: Servable
    call: Call
    answer: Answer


class Shadow:
    """`offer` is called in the event loop and returns at once; `is_idle` says whether no live request waits or runs."""

    def __init__(self, predict_now: PredictNow, is_idle: Callable[[], bool], metrics: Metrics) -> None:
        self._predict_now = predict_now
        self._is_idle = is_idle
        self._metrics = metrics
        self._copies: queue.Queue[_Copy] = queue.Queue(QUEUE_LENGTH)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def offer(self, servable: Servable, share: float, call: Call, answer: Answer) -> None:
        """Compare the answer with that of `servable`, for `share` percent of the requests."""
        if random.random() * 100 >= share or (answer.model, answer.version) == (servable.name, servable.version):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
            self._thread.start()
        try:
            self._copies.put_nowait(_Copy(servable, replace(call, on_admitted=None, deadline=float("inf")), answer))
        except queue.Full:
            self._bound(servable, answer).dropped.inc()

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                copy = self._copies.get(timeout=0.5)
            except queue.Empty:
                continue
            while not self._is_idle() and not self._closing.is_set():
                time.sleep(_LOOK_SECONDS)
            if not self._closing.is_set():
                self._compare(copy)
            del copy  # it keeps a version loaded

    def _compare(self, copy: _Copy) -> None:
        bound = self._bound(copy.servable, copy.answer)
        try:
            answer = self._predict_now(copy.call, Resolved(copy.servable, None))
            comparison = compare(copy.answer, answer)
        except HeadwayError as exc:
            logger.info("%s@%s failed as a shadow: %s", copy.servable.name, copy.servable.version, exc)
            bound.failed.inc()
            return
        except Exception:
            logger.exception("%s@%s failed as a shadow", copy.servable.name, copy.servable.version)
            bound.failed.inc()
            return
        (bound.agreed if comparison.agrees else bound.disagreed).inc()
        bound.difference.observe(comparison.difference)

    def _bound(self, servable: Servable, answer: Answer) -> ShadowMetrics:
        return self._metrics.shadow(servable.name, answer.version, servable.version)


def compare(live: Answer, shadow: Answer) -> Comparison:
    """Raises ValueError where the two are not of one form."""
    if live.items is None or shadow.items is None:
        if live.tensors is None or shadow.tensors is None:
            raise ValueError("one of the answers has items, the other tensors")
        difference = _distance(live.tensors, shadow.tensors)
        return Comparison(difference <= _SAME, difference)
    pairs = list(zip(live.items, shadow.items, strict=True))
    agrees, differences = [], [0.0]
    for one, other in pairs:
        if not isinstance(one, Item) or not isinstance(other, Item):
            agrees.append(type(one) is type(other))
        elif one.value is not None and other.value is not None:
            distance = abs(one.value - other.value)
            differences.append(distance)
            agrees.append(distance <= _SAME * max(abs(one.value), 1e-12))
        elif one.predictions and other.predictions:
            first, second = one.predictions[0], other.predictions[0]
            agrees.append(first.label == second.label)
            differences.append(abs(_confidence(one, first.label) - _confidence(other, first.label)))
    return Comparison(all(agrees), sum(differences) / max(1, len(pairs)))


def _confidence(item: Item, label: str) -> float:
    return next((found.confidence or 0.0 for found in item.predictions if found.label == label), 0.0)


def _distance(one: Tensors, other: Tensors) -> float:
    """The largest distance of two values, relative to the largest value of its output; infinite for other shapes."""
    largest = 0.0
    for name, array in one.items():
        if name not in other or other[name].shape != array.shape:
            return float("inf")
        if array.dtype.kind not in "fiu":
            largest = max(largest, 0.0 if np.array_equal(array, other[name]) else float("inf"))
        elif array.size:
            scale = max(float(np.abs(array.astype(np.float64)).max()), 1e-12)
            distance = np.abs(array.astype(np.float64) - other[name].astype(np.float64)).max()
            largest = max(largest, float(distance) / scale)
    return largest
