"""The noise of each layer of a TFLite network, from the rounded layers run on the float network's own tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

from app.errors import RunFailed
from app.optimize.networks.tflite_file import read_tflite, write_tflite
from app.optimize.quantization import tflite_graph as graphs
from app.optimize.quantization.noise import LayerError, decibels
from app.runtimes.tflite import no_banner
from app.tensors import Array, Tensors

_ROUNDING = (graphs.Operator.QUANTIZE, graphs.Operator.DEQUANTIZE)


def layer_errors(source: bytes, quantised: bytes, rows: Iterable[Tensors]) -> list[LayerError]:
    """Of every layer with constant weights, in the order of the graph.

    `source` is the float file that `quantised` was made from, with a name of its own for each tensor. Raises RunFailed.
    """
    float_model = read_tflite(source)
    found = graphs.layers(float_model)
    merged = _Merged(float_model, read_tflite(quantised))
    for name in found:
        merged.add(name)
    run = _Run(merged.content(), {name.decode(): tensor for name, tensor in merged.inputs})
    totals = np.zeros((len(found), 2))
    for row in rows:
        results = run(row)
        exact, rounded = results[: len(found)], results[len(found) :]
        for total, one, other in zip(totals, exact, rounded, strict=True):
            total += np.sum(one**2), np.sum((one - other) ** 2)
    return [
        LayerError(name, layer.operator, layer.weights, decibels(float(signal), float(noise)))
        for (name, layer), (signal, noise) in zip(found.items(), totals, strict=True)
    ]


class _Merged:
    """The float network, and each layer of the quantised one beside it. Such a layer reads what the float network has,
    rounded as in the quantised one."""

    def __init__(self, float_model: Any, quantised: Any) -> None:
        self._model, self._quantised = float_model, quantised
        (self._graph,), (self._other,) = float_model.subgraphs, quantised.subgraphs
        self.inputs = [(entry.name, entry.tensorIndex) for entry in float_model.signatureDefs[0].inputs]
        self._by_name = {tensor.name: place for place, tensor in enumerate(self._graph.tensors)}
        self._made_by = {tensor: operator for operator in self._other.operators for tensor in operator.outputs}
        self._codes = len(float_model.operatorCodes)
        float_model.operatorCodes.extend(quantised.operatorCodes)
        self._exact: list[int] = []
        self._rounded: list[int] = []

    def add(self, name: str) -> None:
        operator = next(one for one in self._other.operators if graphs.name_of(self._other, one.outputs[0]) == name)
        result = self._copy(operator, [self._source(tensor) for tensor in operator.inputs])
        if self._graph.tensors[result].type != schema.TensorType.FLOAT32:
            result = self._convert(result, schema.TensorType.FLOAT32)
        self._exact.append(self._by_name[name.encode()])
        self._rounded.append(result)

    def content(self) -> bytes:
        self._model.signatureDefs = []
        self._graph.outputs = [*self._exact, *self._rounded]
        return write_tflite(self._model)

    def _source(self, tensor: int) -> int:
        """The tensor of the merged graph that stands for one of the quantised network."""
        if tensor < 0:
            return tensor
        there = self._other.tensors[tensor]
        if there.buffer and self._quantised.buffers[there.buffer].data is not None:
            return self._add_tensor(there, self._quantised.buffers[there.buffer])
        maker = self._made_by.get(tensor)
        if maker is not None and graphs.code_of(self._quantised, maker) in _ROUNDING:
            return self._copy(maker, [self._source(one) for one in maker.inputs])
        here = self._by_name[there.name]
        if self._graph.tensors[here].type == there.type:
            return here
        return self._convert(here, there.type, there)

    def _copy(self, operator: Any, inputs: list[int]) -> int:
        copied = copy.copy(operator)
        copied.opcodeIndex = self._codes + operator.opcodeIndex
        copied.inputs = inputs
        copied.outputs = [self._add_tensor(self._other.tensors[operator.outputs[0]])]
        self._graph.operators.append(copied)
        return int(copied.outputs[0])

    def _convert(self, source: int, to: int, like: Any = None) -> int:
        """Quantise as `like`, or dequantise."""
        code = schema.OperatorCodeT()
        code.builtinCode = graphs.Operator.DEQUANTIZE if like is None else graphs.Operator.QUANTIZE
        code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
        self._model.operatorCodes.append(code)
        result = copy.copy(self._graph.tensors[source] if like is None else like)
        if like is None:
            result.type, result.quantization = to, None
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        operator.inputs, operator.outputs = [source], [self._add_tensor(result)]
        self._graph.operators.append(operator)
        return int(operator.outputs[0])

    def _add_tensor(self, tensor: Any, buffer: Any = None) -> int:
        added = copy.copy(tensor)
        added.name, added.buffer = f"rounded/{len(self._graph.tensors)}".encode(), 0
        if buffer is not None:
            self._model.buffers.append(buffer)
            added.buffer = len(self._model.buffers) - 1
            added.quantization = self._with_scales(tensor.quantization)
        self._graph.tensors.append(added)
        return len(self._graph.tensors) - 1

    def _with_scales(self, quantization: Any) -> Any:
        """Scales of blocks are a tensor of their own."""
        details = None if quantization is None else quantization.details
        if not isinstance(details, schema.BlockwiseQuantizationT):
            return quantization
        moved = copy.copy(quantization)
        moved.details = copy.copy(details)
        moved.details.scales = self._source(details.scales)
        moved.details.zeroPoints = self._source(details.zeroPoints)
        return moved


class _Run:
    """One row at a time, to the graph's outputs as float64. Raises RunFailed."""

    def __init__(self, content: bytes, inputs: dict[str, int]) -> None:
        with no_banner():
            self._interpreter = Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
        self._inputs = inputs
        self._outputs = [details["index"] for details in self._interpreter.get_output_details()]

    def __call__(self, row: Tensors) -> list[Array]:
        try:
            self._resize(row)
            for name, array in row.items():
                self._interpreter.set_tensor(self._inputs[name], array)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as exc:
            raise RunFailed(f"the network fails on an input that the noise is measured with: {exc}") from exc
        return [self._interpreter.get_tensor(index).astype(np.float64) for index in self._outputs]

    def _resize(self, row: Tensors) -> None:
        shapes = {details["index"]: tuple(details["shape"]) for details in self._interpreter.get_input_details()}
        changed = {self._inputs[name]: array.shape for name, array in row.items()}
        if any(shapes[index] != shape for index, shape in changed.items()):
            for index, shape in changed.items():
                self._interpreter.resize_tensor_input(index, shape)
            with no_banner():
                self._interpreter.allocate_tensors()
