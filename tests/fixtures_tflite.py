"""Tiny real TFLite files whose answers can be worked out by hand, put together with the schema that LiteRT carries.

kind        input                       output
two_inputs  a, b FP32 [n, 2]            total = a + b
double      x FP32 []                   twice = x + x
column      text BYTES [n]              column [n, 1] = the text
lookup      at INT32 [n]                found FP32 [n] = [10, 20, 30][at]; the run fails beyond 2
turned      x FP32 [n, 2, 3]            turned FP32 [n, 3, 2]
one_row     x FP32 [1, 3]               total FP32 [1, 1] = the sum of the row; the file takes one row a run
positive    x FP32 [n, 3]               is_positive BOOL [n, 3]
swapped     x FP32 [n, 1]               first = x, second = x + x; the file lists second first
levels      x UINT8 [n, 2]              y INT8 [n, 2], the same value: scale 1/2, zero points 100 and -28
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

_TYPES = {
    "BOOL": schema.TensorType.BOOL,
    "BYTES": schema.TensorType.STRING,
    "COMPLEX": schema.TensorType.COMPLEX64,
    "FP32": schema.TensorType.FLOAT32,
    "INT32": schema.TensorType.INT32,
    "INT8": schema.TensorType.INT8,
    "UINT8": schema.TensorType.UINT8,
}
_CUSTOM = schema.BuiltinOperator.CUSTOM
Scale = tuple[float, int]


@dataclass(frozen=True)
class Node:
    """`operator` is a name of schema.BuiltinOperator, or the code of a custom one; `options` fills its options."""

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """`tensors` are the inputs and outputs, {name: (datatype, shape with -1 for a free size)}.

    `constants` are INT32 or FP32. `signature` gives names to tensors that have others; None: the file has no signature.
    """

    tensors: Mapping[str, tuple[str, list[int]]]
    inputs: Sequence[str]
    outputs: Sequence[str]
    nodes: Sequence[Node]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)
    signature: Mapping[str, str] | None = field(default_factory=dict)


_KINDS = {
    "two_inputs": Network(
        {"a": ("FP32", [-1, 2]), "b": ("FP32", [-1, 2]), "total": ("FP32", [-1, 2])},
        ["a", "b"], ["total"], [Node("ADD", ["a", "b"], ["total"])],
    ),
    "double": Network(
        {"x": ("FP32", []), "twice": ("FP32", [])},
        ["x"], ["twice"], [Node("ADD", ["x", "x"], ["twice"])],
    ),
    "column": Network(
        {"text": ("BYTES", [-1]), "column": ("BYTES", [-1, 1])},
        ["text"], ["column"], [Node("RESHAPE", ["text", "shape"], ["column"])],
        {"shape": np.array([-1, 1], np.int32)},
    ),
    "lookup": Network(
        {"at": ("INT32", [-1]), "found": ("FP32", [-1])},
        ["at"], ["found"], [Node("GATHER", ["table", "at"], ["found"])],
        {"table": np.array([10, 20, 30], np.float32)},
    ),
    "turned": Network(
        {"x": ("FP32", [-1, 2, 3]), "turned": ("FP32", [-1, 3, 2])},
        ["x"], ["turned"], [Node("TRANSPOSE", ["x", "order"], ["turned"])],
        {"order": np.array([0, 2, 1], np.int32)},
    ),
    "one_row": Network(
        {"x": ("FP32", [1, 3]), "total": ("FP32", [1, 1])},
        ["x"], ["total"], [Node("SUM", ["x", "axis"], ["total"], {"type": "ReducerOptions", "keepDims": True})],
        {"axis": np.array([1], np.int32)},
    ),
    "positive": Network(
        {"x": ("FP32", [-1, 3]), "is_positive": ("BOOL", [-1, 3])},
        ["x"], ["is_positive"], [Node("GREATER", ["x", "zero"], ["is_positive"])],
        {"zero": np.array([0], np.float32)},
    ),
    "swapped": Network(
        {"in": ("FP32", [-1, 1]), "out_0": ("FP32", [-1, 1]), "out_1": ("FP32", [-1, 1])},
        ["in"], ["out_0", "out_1"],
        [Node("ADD", ["in", "in"], ["out_0"]), Node("ADD", ["in", "zero"], ["out_1"])],
        {"zero": np.array([0], np.float32)},
        signature={"in": "x", "out_0": "second", "out_1": "first"},
    ),
    "levels": Network(
        {"x": ("UINT8", [-1, 2]), "y": ("INT8", [-1, 2])},
        ["x"], ["y"], [Node("QUANTIZE", ["x"], ["y"])],
        scales={"x": (0.5, 100), "y": (0.5, -28)},
    ),
}  # fmt: skip


def tflite_bytes(kind: str) -> bytes:
    """The TFLite file of a kind."""
    return tflite_file(_KINDS[kind])


def tflite_file(network: Network) -> bytes:
    graph = schema.SubGraphT()
    model = schema.ModelT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [], [graph]
    names = [*network.tensors, *network.constants]
    graph.tensors = [_tensor(model, network, name) for name in names]
    graph.operators = [_operator(model, node, names) for node in network.nodes]
    graph.inputs = [names.index(name) for name in network.inputs]
    graph.outputs = [names.index(name) for name in network.outputs]
    if network.signature is not None:
        model.signatureDefs = [_signature(network, names)]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _tensor(model: Any, network: Network, name: str) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.buffer = name.encode(), 0
    if name in network.constants:
        values = network.constants[name]
        tensor.type, tensor.shape = _TYPES["FP32" if values.dtype == np.float32 else "INT32"], list(values.shape)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
        return tensor
    datatype, shape = network.tensors[name]
    tensor.type, tensor.shape = _TYPES[datatype], [1 if size == -1 else size for size in shape]
    if -1 in shape:
        tensor.shapeSignature = shape
    if name in network.scales:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = ([value] for value in network.scales[name])
    return tensor


def _operator(model: Any, node: Node, names: list[str]) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, node.operator, _CUSTOM)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    if code.builtinCode == _CUSTOM:
        code.customCode = node.operator.encode()
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs = [names.index(name) for name in node.inputs]
    operator.outputs = [names.index(name) for name in node.outputs]
    options = dict(node.options)
    kind = options.pop("type", f"{node.operator.capitalize()}Options")
    if hasattr(schema, f"{kind}T"):
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = getattr(schema, f"{kind}T")()
        for key, value in options.items():
            setattr(operator.builtinOptions, key, value)
    return operator


def _signature(network: Network, names: list[str]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = b"serving_default"
    signature.inputs = [_entry(network, names, name) for name in network.inputs]
    signature.outputs = [_entry(network, names, name) for name in network.outputs]
    return signature


def _entry(network: Network, names: list[str], name: str) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = (network.signature or {}).get(name, name).encode(), names.index(name)
    return entry
