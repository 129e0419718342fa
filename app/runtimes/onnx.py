"""ONNX Runtime on the CPU.

The package is imported with this module, before workers are forked: they share its code. Where it is missing, as in an
image for LiteRT alone, models that need it fail to load, and the others serve.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import InvalidTensor, RunFailed, RuntimeLoadError
from app.runtimes.base import Cancellation
from app.runtimes.packed import SUFFIX, read_model_file
from app.tensors import Array, Tensors, TensorSpec, object_array

# Builds of 2026 make an id of the machine, keep it in the home directory and report to their maker, from a thread of
# their own. A model server does so only where its operator says it should.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort  # type: ignore[import-untyped]
except ModuleNotFoundError:
    ort = None

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxRuntime:
    """One `InferenceSession`. `run` is thread-safe, as ONNX Runtime's own is."""

    def __init__(self, path: Path, threads: int) -> None:
        """Load `path` with `threads` intra-op threads. Raises RuntimeLoadError with ONNX Runtime's own words."""
        self._session: Any = _create_session(path, threads)
        self._inputs = tuple(_spec(arg, path) for arg in self._session.get_inputs())
        self._outputs = tuple(_spec(arg, path) for arg in self._session.get_outputs())
        self._string_inputs = frozenset(spec.name for spec in self._inputs if spec.datatype == "BYTES")
        self._output_names = [spec.name for spec in self._outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(
        self, tensors: Tensors, outputs: Sequence[str] | None = None, cancellation: Cancellation | None = None
    ) -> Tensors:
        names = list(outputs) if outputs is not None else self._output_names
        feeds: Tensors = tensors
        if self._string_inputs:
            feeds = {
                name: _decode_strings(name, array) if name in self._string_inputs else array
                for name, array in tensors.items()
            }
        options = None
        if cancellation is not None:
            options = ort.RunOptions()
            # Ends the run between two nodes; the session stays usable.
            cancellation.on_cancel(partial(setattr, options, "terminate", True))
        try:
            results = self._session.run(names, feeds, options)
        except Exception as exc:  # ONNX Runtime raises a class of its own for each status
            raise RunFailed(f"the model failed on this input: {_one_line(exc)}") from exc
        return {name: _as_array(result) for name, result in zip(names, results, strict=True)}

    def close(self) -> None:
        self._session = None


def _create_session(path: Path, threads: int) -> Any:
    if ort is None:
        raise RuntimeLoadError(f"{path}: needs ONNX Runtime, which is not installed: pip install onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # A spinning thread pool burns the core that the next request's decoding needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = read_model_file(path) if path.suffix == SUFFIX else str(path)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # as above: no common base class below Exception
        raise RuntimeLoadError(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {_one_line(exc)}") from exc


def _spec(arg: Any, path: Path) -> TensorSpec:
    datatype = _DATATYPES.get(arg.type)
    if datatype is None:
        raise RuntimeLoadError(f"{path}: {arg.name!r} is of type {arg.type}; only tensors can be served")
    # A free dimension is a name or None; a scalar has no dimensions.
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in arg.shape)
    return TensorSpec(arg.name, datatype, shape)


def _decode_strings(name: str, array: Array) -> Array:
    try:
        texts = [value.decode() if isinstance(value, bytes) else value for value in array.flat]
    except UnicodeDecodeError as exc:
        raise InvalidTensor(
            f"input {name!r} has a string that is not UTF-8 ({exc.reason} at byte {exc.start}); ONNX takes no others"
        ) from exc
    return object_array(texts, array.shape)


def _as_array(result: Any) -> Array:
    array = np.asarray(result)
    if array.dtype == object:
        return object_array((v.encode() if isinstance(v, str) else v for v in array.flat), array.shape)
    return array


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:500]
