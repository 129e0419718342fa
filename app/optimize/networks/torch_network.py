"""An ONNX graph as a torch module that can be trained, pruned and differentiated, and its weights back in the graph.

Ours, as what reads ONNX into torch elsewhere needs torchvision, of which there is no build for every torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from app.errors import InvalidContent
from app.optimize.networks.torch_layers import Reading, Weight
from app.optimize.networks.torch_operators import OPERATORS
from app.tensors import Array


@dataclass(frozen=True, slots=True)
class Network:
    """`module` takes the graph's inputs in their order and gives its output, or a tuple of them; it is in eval mode.

    An integer input may be given as floats, and is then differentiated through: casts of inputs keep them.
    `layers` are the ONNX nodes of the submodules with weights (torch.nn.Conv2d and kin, Linear, BatchNorm2d), by their
    names in the module; `weights` says which of the module's parameters and buffers is which initialiser. `flattened`:
    constants that reshape to rows.
    """

    module: torch.fx.GraphModule
    layers: Mapping[str, str]
    weights: Mapping[str, Weight]
    flattened: frozenset[str]


def read_network(model: onnx.ModelProto) -> Network:
    """Raises InvalidContent with operator and node where the graph has what this cannot read."""
    reading = Reading(_constants(model), _ranks(model), _readers(model))
    for value in model.graph.input:
        if value.name not in reading.constants:
            reading.values[value.name] = reading.graph.placeholder(_identifier(value.name, len(reading.values)))
    for node in model.graph.node:
        if (node.op_type == "Constant" and not node.domain) or node.name in reading.done:
            continue
        operator = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if operator is None:
            raise InvalidContent(f"{_where(node)}: this operator cannot be read into torch")
        try:
            operator(reading, node)
        except (ValueError, KeyError, IndexError) as exc:
            raise InvalidContent(f"{_where(node)}: cannot be read into torch ({exc})") from exc
    outputs = tuple(reading.value(value.name) for value in model.graph.output)
    reading.graph.output(outputs[0] if len(outputs) == 1 else outputs)
    module = torch.fx.GraphModule(reading.root, reading.graph, "Network")
    return Network(module.eval(), dict(reading.layers), dict(reading.weights), frozenset(reading.flattened))


def write_weights(network: Network, model: onnx.ModelProto) -> bytes:
    """`model`, which the network was read from, with the module's present weights: all else of the file stays as it is.

    Weights may have other shapes, as after channels were taken out: what the graph says of sizes between its layers is
    then left out, for a reader to find anew.
    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    tensors = _initializers(written.graph)
    uses = Counter(weight.initializer for weight in network.weights.values())
    state = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    reshaped = False
    for name, weight in network.weights.items():
        value = weight.to_onnx(state[name].detach().cpu().numpy())
        tensor = tensors[weight.initializer]
        before = numpy_helper.to_array(tensor)
        reshaped = reshaped or before.shape != value.shape
        if weight.layer and uses[weight.initializer] > 1:
            tensor = _own_copy(written.graph, weight)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, before.dtype), tensor.name))
    if reshaped:
        del written.graph.value_info[:]
        _flatten_any(network, written.graph, tensors)
        _regroup(network, written)
    return bytes(written.SerializeToString(deterministic=True))


def _initializers(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Of `graph`, with what stands in Constant nodes made initialisers."""
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.domain]
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            graph.initializer.append(numpy_helper.from_array(_constant(node), node.output[0]))
    del graph.node[:]
    graph.node.extend(nodes)
    return {tensor.name: tensor for tensor in graph.initializer}


def _own_copy(graph: onnx.GraphProto, weight: Weight) -> TensorProto:
    """Layers may share weights in the file; trained or pruned they are each its own."""
    name = f"{weight.initializer} of {weight.layer}"
    for node in graph.node:
        if weight.layer in (node.name, *node.output):
            node.input[:] = [name if one == weight.initializer else one for one in node.input]
    copy: TensorProto = graph.initializer.add(name=name)
    return copy


def _flatten_any(network: Network, graph: onnx.GraphProto, tensors: Mapping[str, TensorProto]) -> None:
    """What is reshaped to rows is, of any number of channels."""
    for name in network.flattened:
        tensors[name].CopyFrom(numpy_helper.from_array(np.array([0, -1], np.int64), name))
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in network.flattened:
            del node.attribute[:]  # allowzero: 0 is the size that is there


def _regroup(network: Network, model: onnx.ModelProto) -> None:
    """Convolutions of each channel for itself have as many groups as there are channels left."""
    groups = {
        node: int(network.module.get_submodule(name).groups)
        for name, node in network.layers.items()
        if hasattr(network.module.get_submodule(name), "groups")
    }
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = groups.get(node.name or node.output[0], attribute.i)


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and not node.domain:
            constants[node.output[0]] = _constant(node)
    return constants


def _constant(node: onnx.NodeProto) -> Array:
    (attribute,) = node.attribute
    value: Any = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.array(value, np.float32 if attribute.name.startswith("value_float") else None)


def _ranks(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes as far as the graph tells them; -1 is free."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False)
    shapes = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.HasField("shape"):
            sizes = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)
    return shapes


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _identifier(name: str, number: int) -> str:
    return name if name.isidentifier() else f"input_{number}"


def _where(node: onnx.NodeProto) -> str:
    return f"{node.domain + '.' if node.domain else ''}{node.op_type} ({node.name or node.output[0]})"
