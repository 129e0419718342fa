"""Multiply-adds and parameters of an ONNX file, from its graph.

Counted are convolutions and matrix products, dense, as papers on networks do. What has other sums of products, or
hides them, is not guessed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import InvalidContent
from app.runtimes.packed import read_model_file

_KNOWN_OPSET = 28
_ML = "ai.onnx.ml"
# Of the standard domain: sums of products that are not counted, and graphs within the graph.
_NOT_COUNTED = frozenset({
    "Attention", "CausalConvWithState", "DFT", "DeformConv", "Det", "Einsum", "GRU", "If", "LSTM", "LinearAttention",
    "Loop", "RNN", "STFT", "Scan", "SequenceMap",
})  # fmt: skip
_ML_WITHOUT_PRODUCTS = frozenset({
    "ArrayFeatureExtractor", "Binarizer", "CastMap", "CategoryMapper", "DictVectorizer", "FeatureVectorizer", "Imputer",
    "LabelEncoder", "Normalizer", "OneHotEncoder", "Scaler", "ZipMap",
})  # fmt: skip
# Of other domains: what only cuts strings.
_FOREIGN_WITHOUT_PRODUCTS = frozenset({("com.microsoft", "Tokenizer")})
_ML_PARAMETERS = ("coefficients", "intercepts", "offset", "scale", "weights")
# Inputs that are scales of rounding or sizes, not weights; and those whose whole numbers are weights.
_NO_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (1,), "QuantizeLinear": (1,), "QLinearConv": (1, 4, 6), "QLinearMatMul": (1, 4, 6),
    "Resize": (1, 2), "Upsample": (1,),
}  # fmt: skip
_WHOLE_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,), "ConvInteger": (1,), "MatMulInteger": (0, 1), "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
}  # fmt: skip

Shape = tuple[int, ...]


@dataclass(slots=True)
class Counts:
    """Of one run. `flops` is twice the multiply-adds; a figure that is None has its reason in `unknown`."""

    flops: int | None
    parameters: int | None
    unknown: dict[str, str] = field(default_factory=dict)


class CannotCount(Exception):
    """Why not."""


def count_onnx(path: Path, shapes: Mapping[str, Shape]) -> Counts:
    """Count for inputs of `shapes`, by name. Raises InvalidContent where the package onnx is missing."""
    try:
        import onnx
        from onnx import inliner, shape_inference
    except ImportError as exc:
        raise InvalidContent(f"counting takes the package onnx ({exc}): pip install 'headway[optimize]'") from exc
    model = onnx.load_from_string(read_model_file(path))
    if model.functions:
        model = inliner.inline_local_functions(model)

    def count_flops() -> int:
        newest = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
        if newest > _KNOWN_OPSET:
            raise CannotCount(f"the file is of opset {newest}, known are those to {_KNOWN_OPSET}")
        _set_shapes(model.graph, shapes)
        try:
            inferred = shape_inference.infer_shapes(model, data_prop=True)
        except Exception as exc:  # onnx raises its own, and ValueError for a file that is too large
            raise CannotCount(f"the shapes cannot be inferred ({' '.join(str(exc).split())[:200]})") from exc
        return 2 * _count_multiply_adds(inferred.graph)

    return count_both(count_flops, lambda: _count_parameters(model.graph))


def count_both(count_flops: Callable[[], int], count_parameters: Callable[[], int]) -> Counts:
    """What can be counted of the two, each of which may raise CannotCount."""
    counts = Counts(None, None)
    try:
        counts.flops = count_flops()
    except CannotCount as exc:
        counts.unknown["flops"] = str(exc)
    try:
        counts.parameters = count_parameters()
    except CannotCount as exc:
        counts.unknown["parameters"] = str(exc)
    return counts


def _set_shapes(graph: Any, shapes: Mapping[str, Shape]) -> None:
    """Names of free sizes in the graph would stand in the way of numbers."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if not value.type.HasField("tensor_type"):
            continue
        value.type.tensor_type.ClearField("shape")
        if value.name in shapes:
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size


def _count_multiply_adds(graph: Any) -> int:
    shapes = _known_shapes(graph)
    return sum(_multiply_adds(node, shapes) for node in graph.node)


def _known_shapes(graph: Any) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found = value.type.tensor_type
        if value.type.HasField("tensor_type") and found.HasField("shape"):
            sizes = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in found.shape.dim)
            shapes.setdefault(value.name, sizes)
    return shapes


def _multiply_adds(node: Any, shapes: Mapping[str, Shape]) -> int:
    def size(tensor: str) -> Shape:
        shape = shapes.get(tensor)
        if shape is None or -1 in shape:
            raise CannotCount(f"the shape of {tensor!r}, of {node.op_type} {node.name!r}, is not known before a run")
        return shape

    if node.domain == _ML:
        return _linear_multiply_adds(node, size)
    if (node.domain, node.op_type) in _FOREIGN_WITHOUT_PRODUCTS:
        return 0
    if node.domain not in ("", "ai.onnx") or node.op_type in _NOT_COUNTED:
        raise CannotCount(f"the operator {node.domain and node.domain + '.'}{node.op_type} is not counted")
    given, made = list(node.input), list(node.output)
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        weights = size(given[3 if node.op_type == "QLinearConv" else 1])
        return math.prod(size(made[0])) * math.prod(weights[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(size(given[0])) * math.prod(size(given[1])[1:])
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return math.prod(size(made[0])) * size(given[0])[-1]
    if node.op_type == "Gemm":
        turned = any(one.name == "transA" and one.i for one in node.attribute)
        return math.prod(size(made[0])) * size(given[0])[0 if turned else 1]
    return 0


def _linear_multiply_adds(node: Any, size: Callable[[str], Shape]) -> int:
    if node.op_type in ("LinearClassifier", "LinearRegressor"):
        rows = math.prod(size(node.input[0])[:-1])
        return rows * next((len(one.floats) for one in node.attribute if one.name == "coefficients"), 0)
    if node.op_type not in _ML_WITHOUT_PRODUCTS:
        raise CannotCount(f"the operator {_ML}.{node.op_type} is not counted")
    return 0


def _count_parameters(graph: Any) -> int:
    """Numbers that training may have set: constants with an axis, without scales of rounding, sizes and indices."""
    from onnx import TensorProto

    floats = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    nodes = list(_all_nodes(graph))
    uses: dict[str, list[tuple[str, int]]] = {}
    scales = {node.output[1] for node in nodes if node.op_type == "DynamicQuantizeLinear"}
    for node in nodes:
        if scales.intersection(node.input):
            continue  # what is multiplied with a scale of the input is that of the weights
        for place, name in enumerate(node.input):
            uses.setdefault(name, []).append((node.op_type, place))
    total = sum(_node_parameters(node) for node in nodes)
    for name, tensor in _constants(graph, nodes):
        used = uses.get(name, [])
        if tensor.data_type in floats:
            is_weight = bool(tensor.dims) and any(place not in _NO_WEIGHTS.get(kind, ()) for kind, place in used)
        else:
            is_weight = any(place in _WHOLE_WEIGHTS.get(kind, ()) for kind, place in used)
        total += math.prod(tensor.dims) if is_weight else 0
    return total


def _all_nodes(graph: Any) -> Iterator[Any]:
    """Those of graphs within the graph too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all_nodes(inner)


def _constants(graph: Any, nodes: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    graphs = [graph]
    for node in nodes:
        graphs += [one.g for one in node.attribute if one.HasField("g")]
        if node.op_type == "Constant":
            yield from ((node.output[0], one.t) for one in node.attribute if one.name == "value")
    for one in graphs:
        if one.sparse_initializer:
            raise CannotCount("sparse tensors are not counted")
        yield from ((tensor.name, tensor) for tensor in one.initializer)


def _node_parameters(node: Any) -> int:
    """Of operators that hold them in their attributes."""
    if node.domain == _ML or node.op_type == "TfIdfVectorizer":
        known = _ML_WITHOUT_PRODUCTS | {"LinearClassifier", "LinearRegressor", "TfIdfVectorizer"}
        if node.op_type not in known:
            raise CannotCount(f"what the operator {_ML}.{node.op_type} holds is not counted")
        return sum(len(one.floats) for one in node.attribute if one.name in _ML_PARAMETERS)
    if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in _FOREIGN_WITHOUT_PRODUCTS:
        raise CannotCount(f"what the operator {node.domain}.{node.op_type} holds is not counted")
    return 0
