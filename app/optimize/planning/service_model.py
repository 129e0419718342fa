"""How one pod answers at a given load: capacity, response time, and what its admission refuses.

Requests arrive at random and wait for one of a pod's threads; at most so many wait as the queue holds and as the
deadline allows, the rest is refused at once: the M/M/c/K queue (L. Kleinrock, Queueing Systems I, 1975, 3.7), in its
steady state. A refusal costs its bit of CPU, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.tensors import Array

# Fitted to docs/benchmarks/benchmark.md of 2026-11-21, (e) base64 JSON photo: 343 photos/s on two cores; p50 of 7 ms at
# half of that; three refused for each that is answered take 370 µs each (docs/benchmarks/where-the-time-goes.md); 64
# requests may wait in each worker (limits.queue), which has one thread.
SERVICE_MS, THREADS = 5.83, 2
_BASE_SECONDS = 1.1e-3
_REFUSAL_SECONDS = 0.37e-3
_QUEUE_PER_THREAD = 64
_DEADLINE_SECONDS = 10.0
_MARGIN = 1.15  # of the admission, see app/engine/admission.py
_LEAST_SHARE = 0.02  # of a pod's threads that refusals leave, however many come
_LONGEST_QUEUE = 20_000


@dataclass(frozen=True)
class ServiceModel:
    """`service_seconds`: a thread's time for one request. `base_seconds`: what the answer takes outside of a thread."""

    service_seconds: float = SERVICE_MS / 1e3
    threads: int = THREADS
    base_seconds: float = _BASE_SECONDS
    refusal_seconds: float = _REFUSAL_SECONDS
    queue_per_thread: int = _QUEUE_PER_THREAD
    deadline_seconds: float = _DEADLINE_SECONDS

    @property
    def capacity(self) -> float:
        """Requests a second that one pod can answer."""
        return self.threads / self.service_seconds

    @cached_property
    def room(self) -> int:
        """Requests that a pod holds at most, those in its threads included. One is let in where none waits."""
        in_time = int((self.deadline_seconds / _MARGIN - self.service_seconds) * self.capacity)
        return self.threads + max(0, min(self.queue_per_thread * self.threads, in_time, _LONGEST_QUEUE))

    def answer(self, per_second: float) -> Served:
        """One pod at a steady load of so many requests a second, answered and refused ones together."""
        refused, before, free = 0.0, -math.inf, 1.0
        shares = self._shares(0.0)
        while refused - before > 1e-6 * per_second:  # the refusals' own cost: each round adds a few percent of the last
            before, free = refused, max(1 - refused * self.refusal_seconds / self.threads, _LEAST_SHARE)
            shares = self._shares(per_second * self.service_seconds / free)
            refused = per_second * float(shares[-1])
        arrivals = per_second * shares[:-1]
        response_seconds = self.base_seconds + self._in_pod_seconds / free
        # By the floor of what is free more may be asked of the threads than there is.
        busy = min(float(arrivals.sum()) * self.service_seconds + refused * self.refusal_seconds, self.threads)
        return Served(per_second, refused, arrivals, response_seconds, busy / self.threads)

    @cached_property
    def _in_pod_seconds(self) -> Array:
        """Wait and run of a request that finds 0, 1, … others there. Runs take equally long, and the threads share what
        is ahead."""
        waiting = np.maximum(np.arange(self.room) - self.threads + 1, 0)
        return np.asarray(self.service_seconds * (1 + waiting / self.threads))

    def _shares(self, load: float) -> Array:
        """Share of the time with 0, 1, … `room` requests in the pod. `load` in threads."""
        if load <= 0:
            return np.asarray(np.eye(1, self.room + 1)[0])
        logs = self._log_weights + np.arange(self.room + 1) * math.log(load)
        weights = np.exp(logs - logs.max())
        return np.asarray(weights / weights.sum())

    @cached_property
    def _log_weights(self) -> Array:
        rates = np.minimum(np.arange(1, self.room + 1), self.threads)
        return np.asarray(np.concatenate([[0.0], -np.cumsum(np.log(rates))]))


@dataclass(frozen=True, slots=True)
class Served:
    """Of one pod, a second: `offered` and `refused` requests; `arrivals` are the answered ones by how many others they
    found, with the `response_seconds` of each group, which rise. `cpu_share` of the threads."""

    offered: float
    refused: float
    arrivals: Array
    response_seconds: Array
    cpu_share: float

    @property
    def total_seconds(self) -> float:
        """Response times of a second's answers, added up."""
        return float(self.arrivals @ self.response_seconds)


def weighted_quantile(values: Array, weights: Array, share: float) -> float:
    """The least of the rising `values` that holds, with those below, at least `share` of the weight; NaN without."""
    sums = np.cumsum(weights)
    if not len(sums) or sums[-1] <= 0:
        return math.nan
    place = int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12)))
    return float(values[min(place, len(values) - 1)])
