"""Multiply-adds and parameters of a TFLite file, from the operators and tensors in it.

The schema is the one that LiteRT carries: https://ai.google.dev/edge/litert, `schema.fbs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.optimize.profiling.counts import CannotCount, Counts, Shape, count_both
from app.runtimes.packed import read_model_file

# Operators with numbers up to this one were looked at.
_NEWEST_OPERATOR = 161
# Sums of products that are not counted, graphs within the graph, and what only its maker knows.
_NOT_COUNTED = frozenset({
    "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "CALL", "CALL_ONCE", "CONV_3D_TRANSPOSE", "CUSTOM",
    "DELEGATE", "EMBEDDING_LOOKUP_SPARSE", "IF", "LSH_PROJECTION", "LSTM", "RFFT2D", "RNN", "SVDF",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "WHILE",
})  # fmt: skip
_FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")


def count_tflite(path: Path) -> Counts:
    """Of one row: sizes that are free are one, and must be in the first place."""
    from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]

    model = schema.Model.GetRootAs(read_model_file(path), 0)
    graph = model.Subgraphs(0)
    numbers = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    types = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}

    def count_flops() -> int:
        total = 0
        for place in range(graph.OperatorsLength()):
            operator = graph.Operators(place)
            code = model.OperatorCodes(operator.OpcodeIndex())
            # Files of before 2020 have it in the one, later ones in both.
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            total += _multiply_adds(numbers.get(number, f"number {number}"), number, operator, graph)
        return 2 * total

    def count_parameters() -> int:
        if model.SubgraphsLength() > 1:
            raise CannotCount("graphs within the graph are not counted")
        return sum(sizes for sizes in _weights(model, graph, types))

    return count_both(count_flops, count_parameters)


def _multiply_adds(name: str, number: int, operator: Any, graph: Any) -> int:
    if name in _NOT_COUNTED or number > _NEWEST_OPERATOR:
        raise CannotCount(f"the operator {name} is not counted")

    def given(place: int) -> Shape:
        return _shape(graph.Tensors(operator.Inputs(place)), name)

    def made() -> int:
        return math.prod(_shape(graph.Tensors(operator.Outputs(0)), name))

    counted: dict[str, Callable[[], int]] = {
        "CONV_2D": lambda: made() * math.prod(given(1)[1:]),  # weights: out, height, width, in
        "DEPTHWISE_CONV_2D": lambda: made() * math.prod(given(1)[1:3]),  # weights: 1, height, width, out
        "CONV_3D": lambda: made() * math.prod(given(1)[:4]),  # weights: depth, height, width, in, out
        "FULLY_CONNECTED": lambda: made() * given(1)[-1],  # weights: out, in
        # output shape, weights (out, height, width, in), input
        "TRANSPOSE_CONV": lambda: math.prod(given(2)) * math.prod(given(1)[:3]),
        "BATCH_MATMUL": lambda: made() * _contracted(operator, given(0)),
    }
    return counted[name]() if name in counted else 0


def _contracted(operator: Any, left: Shape) -> int:
    from ai_edge_litert import schema_py_generated as schema

    options, found = schema.BatchMatMulOptions(), operator.BuiltinOptions()
    if found is None:
        return left[-1]
    options.Init(found.Bytes, found.Pos)
    return left[-2 if options.AdjX() else -1]


def _shape(tensor: Any, operator: str) -> Shape:
    if tensor.ShapeSignatureLength() and -1 in tensor.ShapeSignatureAsNumpy()[1:]:
        raise CannotCount(f"the shape of {tensor.Name().decode()!r}, of {operator}, is not known before a run")
    return tuple(int(size) for size in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()


def _weights(model: Any, graph: Any, types: dict[int, str]) -> Iterator[int]:
    """How many numbers each constant tensor has that training may have set; one that two tensors share counts once.

    Of whole numbers these are those with a scale, so that sizes and indices are none.
    """
    seen = set()
    for place in range(graph.TensorsLength()):
        tensor = graph.Tensors(place)
        number = tensor.Buffer()
        buffer = model.Buffers(number)
        if not (buffer.DataLength() or buffer.Offset() > 1) or number in seen or not tensor.ShapeLength():
            continue
        rounding = tensor.Quantization()
        if types[tensor.Type()] in _FLOATS or (rounding is not None and rounding.ScaleLength()):
            seen.add(number)
            yield math.prod(_shape(tensor, "a constant"))
