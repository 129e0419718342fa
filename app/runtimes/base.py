"""The interface of a backend. What a new runtime must hold stands in the docstrings of `Runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from app.tensors import Tensors, TensorSpec


class Runtime(Protocol):
    """A loaded model. `run` may be called from several threads at once; `close` once, when no run is left."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, tensors: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run once. Keys of `tensors` are input names; arrays have the declared datatype (BYTES: objects of bytes).

        Returns the named outputs, or all. Raises RunFailed.
        """
        ...

    def close(self) -> None:
        """Give the memory back. Nothing may be called afterwards."""
        ...
