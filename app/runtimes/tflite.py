"""LiteRT, formerly TensorFlow Lite, on the CPU with XNNPACK.

The package is imported where the first model is loaded (10 MB, 12 ms): a server of ONNX models never pays for it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import RunFailed, RuntimeLoadError
from app.runtimes.base import Cancellation
from app.runtimes.packed import read_model_file
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec, shape_matches

_MARK = b"TFL3"
_FIRST_SIGNATURE = "serving_default"
_DATATYPES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
_QUANTIZED = frozenset({"INT8", "UINT8", "INT16"})
_BANNER = b"INFO: Created TensorFlow Lite XNNPACK delegate"


class TfliteRuntime:
    """As many interpreters of one file as threads have run at once, for an interpreter has one run at a time.

    All of them read the same bytes, which are those that were loaded even where the file has been replaced since. One
    more costs its packed weights and tensors: 9 MB for EfficientNet-Lite0 in 8 bits. LiteRT cannot end a run that has
    begun.
    """

    def __init__(
        self, path: Path, threads: int, float_inputs: Collection[str] = (), float_outputs: Collection[str] = ()
    ) -> None:
        """Load `path` with `threads` threads a run. Raises RuntimeLoadError with LiteRT's own words.

        Quantised tensors that `float_inputs` and `float_outputs` name are FP32 to the caller, by their scale and zero
        point; the others are the integers that the file holds.
        """
        self._open: Callable[[], _Network] = partial(_Network, path, _read(path), threads)
        network = self._open()
        self._inputs = {name: _port(name, found, float_inputs, path) for name, found in network.inputs.items()}
        self._outputs = {name: _port(name, found, float_outputs, path) for name, found in network.outputs.items()}
        self._idle = [network]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._inputs.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._outputs.values())

    def run(
        self, tensors: Tensors, outputs: Sequence[str] | None = None, cancellation: Cancellation | None = None
    ) -> Tensors:
        names = list(self._outputs if outputs is None else outputs)
        if unknown := set(names) - self._outputs.keys():
            raise RunFailed(f"the model has no output {', '.join(sorted(unknown))}")
        if tensors.keys() != self._inputs.keys():
            raise RunFailed(f"the model takes {', '.join(self._inputs)}, not {', '.join(tensors) or 'nothing'}")
        feeds = {name: self._inputs[name].take(array) for name, array in tensors.items()}
        if cancellation is not None and cancellation.is_cancelled:
            raise RunFailed("the run was ended before it began")
        try:
            network = self._idle.pop()
        except IndexError:
            network = self._open()
        try:
            results = network.run(feeds)
        except (ValueError, RuntimeError) as exc:
            raise RunFailed(f"the model failed on this input: {_one_line(exc)}") from exc
        finally:
            self._idle.append(network)  # it stays usable: what failed is prepared anew
        return {name: self._outputs[name].give(results[name]) for name in names}

    def close(self) -> None:
        self._idle.clear()


class _Network:
    """One interpreter. `inputs` and `outputs` are what it says of each tensor, by the name that callers use."""

    def __init__(self, path: Path, content: bytes, threads: int) -> None:
        try:
            self._interpreter = _create_interpreter(content, threads)
        except ImportError as exc:
            raise RuntimeLoadError(f"{path}: needs LiteRT ({exc}): pip install 'headway[tflite]'") from exc
        except (ValueError, RuntimeError) as exc:
            raise RuntimeLoadError(f"{path}: LiteRT cannot load it: {_reason(content, exc)}") from exc
        self._runner = self._signature()
        if self._runner is not None:
            self.inputs: Mapping[str, Any] = self._runner.get_input_details()
            self.outputs: Mapping[str, Any] = self._runner.get_output_details()
        else:
            self.inputs = {details["name"]: details for details in self._interpreter.get_input_details()}
            self.outputs = {details["name"]: details for details in self._interpreter.get_output_details()}

    def run(self, feeds: Tensors) -> Tensors:
        """Raises ValueError or RuntimeError."""
        if self._runner is not None:
            results: Tensors = self._runner(**feeds)
            return results
        for name, array in feeds.items():
            self._interpreter.resize_tensor_input(self.inputs[name]["index"], array.shape)
        self._interpreter.allocate_tensors()
        for name, array in feeds.items():
            self._interpreter.set_tensor(self.inputs[name]["index"], array)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(details["index"]) for name, details in self.outputs.items()}

    def _signature(self) -> Any:
        keys = list(self._interpreter.get_signature_list())
        if not keys:
            return None
        return self._interpreter.get_signature_runner(_FIRST_SIGNATURE if _FIRST_SIGNATURE in keys else keys[0])


@dataclass(frozen=True, slots=True)
class _Quantization:
    """value = (level - zero_point) * scale, as in LiteRT's specification of 8-bit quantisation."""

    scale: Array
    zero_point: Array
    stored: np.dtype[Any]

    def quantize(self, values: Array) -> Array:
        """What is out of range becomes the value nearest to it, NaN the value 0."""
        limits = np.iinfo(self.stored)
        lowest, highest = ((limit - self.zero_point) * self.scale for limit in (limits.min, limits.max))
        levels: Array = np.rint(np.clip(np.nan_to_num(values), lowest, highest) / self.scale) + self.zero_point
        return levels.astype(self.stored)

    def dequantize(self, levels: Array) -> Array:
        values: Array = (levels.astype(np.float32) - self.zero_point) * self.scale
        return values


@dataclass(frozen=True, slots=True)
class _Port:
    """An input or output as callers see it. Without `quantization` they see what the file holds."""

    spec: TensorSpec
    quantization: _Quantization | None

    def take(self, array: Array) -> Array:
        """Raises RunFailed where `array` is not what the spec says."""
        spec = self.spec
        if not isinstance(array, np.ndarray) or array.dtype != NUMPY_DTYPES[spec.datatype]:
            raise RunFailed(f"input {spec.name!r} must be {spec.datatype}")
        if not shape_matches(spec.shape, array.shape):
            raise RunFailed(f"input {spec} cannot be of shape {list(array.shape)}")
        return array if self.quantization is None else self.quantization.quantize(array)

    def give(self, result: Any) -> Array:
        array = np.asarray(result)
        return array if self.quantization is None else self.quantization.dequantize(array)


def _port(name: str, details: Mapping[str, Any], floats: Collection[str], path: Path) -> _Port:
    dtype = np.dtype(details["dtype"])
    datatype = "BYTES" if dtype.kind == "S" else _DATATYPES.get(dtype)
    if datatype is None:
        raise RuntimeLoadError(f"{path}: {name!r} is of type {dtype}, which cannot be served")
    shape = tuple(int(size) for size in details["shape_signature"])
    found = details["quantization_parameters"]
    if name not in floats or datatype not in _QUANTIZED or not found["scales"].size:
        return _Port(TensorSpec(name, datatype, shape), None)
    along = [1] * len(shape)
    if found["scales"].size > 1:
        along[found["quantized_dimension"]] = -1
    scale, zero_point = (found[key].astype(np.float32).reshape(along) for key in ("scales", "zero_points"))
    return _Port(TensorSpec(name, "FP32", shape), _Quantization(scale, zero_point, dtype))


def _read(path: Path) -> bytes:
    try:
        content = read_model_file(path)
    except OSError as exc:
        raise RuntimeLoadError(f"{path}: cannot be read: {exc.strerror}") from exc
    if content[4:8] != _MARK:
        raise RuntimeLoadError(f"{path}: is no TFLite file: bytes 4 to 8 are not {_MARK.decode()}")
    return content


def _create_interpreter(content: bytes, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    with no_banner():
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


_banner_lock = threading.Lock()


@contextlib.contextmanager
def no_banner() -> Iterator[None]:
    """Keep LiteRT's greeting off stderr, where a machine reads lines of JSON: no setting turns it off.

    What other threads write meanwhile is written afterwards.
    """
    with _banner_lock, tempfile.TemporaryFile() as caught:
        try:
            stderr = os.dup(2)
        except OSError:  # closed: nobody reads it
            yield
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            with contextlib.suppress(OSError):
                os.write(2, b"".join(line for line in caught if not line.startswith(_BANNER)))


def _reason(content: bytes, exc: Exception) -> str:
    """LiteRT names one operator that it lacks, and some of its words are for makers of telephones."""
    words = _one_line(exc)
    if "Select TensorFlow op" in words:
        flex = ", ".join(name for name in _custom_operators(content) if name.startswith("Flex"))
        return f"it needs operators of TensorFlow itself ({flex}); convert it without SELECT_TF_OPS"
    if "unresolved custom op" in words:
        custom = ", ".join(_custom_operators(content))
        return f"it needs custom operators, which LiteRT does not have; the file has {custom}: {words}"
    return words


def _custom_operators(content: bytes) -> list[str]:
    """Names of the operators that are not TFLite's own. `content` has been verified by LiteRT."""
    from ai_edge_litert.schema_py_generated import Model  # type: ignore[import-untyped]

    model = Model.GetRootAs(content, 0)
    codes = (model.OperatorCodes(number).CustomCode() for number in range(model.OperatorCodesLength()))
    return [code.decode(errors="replace") for code in codes if code]


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]
