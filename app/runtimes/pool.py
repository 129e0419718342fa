"""Several instances of one model, each with one run at a time."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from app.runtimes.base import Cancellation, Runtime
from app.tensors import Tensors, TensorSpec


class RuntimePool:
    """A `Runtime` of runtimes that share nothing. `run` waits for a free one."""

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._runtimes = tuple(runtimes)
        self._free: queue.SimpleQueue[Runtime] = queue.SimpleQueue()
        for runtime in runtimes:
            self._free.put(runtime)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._runtimes[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._runtimes[0].outputs

    def run(
        self, tensors: Tensors, outputs: Sequence[str] | None = None, cancellation: Cancellation | None = None
    ) -> Tensors:
        runtime = self._free.get()
        try:
            return runtime.run(tensors, outputs, cancellation)
        finally:
            self._free.put(runtime)

    def close(self) -> None:
        for runtime in self._runtimes:
            runtime.close()
