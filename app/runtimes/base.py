"""The interface of a backend. What a new runtime must hold stands in the docstrings of `Runtime`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from app.tensors import Tensors, TensorSpec


class Cancellation:
    """How one thread ends the run of another. `cancel` may be called from any thread, at any time, more than once."""

    __slots__ = ("_end_run", "_lock", "is_cancelled")

    def __init__(self) -> None:
        self.is_cancelled = False
        self._end_run: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def on_cancel(self, end_run: Callable[[], None]) -> None:
        """Called by a runtime before it runs: `end_run` makes the run return soon, and does no harm after it."""
        with self._lock:
            self._end_run = end_run
            if self.is_cancelled:
                end_run()

    def cancel(self) -> None:
        with self._lock:
            self.is_cancelled = True
            if self._end_run is not None:
                self._end_run()


class Runtime(Protocol):
    """A loaded model. `run` may be called from several threads at once; `close` once, when no run is left."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(
        self, tensors: Tensors, outputs: Sequence[str] | None = None, cancellation: Cancellation | None = None
    ) -> Tensors:
        """Run once. Keys of `tensors` are input names; arrays have the declared datatype (BYTES: objects of bytes).

        Returns the named outputs, or all. Raises RunFailed, also for a run that `cancellation` has ended, and
        InvalidTensor for a value that the backend has no form for. A backend that cannot end a run ignores it; a
        worker with a run that does not end is replaced.
        """
        ...

    def close(self) -> None:
        """Give the memory back. Nothing may be called afterwards."""
        ...
