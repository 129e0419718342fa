"""TFLite networks before and after quantisation: opened, named, checked; then with faults of the quantiser mended.

Needs LiteRT (`headway[tflite]`), as all modules beside it whose names begin with `quantize_tflite`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]

from app.errors import InvalidContent
from app.optimize.networks.tflite_file import read_tflite
from app.optimize.quantization.method import BLOCK
from app.tensors import Array

Operator = schema.BuiltinOperator
Type = schema.TensorType
SIGNATURE = "serving_default"
# Operators whose constant second input is most of a network's bytes and of its work.
LAYER_OPERATORS = {
    Operator.CONV_2D: "CONV_2D",
    Operator.DEPTHWISE_CONV_2D: "DEPTHWISE_CONV_2D",
    Operator.TRANSPOSE_CONV: "CONV_2D_TRANSPOSE",
    Operator.FULLY_CONNECTED: "FULLY_CONNECTED",
}
# A flatbuffer holds no more.
MAX_BYTES = 2_000_000_000
_NUMPY = {Type.FLOAT32: np.float32, Type.INT8: np.int8, Type.INT32: np.int32, Type.FLOAT16: np.float16}
# What may stand between the last layer and the answer.
_AFTER_LAST_LAYER = (
    Operator.SOFTMAX, Operator.LOG_SOFTMAX, Operator.LOGISTIC, Operator.RESHAPE, Operator.SQUEEZE, Operator.DEQUANTIZE,
)  # fmt: skip
# A sum of products is far below it, so that with such a bias the accumulator of 32 bits does not overflow.
_MOST_BIAS = 2**30
# The least number above 0 of FP16, in which scales of blocks are stored.
_LEAST_SCALE = 2.0**-24
_INT4_MOST = 7


@dataclass(frozen=True, slots=True)
class Layer:
    """`operator` is the quantiser's name of it; `place` that in the graph's operators."""

    name: str
    operator: str
    weights: int
    place: int


def open_float(source: Path) -> Any:
    """A float network, with a name of its own for each tensor, for the quantiser goes by names, and with a signature.

    Raises InvalidContent where it is quantised already, too large, or has more than one graph.
    """
    size = source.stat().st_size
    if size > MAX_BYTES:
        raise InvalidContent(f"{source.name} has {size / 1e9:.1f} GB; quantize takes files of up to 2 GB")
    model = read_tflite(source.read_bytes())
    if len(model.subgraphs) != 1:
        raise InvalidContent(
            f"{source.name} has {len(model.subgraphs)} graphs, as of loops or of several signatures; "
            "quantize takes TFLite files of one"
        )
    (graph,) = model.subgraphs
    found = sorted({_operator_name(code_of(model, one)) for one in graph.operators if _is_quantised(model, graph, one)})
    if found:
        raise InvalidContent(f"{source.name} is quantised already ({', '.join(found)}); name the float version instead")
    _name_tensors(graph)
    if not model.signatureDefs:
        model.signatureDefs = [_signature(graph)]
    return model


def code_of(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def name_of(graph: Any, tensor: int) -> str:
    return str(graph.tensors[tensor].name.decode())


def constant(model: Any, tensor: Any) -> Array | None:
    """What a tensor of the file holds; None of what is computed. 4 bits are not unpacked."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type not in _NUMPY:
        return None
    shape = [] if tensor.shape is None else list(tensor.shape)
    return np.frombuffer(bytes(data), _NUMPY[tensor.type]).reshape(shape)


def layers(model: Any) -> dict[str, Layer]:
    """Operators with constant weights, by the name of their output, in the order of the graph."""
    (graph,) = model.subgraphs
    found = {}
    for place, operator in enumerate(graph.operators):
        kind = LAYER_OPERATORS.get(code_of(model, operator))
        weight = constant(model, graph.tensors[operator.inputs[1]]) if kind is not None else None
        if kind is not None and weight is not None:
            name = name_of(graph, operator.outputs[0])
            found[name] = Layer(name, kind, math.prod(weight.shape), place)
    return found


def last_operators(model: Any) -> set[str]:
    """What gives the scores: the names of what the last layers and all after them give.

    They stay float: a softmax of logits in 8 bits has few distinct confidences.
    """
    (graph,) = model.subgraphs
    made_by = {tensor: operator for operator in graph.operators for tensor in operator.outputs}
    names = set()
    for tensor in graph.outputs:
        operator = made_by.get(tensor)
        while operator is not None:
            names.add(name_of(graph, operator.outputs[0]))
            above = made_by.get(operator.inputs[0])
            operator = above if code_of(model, operator) in _AFTER_LAST_LAYER else None
    return names


def byte_ranges(model: Any) -> dict[str, tuple[float, float]]:
    """Least and largest value of float tensors that are bytes of the caller's (a photo's) dequantised."""
    (graph,) = model.subgraphs
    ranges = {}
    for operator in graph.operators:
        if code_of(model, operator) != Operator.DEQUANTIZE or operator.inputs[0] not in graph.inputs:
            continue
        source = graph.tensors[operator.inputs[0]]
        if source.type not in (Type.UINT8, Type.INT8) or len(source.quantization.scale) != 1:
            continue
        limits = np.iinfo(np.uint8 if source.type == Type.UINT8 else np.int8)
        scale, zero_point = float(source.quantization.scale[0]), int(source.quantization.zeroPoint[0])
        name = name_of(graph, operator.outputs[0])
        ranges[name] = ((limits.min - zero_point) * scale, (limits.max - zero_point) * scale)
    return ranges


def keep_bytes(model: Any) -> None:
    """Bytes that were dequantised for the float network are brought to the quantised one's zero point without it."""
    (graph,) = model.subgraphs
    for operator in [one for one in graph.operators if code_of(model, one) == Operator.DEQUANTIZE]:
        source, values = operator.inputs[0], operator.outputs[0]
        if source not in graph.inputs:
            continue
        readers = [one for one in graph.operators if values in one.inputs]
        for reader in readers:
            if code_of(model, reader) == Operator.QUANTIZE:
                reader.inputs = [source]
        if not any(values in one.inputs for one in graph.operators) and values not in graph.outputs:
            graph.operators.remove(operator)


def mend_biases(model: Any, float_model: Any) -> None:
    """A bias has the scale of its channel's weights; where these are nearly 0 it does not fit 32 bits.

    ai-edge-quantizer 0.10 cuts it off, on x86 even to the other sign. Here the channel gets a scale with which it fits.
    Of EfficientNet-Lite0 84 biases were cut off, and 4 of them changed sign.
    """
    (graph,), (floats,) = model.subgraphs, float_model.subgraphs
    originals = {tensor.name: tensor for tensor in floats.tensors}
    for operator in graph.operators:
        if code_of(model, operator) not in LAYER_OPERATORS or len(operator.inputs) < 3 or operator.inputs[-1] < 0:
            continue
        weight, bias = graph.tensors[operator.inputs[1]], graph.tensors[operator.inputs[-1]]
        if bias.type != Type.INT32 or weight.type != Type.INT8:
            continue
        exact = constant(float_model, originals[bias.name])
        weights = constant(float_model, originals[weight.name])
        if exact is None or weights is None:
            continue
        scales, steps = np.array(weight.quantization.scale), np.array(bias.quantization.scale)
        wide = np.abs(exact) > steps * _MOST_BIAS
        if not wide.any() or len(scales) != len(exact):
            continue
        factor = np.where(wide, np.abs(exact) / (steps * _MOST_BIAS), 1.0)
        weight.quantization.scale = (scales * factor).astype(np.float32)
        bias.quantization.scale = (steps * factor).astype(np.float32)
        _store(model, weight, _rounded(weights, weight, np.int8))
        _store(model, bias, _rounded(exact, bias, np.int32))


def drop_dust(model: Any, names: Collection[str]) -> None:
    """Blocks of weights whose scale would be 0 in FP16 become 0: XNNPACK takes no scale of 0."""
    (graph,) = model.subgraphs
    for operator in graph.operators:
        if len(operator.outputs) and name_of(graph, operator.outputs[0]) in names:
            tensor = graph.tensors[operator.inputs[1]]
            weights = constant(model, tensor)
            assert weights is not None
            blocks = weights.reshape(len(weights), -1, BLOCK)
            is_dust = np.abs(blocks).max(axis=2, keepdims=True) < _LEAST_SCALE * _INT4_MOST
            _store(model, tensor, np.where(is_dust, np.float32(0), blocks))


def mend_scales(model: Any) -> None:
    """Blocks of zeros get a scale, any one."""
    (graph,) = model.subgraphs
    for tensor in graph.tensors:
        details = None if tensor.quantization is None else tensor.quantization.details
        if isinstance(details, schema.BlockwiseQuantizationT):
            scales = constant(model, graph.tensors[details.scales])
            assert scales is not None
            _store(model, graph.tensors[details.scales], np.maximum(scales, np.float16(_LEAST_SCALE)))


def _rounded(values: Array, tensor: Any, dtype: Any) -> Array:
    """By the scale of each channel, which is symmetric."""
    scale = np.asarray(tensor.quantization.scale, np.float64)
    along = [1] * values.ndim
    along[int(tensor.quantization.quantizedDimension)] = -1
    most = np.iinfo(dtype).max
    levels: Array = np.clip(np.rint(values / scale.reshape(along)), -most, most)
    return levels.astype(dtype)


def _store(model: Any, tensor: Any, values: Array) -> None:
    model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)


def _is_quantised(model: Any, graph: Any, operator: Any) -> bool:
    code = code_of(model, operator)
    if code == Operator.QUANTIZE:
        return True
    if code == Operator.DEQUANTIZE:
        return bool(operator.inputs[0] not in graph.inputs)
    return code in LAYER_OPERATORS and graph.tensors[operator.inputs[1]].type != Type.FLOAT32


def _operator_name(code: int) -> str:
    return next((str(name) for name, value in vars(Operator).items() if value == code), str(code))


def _name_tensors(graph: Any) -> None:
    taken = Counter(tensor.name for tensor in graph.tensors)
    for number, tensor in enumerate(graph.tensors):
        if not tensor.name or taken[tensor.name] > 1:
            tensor.name = f"{(tensor.name or b'tensor').decode()}_{number}".encode()


def _signature(graph: Any) -> Any:
    """What callers know such a file's tensors by already: their names."""
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE.encode(), 0
    signature.inputs = [_entry(graph, tensor) for tensor in graph.inputs]
    signature.outputs = [_entry(graph, tensor) for tensor in graph.outputs]
    return signature


def _entry(graph: Any, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = graph.tensors[tensor].name, tensor
    return entry
