"""Weights in fewer bits, with nothing else in the network changed: FP16, and INT4 in blocks."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.errors import InvalidContent
from app.optimize.quantization.method import BLOCK
from app.tensors import Array

# The ends of int4 are -7 and 7: symmetric, so that 0 stays 0.
_INT4_MOST = 7
# Less is not worth a node.
_LEAST_WEIGHTS = 64
_FP16_MOST = float(np.finfo(np.float16).max)


def store_in_fp16(model: onnx.ModelProto, keep_float: Sequence[str]) -> None:
    """Weights in half the bytes, cast to float once when the file is loaded: all else would be slower on a CPU.

    Raises InvalidContent where there are none worth it.
    """
    kept = {name for node in _named(model, keep_float) for name in node.input}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in kept:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _LEAST_WEIGHTS or not np.all(np.abs(values) <= _FP16_MOST):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/fp16"))
        casts.append(helper.make_node("Cast", [f"{name}/fp16"], [name], f"{name}/cast", to=TensorProto.FLOAT))
    if not casts:
        raise InvalidContent(f"the network has no weights to store in FP16, none of {_LEAST_WEIGHTS} numbers or more")
    _put_first(model, casts)


def store_in_int4(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Weights of the MatMul nodes `names` as blocks: ONNX Runtime fuses both into one kernel, MatMulNBits."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = _named(model, names)
    made = []
    for name in sorted({node.input[1] for node in products}):
        numbers, scales = quantize_blocks(numpy_helper.to_array(constants[name]))
        packed = helper.make_tensor(f"{name}/int4", TensorProto.INT4, numbers.shape, numbers.flatten())
        model.graph.initializer.extend([packed, numpy_helper.from_array(scales, f"{name}/scales")])
        inputs = [f"{name}/int4", f"{name}/scales"]
        made.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}/float"], f"{name}/float", axis=0, block_size=BLOCK)
        )
    for node in products:
        node.input[1] = f"{node.input[1]}/float"
    _put_first(model, made)


def quantize_blocks(weight: Array, block: int = BLOCK) -> tuple[Array, Array]:
    """[k, n] floats to INT4 numbers in -7…7 of the same shape, and their scales [ceil(k / block), n].

    A column's block of zeros gets the scale 1.
    """
    rows = -(-weight.shape[0] // block)
    padded = np.zeros((rows * block, weight.shape[1]), np.float32)
    padded[: weight.shape[0]] = weight
    blocks = padded.reshape(rows, block, -1)
    most = np.abs(blocks).max(axis=1)
    scales = np.where(most > 0, most / _INT4_MOST, 1).astype(np.float32)
    numbers = np.clip(np.rint(blocks / scales[:, None]), -_INT4_MOST, _INT4_MOST)
    return numbers.reshape(rows * block, -1)[: weight.shape[0]].astype(ml_dtypes.int4), scales


def _named(model: onnx.ModelProto, names: Sequence[str]) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.name in names]


def _put_first(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
