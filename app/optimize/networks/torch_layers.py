"""A graph that is being read into torch, and its layers with weights: convolutions, products, batch normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import torch
from torch import fx, nn
from torch.nn import functional

from app.tensors import Array

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_NORMALISATIONS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True, slots=True)
class Weight:
    """Which initialiser of the graph a parameter is, and how it lies there; `layer` where it is one's own copy."""

    initializer: str
    transposed: bool = False
    layer: str = ""

    def to_onnx(self, value: Array) -> Array:
        return value.T if self.transposed else value


@dataclass(slots=True)
class Reading:
    """What is known of the graph, and what has been read of it."""

    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    readers: Mapping[str, Sequence[onnx.NodeProto]]
    graph: fx.Graph = field(default_factory=fx.Graph)
    root: nn.Module = field(default_factory=nn.Module)
    values: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    flattened: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    def value(self, name: str) -> Any:
        """The tensor `name` in the torch graph; a constant is put into the module, trainable where it is of floats."""
        if name not in self.values:
            at = f"constant_{len(self.weights)}_{len(self.values)}"
            tensor = torch.from_numpy(self.constants[name].copy())
            if tensor.is_floating_point() and tensor.dim():
                self.root.register_parameter(at, nn.Parameter(tensor))
                self.weights[at] = Weight(name)
            else:
                self.root.register_buffer(at, tensor)
            self.values[name] = self.graph.get_attr(at)
        return self.values[name]

    def constant(self, node: onnx.NodeProto, place: int) -> Array | None:
        """The input at `place`, None where it is left out. Raises ValueError where it is not constant."""
        name = node.input[place] if place < len(node.input) else ""
        if not name:
            return None
        if name not in self.constants:
            raise ValueError(f"its input {name!r} is no constant")
        return self.constants[name]

    def rank(self, name: str) -> int:
        """Raises ValueError where the graph does not tell."""
        if name not in self.shapes:
            raise ValueError(f"the number of axes of {name!r} is not known")
        return len(self.shapes[name])

    def add_module(
        self, node: onnx.NodeProto, module: nn.Module, weights: Mapping[str, Weight], output: str = ""
    ) -> None:
        """`module` on the node's first input, with what its parameters are in the file."""
        at = f"layer_{len(self.layers)}"
        self.root.add_module(at, module)
        self.layers[at] = node.name or node.output[0]
        own = {f"{at}.{name}": replace(weight, layer=self.layers[at]) for name, weight in weights.items()}
        self.weights |= own
        self.values[output or node.output[0]] = self.graph.call_module(at, (self.value(node.input[0]),))

    def call(self, node: onnx.NodeProto, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self.values[node.output[0]] = self.graph.call_function(function, arguments, options)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def _fill(module: nn.Module, values: Mapping[str, Array]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(torch.from_numpy(value.copy()))


def read_conv(reading: Reading, node: onnx.NodeProto) -> None:
    said = attributes(node)
    weight, bias = reading.constant(node, 1), reading.constant(node, 2)
    assert weight is not None
    axes = weight.ndim - 2
    groups = said.get("group", 1)
    module = _CONVOLUTIONS[weight.ndim](
        weight.shape[1] * groups, weight.shape[0], weight.shape[2:], stride=said.get("strides", [1] * axes),
        dilation=said.get("dilations", [1] * axes), groups=groups, bias=bias is not None,
    )  # fmt: skip
    padded = read_padding(reading, node, said, axes)
    if isinstance(padded, tuple):
        module.padding = padded
        module._reversed_padding_repeated_twice = [size for size in reversed(padded) for _ in range(2)]
        source = node.input[0]
    else:
        source = f"{node.output[0]} padded"
        reading.values[source] = padded
    values, names = {"weight": weight}, {"weight": Weight(node.input[1])}
    if bias is not None:
        values["bias"], names["bias"] = bias, Weight(node.input[2])
    _fill(module, values)
    shadow = onnx.NodeProto(name=node.name, input=[source], output=node.output)
    reading.add_module(shadow, module, names)


def read_padding(reading: Reading, node: onnx.NodeProto, said: Mapping[str, Any], axes: int) -> Any:
    """Sizes where both sides are padded alike, else the padded tensor."""
    kind = said.get("auto_pad", "NOTSET")
    if kind not in ("NOTSET", "VALID"):
        raise ValueError(f"auto_pad {kind}: write pads instead")
    pads = said.get("pads", [0] * 2 * axes) if kind == "NOTSET" else [0] * 2 * axes
    before, after = pads[:axes], pads[axes:]
    if before == after:
        return tuple(before)
    around = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return reading.graph.call_function(functional.pad, (reading.value(node.input[0]), around))


def read_gemm(reading: Reading, node: onnx.NodeProto) -> None:
    said = attributes(node)
    if said.get("transA", 0) or said.get("alpha", 1.0) != 1.0 or said.get("beta", 1.0) != 1.0:
        raise ValueError("only transB is known, with alpha and beta 1")
    _linear(reading, node, node.input[1], bool(said.get("transB", 0)), *node.input[2:3])


def read_matmul(reading: Reading, node: onnx.NodeProto) -> None:
    if node.input[1] not in reading.constants or reading.constants[node.input[1]].ndim != 2:
        reading.call(node, torch.matmul, reading.value(node.input[0]), reading.value(node.input[1]))
        return
    readers = reading.readers.get(node.output[0], ())
    following = readers[0] if len(readers) == 1 and readers[0].op_type == "Add" else None
    biases = [name for name in following.input if name in reading.constants] if following is not None else []
    width = reading.constants[node.input[1]].shape[1]
    if following is not None and len(biases) == 1 and reading.constants[biases[0]].shape == (width,) and following.name:
        _linear(reading, node, node.input[1], False, biases[0], output=following.output[0])
        reading.done.add(following.name)
    else:
        _linear(reading, node, node.input[1], False)


def _linear(
    reading: Reading, node: onnx.NodeProto, weights: str, is_transposed: bool, bias: str = "", output: str = ""
) -> None:
    if weights not in reading.constants or (bias and reading.constants.get(bias, weights) is weights):
        raise ValueError("its weights are no constants")
    value = reading.constants[weights]
    matrix = value if is_transposed else value.T
    module = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bool(bias))
    values, names = {"weight": matrix}, {"weight": Weight(weights, not is_transposed)}
    if bias:
        if reading.constants[bias].shape != (matrix.shape[0],):
            raise ValueError(f"a bias of the shape {reading.constants[bias].shape}")
        values["bias"], names["bias"] = reading.constants[bias], Weight(bias)
    _fill(module, values)
    reading.add_module(node, module, names, output)


def read_batch_normalisation(reading: Reading, node: onnx.NodeProto) -> None:
    names = dict(zip(("weight", "bias", "running_mean", "running_var"), node.input[1:5], strict=True))
    values = {name: reading.constants[source] for name, source in names.items()}
    kind = _NORMALISATIONS[reading.rank(node.input[0])]
    module = kind(len(values["weight"]), eps=attributes(node).get("epsilon", 1e-5))
    _fill(module, values)
    reading.add_module(node, module, {name: Weight(source) for name, source in names.items()})
