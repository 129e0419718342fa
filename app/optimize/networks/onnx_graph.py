"""ONNX graphs before and after quantisation: folded, named, checked; then stripped, so that one input gives one file.

Needs the package onnx, as all modules beside it whose names begin with `quantize`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper, version_converter

from app.errors import InvalidContent
from app.runtimes.onnx_file import external_locations
from app.runtimes.packed import SUFFIX as PACKED
from app.runtimes.packed import read_model_file

# Operators whose constant second input is most of a network's bytes and of its work.
LAYER_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# A file of protobuf holds no more.
MAX_BYTES = 2_000_000_000
# Blocked 4-bit weights begin here, and ONNX Runtime fuses what is quantised in this form.
_LEAST_OPSET = 21
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulNBits", "MatMulInteger", "ConvInteger")
# What may stand between the last layer and the answer.
_AFTER_LAST_LAYER = ("Softmax", "LogSoftmax", "Sigmoid", "Identity", "Cast", "Reshape", "Flatten", "Squeeze")


def read_onnx(source: Path) -> onnx.ModelProto:
    """With the weights that it keeps in other files; a packed file has none."""
    return onnx.load_from_string(read_model_file(source)) if source.suffix == PACKED else onnx.load(source)


def open_float(source: Path) -> onnx.ModelProto:
    """A float network, folded by ONNX Runtime (constants, batch normalisation, MatMul with Add) and with named nodes.

    Raises InvalidContent where it is quantised already, or too large for one file.
    """
    _check_size(source)
    loaded = read_onnx(source)
    found = sorted({node.op_type for node in loaded.graph.node if _is_quantised(node, loaded.graph)})
    if found:
        raise InvalidContent(f"{source.name} is quantised already ({', '.join(found)}); name the float version instead")
    version = next((entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version < _LEAST_OPSET:
        loaded = _converted(loaded, source)
    model = _folded(loaded)
    _name_nodes(model.graph)
    _flatten_biases(model)
    _drop_unread(model.graph)
    return model


def open_session(data: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """One thread: the order of sums depends on how many there are. Raises InvalidContent."""
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime raises classes of its own, which share no base
        raise InvalidContent(f"ONNX Runtime cannot open the network: {exc}") from exc


def layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Nodes with constant weights, by name, in the order of the graph."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: node
        for node in model.graph.node
        if node.op_type in LAYER_OPERATORS and len(node.input) > 1 and node.input[1] in constants
    }


def weights(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def split_gemm(model: onnx.ModelProto) -> None:
    """Gemm with constant weights becomes MatMul (which keeps its name) and Add: the form that MatMul's kernels take."""
    constants = weights(model)
    nodes = []
    for node in model.graph.node:
        given = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in constants or not plain:
            nodes.append(node)
            continue
        weight = node.input[1]
        if given.get("transB", 0):
            weight = f"{weight}/transposed"
            if weight not in constants:
                turned = numpy_helper.to_array(constants[node.input[1]]).T.copy()
                constants[weight] = numpy_helper.from_array(turned, weight)
                model.graph.initializer.append(constants[weight])
        has_bias = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}/product" if has_bias else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [product], node.name))
        if has_bias:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}/bias"))
    _replace_nodes(model.graph, nodes)


def quantised_inputs(model: onnx.ModelProto) -> dict[str, tuple[TensorProto, TensorProto]]:
    """Float tensors that are bytes of the caller's (a photo's) dequantised, with their scale and zero point."""
    constants = weights(model)
    return {
        node.output[0]: (constants[node.input[1]], constants[node.input[2]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] not in constants
        and len(node.input) == 3
        and all(name in constants and not list(constants[name].dims) for name in node.input[1:])
        and constants[node.input[2]].data_type in (TensorProto.UINT8, TensorProto.INT8)
    }


def keep_bytes(model: onnx.ModelProto) -> None:
    """Bytes that were dequantised for the float network are not quantised anew: they go on as they came."""
    nodes = list(model.graph.node)
    for source in quantised_inputs(model):
        for quantise in [node for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] == source]:
            readers = [node for node in nodes if quantise.output[0] in node.input]
            if all(node.op_type == "DequantizeLinear" for node in readers):
                _read_instead(model.graph, {node.output[0]: source for node in readers})
                nodes = [node for node in nodes if node is not quantise and node not in readers]
    _replace_nodes(model.graph, nodes)


def keep_answer(model: onnx.ModelProto) -> None:
    """The scores stay float: a softmax of logits in 8 bits has few distinct confidences.

    Takes away the rounding between the last layer and each output.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        above, name = None, output.name
        while (node := made_by.get(name)) is not None and node.op_type in _AFTER_LAST_LAYER:
            above, name = node, node.input[0]
        quantise = made_by.get(node.input[0]) if node is not None and node.op_type == "DequantizeLinear" else None
        if node is None or quantise is None or quantise.op_type != "QuantizeLinear":
            continue
        if above is not None:
            above.input[0] = quantise.input[0]
        else:
            _rename(model.graph, quantise.input[0], output.name)
            node.output[0] = f"{output.name}/rounded"
    _drop_unread(model.graph)


def to_bytes(model: onnx.ModelProto, name: str) -> bytes:
    """The file, without what depends on who made it: producer, notes, inferred shapes, operator sets that are not used.

    Raises InvalidContent where the result is no valid ONNX.
    """
    graph = model.graph
    _drop_unread(graph)
    for field in ("producer_name", "producer_version", "doc_string", "metadata_props", "model_version", "domain"):
        model.ClearField(field)
    graph.name = name
    graph.ClearField("value_info")
    domains = {"ai.onnx" if not node.domain else node.domain for node in _all_nodes(graph)}
    opsets = sorted(
        (entry for entry in model.opset_import if (entry.domain or "ai.onnx") in domains), key=lambda one: one.domain
    )
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise InvalidContent(f"the network is not valid ONNX: {exc}") from exc
    return bytes(model.SerializeToString(deterministic=True))


def _check_size(source: Path) -> None:
    files = (source, *(source.parent / location for location in external_locations(source)))
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        raise InvalidContent(f"{source.name} has {size / 1e9:.1f} GB; quantize takes files of up to 2 GB")


def _is_quantised(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    if node.op_type == "DequantizeLinear":
        return any(tensor.name == node.input[0] for tensor in graph.initializer)
    return node.op_type in _ROUNDING or node.op_type.startswith("QLinear")


def _converted(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, _LEAST_OPSET)
    except Exception as exc:  # the converter raises RuntimeError and others for operators that it does not know
        raise InvalidContent(
            f"{source.name} cannot be brought to operator set {_LEAST_OPSET} ({exc}); export the network with it"
        ) from exc


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.onnx"), Path(folder, "folded.onnx")
        onnx.save(model, source)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        open_session(source.read_bytes(), options)
        return onnx.load(target)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """A name of its own for each node, as exclusion goes by names."""
    taken = Counter(node.name for node in graph.node)
    for number, node in enumerate(graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.name or node.op_type}_{number}"


def _flatten_biases(model: onnx.ModelProto) -> None:
    """Biases of Gemm as one number a column, the only form that the quantiser takes; others are broadcast."""
    constants = weights(model)
    for node in model.graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or not {node.input[1], node.input[2]} <= constants.keys():
            continue
        is_turned = any(entry.name == "transB" and entry.i for entry in node.attribute)
        columns = constants[node.input[1]].dims[0 if is_turned else 1]
        bias = numpy_helper.to_array(constants[node.input[2]])
        if bias.shape == (columns,) or bias.size not in (1, bias.shape[-1]):
            continue
        name = f"{node.input[2]}/{columns}"
        if name not in constants:
            constants[name] = numpy_helper.from_array(np.broadcast_to(bias.reshape(-1), columns).copy(), name)
            model.graph.initializer.append(constants[name])
        node.input[2] = name


def _read_instead(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    _read_instead(graph, {old: new})
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]


def _replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Nodes and constants that no output depends on."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(list(graph.node)):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(_read_inside(node))
    _replace_nodes(graph, kept[::-1])
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _read_inside(node: onnx.NodeProto) -> set[str]:
    """What the bodies of loops and branches read."""
    bodies = [entry.g for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH]
    inner = {name for body in bodies for one in body.node for name in (*one.input, *_read_inside(one))}
    return inner | {output.name for body in bodies for output in body.output}


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.GRAPH:
                nodes += _all_nodes(entry.g)
    return nodes
