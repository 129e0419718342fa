"""What each ONNX operator is in torch. The meaning of operators and attributes: https://onnx.ai/onnx/operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch.nn import functional

from app.optimize.networks.torch_layers import (
    Reading,
    attributes,
    read_batch_normalisation,
    read_conv,
    read_gemm,
    read_matmul,
    read_padding,
)

Operator = Callable[[Reading, onnx.NodeProto], None]
_MAX_POOLS = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
_AVERAGE_POOLS = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}
_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.BOOL: torch.bool,
}  # fmt: skip


def _clip(reading: Reading, node: onnx.NodeProto) -> None:
    said = attributes(node)
    ends = [reading.constant(node, place) for place in (1, 2)]
    low, high = (
        float(end) if end is not None else said.get(name) for end, name in zip(ends, ("min", "max"), strict=True)
    )
    reading.call(node, torch.clamp, reading.value(node.input[0]), min=low, max=high)


def _cast(reading: Reading, node: onnx.NodeProto) -> None:
    reading.call(node, cast, reading.value(node.input[0]), _DTYPES[attributes(node)["to"]])


def cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As the graph casts; floats that stand for an integer input stay floats, so that they can be differentiated."""
    return value if value.is_floating_point() and not dtype.is_floating_point else value.to(dtype)


def _dequantize(reading: Reading, node: onnx.NodeProto) -> None:
    scale, zero = reading.constant(node, 1), reading.constant(node, 2)
    if scale is None or scale.size != 1 or node.input[0] in reading.constants:
        raise ValueError("weights that are quantised already")
    reading.call(
        node, dequantize, reading.value(node.input[0]), float(scale), 0.0 if zero is None else float(zero)
    )  # fmt: skip


def dequantize(value: torch.Tensor, scale: float, zero: float) -> torch.Tensor:
    """(x - zero) · scale in FP32."""
    return (value.to(torch.float32) - zero) * scale


def _reshape(reading: Reading, node: onnx.NodeProto) -> None:
    target = reading.constant(node, 1)
    assert target is not None
    sizes = [int(size) for size in target]
    shape = reading.shapes.get(node.input[0], ())
    if len(sizes) == 2 and len(shape) > 1 and sizes[0] in (0, -1, shape[0]) and (
        sizes[1] == -1 or (-1 not in shape[1:] and sizes[1] == math.prod(shape[1:]))
    ):  # fmt: skip
        # Of any number of channels, as some may be taken out.
        reading.call(node, torch.flatten, reading.value(node.input[0]), 1)
        reading.flattened.add(node.input[1])
        return
    if 0 in sizes and attributes(node).get("allowzero", 0):
        raise ValueError("a size of 0 with allowzero")
    reading.call(node, reshape, reading.value(node.input[0]), sizes)


def reshape(value: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """0 is the size that is there, as ONNX has it."""
    return value.reshape([value.shape[place] if size == 0 else size for place, size in enumerate(sizes)])


def _flatten(reading: Reading, node: onnx.NodeProto) -> None:
    axis = attributes(node).get("axis", 1)
    if axis != 1:
        raise ValueError(f"axis {axis}")
    reading.call(node, torch.flatten, reading.value(node.input[0]), 1)


def _axes(reading: Reading, node: onnx.NodeProto) -> list[int] | None:
    """Of an attribute in old graphs, of the second input in new ones."""
    said = attributes(node)
    if "axes" in said:
        return list(said["axes"])
    given = reading.constant(node, 1)
    return None if given is None else [int(axis) for axis in given.ravel()]


def _squeeze(reading: Reading, node: onnx.NodeProto) -> None:
    axes = _axes(reading, node)
    if axes is None:
        raise ValueError("no axes: which sizes are 1 may change")
    reading.call(node, torch.squeeze, reading.value(node.input[0]), tuple(axes))


def _unsqueeze(reading: Reading, node: onnx.NodeProto) -> None:
    axes = _axes(reading, node) or []
    if len(axes) != 1:
        raise ValueError("more than one axis")
    reading.call(node, torch.unsqueeze, reading.value(node.input[0]), axes[0])


def _reducing(function: Callable[..., Any]) -> Operator:
    def read(reading: Reading, node: onnx.NodeProto) -> None:
        axes = _axes(reading, node)
        if axes is None:
            raise ValueError("no axes: rows would be mixed")
        keep = bool(attributes(node).get("keepdims", 1))
        reading.call(node, function, reading.value(node.input[0]), tuple(axes), keepdim=keep)

    return read


def _pool(kinds: Mapping[int, Callable[..., Any]]) -> Operator:
    def read(reading: Reading, node: onnx.NodeProto) -> None:
        said = attributes(node)
        kernel = said["kernel_shape"]
        axes = len(kernel)
        padding = read_padding(reading, node, said, axes)
        options: dict[str, Any] = {
            "stride": said.get("strides", [1] * axes),
            "ceil_mode": bool(said.get("ceil_mode", 0)),
        }
        if not isinstance(padding, tuple) or any(one != 1 for one in said.get("dilations", [1] * axes)):
            raise ValueError("padded on one side, or with dilations")
        if kinds is _AVERAGE_POOLS:
            options["count_include_pad"] = bool(said.get("count_include_pad", 0))
        reading.call(node, kinds[axes + 2], reading.value(node.input[0]), kernel, padding=padding, **options)

    return read


def _global_average_pool(reading: Reading, node: onnx.NodeProto) -> None:
    axes = tuple(range(2, reading.rank(node.input[0])))
    reading.call(node, torch.mean, reading.value(node.input[0]), axes, keepdim=True)


def _padding(reading: Reading, node: onnx.NodeProto) -> None:
    said = attributes(node)
    pads, filler = reading.constant(node, 1), reading.constant(node, 2)
    if pads is None or said.get("mode", "constant") != "constant" or len(node.input) > 3:
        raise ValueError("only constant padding of all axes is known")
    half = len(pads) // 2
    around = [int(size) for pair in zip(reversed(pads[:half]), reversed(pads[half:]), strict=True) for size in pair]
    reading.call(
        node, functional.pad, reading.value(node.input[0]), around, value=0.0 if filler is None else float(filler)
    )


def _concat(reading: Reading, node: onnx.NodeProto) -> None:
    reading.call(node, torch.cat, [reading.value(name) for name in node.input], attributes(node)["axis"])


def _transpose(reading: Reading, node: onnx.NodeProto) -> None:
    order = attributes(node).get("perm") or list(reversed(range(reading.rank(node.input[0]))))
    reading.call(node, torch.permute, reading.value(node.input[0]), list(order))


def _gelu(reading: Reading, node: onnx.NodeProto) -> None:
    reading.call(
        node, functional.gelu, reading.value(node.input[0]), approximate=attributes(node).get("approximate", "none")
    )


def _leaky_relu(reading: Reading, node: onnx.NodeProto) -> None:
    reading.call(node, functional.leaky_relu, reading.value(node.input[0]), attributes(node).get("alpha", 0.01))


def _hard_sigmoid(reading: Reading, node: onnx.NodeProto) -> None:
    said = attributes(node)
    reading.call(node, hard_sigmoid, reading.value(node.input[0]), said.get("alpha", 0.2), said.get("beta", 0.5))


def hard_sigmoid(value: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """max(0, min(1, alpha · x + beta))."""
    return torch.clamp(alpha * value + beta, 0, 1)


def _softmax(function: Callable[..., Any]) -> Operator:
    def read(reading: Reading, node: onnx.NodeProto) -> None:
        reading.call(node, function, reading.value(node.input[0]), dim=attributes(node).get("axis", -1))

    return read


def _elementwise(function: Callable[..., Any]) -> Operator:
    def read(reading: Reading, node: onnx.NodeProto) -> None:
        reading.call(node, function, *(reading.value(name) for name in node.input))

    return read


def _same(reading: Reading, node: onnx.NodeProto) -> None:
    reading.values[node.output[0]] = reading.value(node.input[0])


OPERATORS: Mapping[str, Operator] = {
    "Conv": read_conv, "Gemm": read_gemm, "MatMul": read_matmul,
    "BatchNormalization": read_batch_normalisation,
    "Clip": _clip, "Cast": _cast, "DequantizeLinear": _dequantize, "Reshape": _reshape, "Flatten": _flatten,
    "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Transpose": _transpose, "Concat": _concat, "Pad": _padding,
    "ReduceMean": _reducing(torch.mean), "ReduceSum": _reducing(torch.sum),
    "MaxPool": _pool(_MAX_POOLS), "AveragePool": _pool(_AVERAGE_POOLS), "GlobalAveragePool": _global_average_pool,
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax), "Gelu": _gelu,
    "LeakyRelu": _leaky_relu, "HardSigmoid": _hard_sigmoid,
    "Add": _elementwise(torch.add), "Sub": _elementwise(torch.sub), "Mul": _elementwise(torch.mul),
    "Div": _elementwise(torch.div), "Pow": _elementwise(torch.pow), "Sqrt": _elementwise(torch.sqrt),
    "Exp": _elementwise(torch.exp), "Log": _elementwise(torch.log), "Neg": _elementwise(torch.neg),
    "Abs": _elementwise(torch.abs), "Erf": _elementwise(torch.erf), "Relu": _elementwise(torch.relu),
    "Sigmoid": _elementwise(torch.sigmoid), "Tanh": _elementwise(torch.tanh),
    "HardSwish": _elementwise(functional.hardswish), "Identity": _same, "Dropout": _same,
}  # fmt: skip
