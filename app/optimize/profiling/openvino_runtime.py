"""OpenVINO on the CPU, to measure what it makes of an ONNX file. Nothing is served with it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from app.errors import InvalidContent, RunFailed, RuntimeLoadError
from app.runtimes.base import Cancellation
from app.runtimes.packed import SUFFIX, read_model_file
from app.tensors import Tensors, TensorSpec

_TELEMETRY = "openvino_telemetry"
_DATATYPES = {
    "boolean": "BOOL", "i8": "INT8", "i16": "INT16", "i32": "INT32", "i64": "INT64",
    "u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "u64": "UINT64",
    "f16": "FP16", "f32": "FP32", "f64": "FP64",
}  # fmt: skip


def import_openvino() -> ModuleType:
    """The package, kept from reporting to its maker. Raises InvalidContent where it is not installed.

    `import openvino` of 2026 makes an id in the home directory and sends an event from a process that it forks, unless
    the user has said no before. Without openvino_telemetry it takes a stand-in of its own, which does nothing.
    """
    if "openvino" not in sys.modules and _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # importing it now fails as if it were not there
    try:
        import openvino
    except ImportError as exc:
        raise InvalidContent(f"needs OpenVINO ({exc}): pip install 'headway[openvino]'") from exc
    module: ModuleType = openvino
    return module


class OpenvinoRuntime:
    """A `Runtime`: one compiled model, with as many requests as threads have run at once."""

    def __init__(self, path: Path, threads: int, inputs: Collection[str] = (), outputs: Collection[str] = ()) -> None:
        """Compile `path` for `threads` threads. Raises RuntimeLoadError with OpenVINO's own words.

        A tensor may have several names there: of these that of `inputs` and `outputs` is taken.
        """
        openvino = import_openvino()
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # On CPUs with AMX it would compute in bfloat16: another model, not a faster runtime.
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            # From a path, weights that lie beside the file are found.
            source = read_model_file(path) if path.suffix == SUFFIX else path
            self._model: Any = core.compile_model(core.read_model(source), "CPU", config)
        except Exception as exc:  # its own classes have no common base below Exception
            raise RuntimeLoadError(f"{path}: OpenVINO {openvino.__version__} cannot load it: {_one_line(exc)}") from exc
        self._inputs = tuple(_spec(port, inputs, path) for port in self._model.inputs)
        self._outputs = tuple(_spec(port, outputs, path) for port in self._model.outputs)
        self._feeds = {spec.name: place for place, spec in enumerate(self._inputs)}
        self._places = {spec.name: place for place, spec in enumerate(self._outputs)}
        self._idle: list[Any] = []

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(
        self, tensors: Tensors, outputs: Sequence[str] | None = None, cancellation: Cancellation | None = None
    ) -> Tensors:
        if cancellation is not None and cancellation.is_cancelled:
            raise RunFailed("the run was ended before it began")
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            feeds = {self._feeds[name]: np.ascontiguousarray(array) for name, array in tensors.items()}
            request.infer(feeds, share_inputs=True)
            # Copies: the next run of this request writes over what it gave.
            return {
                name: np.array(request.get_output_tensor(self._places[name]).data)
                for name in (self._places if outputs is None else outputs)
            }
        except Exception as exc:  # as above
            raise RunFailed(f"the model failed on this input: {_one_line(exc)}") from exc
        finally:
            self._idle.append(request)

    def close(self) -> None:
        self._idle.clear()
        self._model = None


def _spec(port: Any, wanted: Collection[str], path: Path) -> TensorSpec:
    names = sorted(port.names)
    name = next((name for name in names if name in wanted), names[0])
    element = port.element_type.get_type_name()
    datatype = _DATATYPES.get(element)
    if datatype is None:
        raise RuntimeLoadError(f"{path}: {name!r} is of OpenVINO's type {element}, which is not measured here")
    shape = tuple(size.get_length() if size.is_static else -1 for size in port.partial_shape)
    return TensorSpec(name, datatype, shape)


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:500]
