"""The noise of each layer of an ONNX network, from both networks run as one graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx import helper

from app.errors import RunFailed
from app.optimize.networks import onnx_graph as graphs
from app.optimize.quantization.noise import LayerError, decibels
from app.tensors import Array, Tensors


def layer_errors(float_model: onnx.ModelProto, quantised: bytes, rows: Iterable[Tensors]) -> list[LayerError]:
    """Of every layer with constant weights, in the order of the graph.

    `float_model` is what `Quantizer.prepare` gave for the method that made `quantised`. Raises RunFailed.
    """
    found = graphs.layers(float_model)
    merged = _side_by_side(float_model, onnx.load_from_string(quantised), list(found.values()))
    session = graphs.open_session(merged.SerializeToString(), ort.SessionOptions())
    signal, noise = np.asarray(sum(_run(session, row) for row in rows)).reshape(2, -1)
    constants = graphs.weights(float_model)
    return [
        LayerError(name, node.op_type, math.prod(constants[node.input[1]].dims), decibels(above, below))
        for (name, node), above, below in zip(found.items(), signal, noise, strict=True)
    ]


def _run(session: ort.InferenceSession, row: Tensors) -> Array:
    try:
        return np.array(session.run(None, row), np.float64)
    except Exception as exc:  # ONNX Runtime raises classes of its own, which share no base
        raise RunFailed(f"the network fails on an input that the noise is measured with: {exc}") from exc


def _side_by_side(
    float_model: onnx.ModelProto, quantised: onnx.ModelProto, found: Sequence[onnx.NodeProto]
) -> onnx.ModelProto:
    """Both networks in one graph. The quantised one reads every tensor that the float one has, too, from there."""
    merged = onnx.ModelProto()
    merged.CopyFrom(float_model)
    graph = merged.graph
    known = {name for node in graph.node for name in node.output} | {entry.name for entry in graph.input}
    constants = {tensor.name for tensor in quantised.graph.initializer}

    def source(name: str) -> str:
        return name if not name or (name in known and name not in constants) else f"rounded/{name}"

    for tensor in quantised.graph.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = f"rounded/{tensor.name}"
    for node in quantised.graph.node:
        added = graph.node.add()
        added.CopyFrom(node)
        added.name = f"rounded/{node.name}"
        added.input[:] = [source(name) for name in node.input]
        added.output[:] = [f"rounded/{name}" if name else "" for name in node.output]
    # Where ReLU or Clip is done by rounding, the layer before it has taken over its output's name.
    renamed = {node.name: node.output[0] for node in quantised.graph.node}
    _measure_outputs(graph, {node.output[0]: renamed.get(node.name, node.output[0]) for node in found})
    merged.opset_import.extend(
        entry for entry in quantised.opset_import if entry.domain not in {own.domain for own in merged.opset_import}
    )
    return merged


def _measure_outputs(graph: onnx.GraphProto, outputs: Mapping[str, str]) -> None:
    """The sums of squares of each tensor, then those of what rounding adds to it, in place of the graph's outputs.

    `outputs` has the name of each tensor in the quantised network.
    """
    del graph.output[:]
    graph.ClearField("value_info")
    for name, rounded in outputs.items():
        graph.node.append(helper.make_node("Sub", [f"rounded/{rounded}", name], [f"noise/{name}"]))
    for prefix in ("", "noise/"):
        for name in outputs:
            total = f"sum/{prefix}{name}"
            graph.node.append(helper.make_node("ReduceSumSquare", [f"{prefix}{name}"], [total], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(total, onnx.TensorProto.FLOAT, []))
