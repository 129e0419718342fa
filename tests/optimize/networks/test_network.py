"""ONNX graphs read into torch answer as ONNX Runtime does, and go back with other weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest
import torch
import torch_pruning
from onnx import TensorProto, helper, numpy_helper

from app.errors import InvalidContent
from app.optimize.networks.onnx_graph import open_float
from app.optimize.networks.torch_network import Network, read_network, write_weights
from app.tensors import Array
from tests.running import ROOT

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(6, 4, 3, 3)).astype(np.float32)


def _model(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[Any], datatype: int = TensorProto.FLOAT, **constants: Array
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", datatype, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _node(operator: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"the_{operator}_{output}", **attributes)


def _run(model: onnx.ModelProto | bytes, x: Array) -> Array:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return np.asarray(ort.InferenceSession(data, options).run(None, {"x": x})[0])


def _torch(network: Network, x: Array) -> Array:
    with torch.no_grad():
        return np.asarray(network.module(torch.from_numpy(x)))


def _i(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


PHOTO = ("batch", 4, 9, 9)
OPERATORS: list[tuple[onnx.NodeProto, Sequence[Any], dict[str, Array]]] = [
    (_node("Conv", "x", "w"), PHOTO, {"w": WEIGHTS}),
    (_node("Conv", "x", "w", "b", strides=[2, 2], pads=[1, 1, 1, 1]), PHOTO, {"w": WEIGHTS, "b": WEIGHTS[:, 0, 0, 0]}),
    (_node("Conv", "x", "w", pads=[0, 0, 1, 2], strides=[2, 1]), PHOTO, {"w": WEIGHTS}),
    (_node("Conv", "x", "w", group=2, dilations=[2, 2]), PHOTO, {"w": WEIGHTS[:, :2]}),
    (_node("Conv", "x", "w", pads=[1, 1]), ("batch", 4, 9), {"w": WEIGHTS[:, :, 0]}),
    (_node("Gemm", "x", "w", "b"), ("batch", 4), {"w": WEIGHTS[0, :, 0], "b": WEIGHTS[0, 0, 0]}),
    (_node("Gemm", "x", "w", transB=1), ("batch", 4), {"w": WEIGHTS[:, :, 0, 0]}),
    (_node("MatMul", "x", "w"), ("batch", 5, 4), {"w": WEIGHTS[0, :, 0]}),
    (_node("MatMul", "x", "w"), ("batch", 2, 4), {"w": WEIGHTS[0, None, :, 0]}),
    (
        _node("BatchNormalization", "x", "s", "b", "m", "v", epsilon=0.01),
        PHOTO,
        {"s": WEIGHTS[0, :, 0, 0], "b": WEIGHTS[1, :, 0, 0], "m": WEIGHTS[2, :, 0, 0], "v": WEIGHTS[3, :, 0, 0] ** 2},
    ),
    (_node("Clip", "x", "low", "high"), PHOTO, {"low": np.float32(-0.5), "high": np.float32(0.25)}),
    (_node("Clip", "x", "", "high"), PHOTO, {"high": np.float32(0.25)}),
    (_node("Reshape", "x", "s"), PHOTO, {"s": _i(-1, 4 * 81)}),
    (_node("Reshape", "x", "s"), PHOTO, {"s": _i(0, 2, -1)}),
    (_node("Flatten", "x"), PHOTO, {}),
    (_node("Squeeze", "x", "a"), ("batch", 4, 1, 1), {"a": _i(2, 3)}),
    (_node("Unsqueeze", "x", "a"), ("batch", 4), {"a": _i(1)}),
    (_node("Transpose", "x", perm=[0, 3, 1, 2]), ("batch", 9, 9, 4), {}),
    (_node("Transpose", "x"), (3, 4), {}),
    (_node("Concat", "x", "x", axis=1), PHOTO, {}),
    (_node("Pad", "x", "p", "v"), PHOTO, {"p": _i(0, 0, 1, 2, 0, 0, 3, 0), "v": np.float32(0.5)}),
    (_node("ReduceMean", "x", "a", keepdims=0), PHOTO, {"a": _i(2, 3)}),
    (_node("ReduceSum", "x", "a"), PHOTO, {"a": _i(-1)}),
    (_node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), PHOTO, {}),
    (_node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), PHOTO, {}),
    (_node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), PHOTO, {}),
    (_node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), PHOTO, {}),
    (_node("GlobalAveragePool", "x"), PHOTO, {}),
    (_node("Softmax", "x", axis=1), PHOTO, {}),
    (_node("LogSoftmax", "x"), PHOTO, {}),
    (_node("Gelu", "x", approximate="tanh"), PHOTO, {}),
    (_node("LeakyRelu", "x", alpha=0.2), PHOTO, {}),
    (_node("HardSigmoid", "x", alpha=0.3), PHOTO, {}),
    *((_node(name, "x"), PHOTO, {}) for name in ("Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Abs", "Erf", "HardSwish")),
    *((_node(name, "x", "c"), PHOTO, {"c": WEIGHTS[0, :, :1, :1]}) for name in ("Add", "Sub", "Mul", "Div")),
    (_node("Pow", "x", "c"), PHOTO, {"c": np.float32(2)}),
    (_node("Cast", "x", to=TensorProto.FLOAT), PHOTO, {}),
    (_node("Identity", "x"), PHOTO, {}),
]


@pytest.mark.parametrize(
    ("node", "shape", "constants"),
    OPERATORS,
    ids=[f"{place}-{case[0].op_type}" for place, case in enumerate(OPERATORS)],
)
def test_operator_answers_as_onnx_runtime(
    node: onnx.NodeProto, shape: Sequence[Any], constants: dict[str, Array]
) -> None:
    model = _model([node], shape, **constants)
    x = RNG.normal(size=[3 if size == "batch" else size for size in shape]).astype(np.float32)
    network = read_network(model)
    expected = _run(model, x)
    np.testing.assert_allclose(_torch(network, x), expected, atol=2e-5)
    np.testing.assert_array_equal(_run(write_weights(network, model), x), expected)


def _digits() -> tuple[onnx.ModelProto, Array]:
    model = open_float(Path(ROOT, "models", "digits", "1.1.0", "model.onnx"))
    return model, RNG.uniform(0, 16, (20, 64)).astype(np.float32)


def _in_order(model: onnx.ModelProto, x: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def test_shipped_digits_answer_the_same_and_their_weights_go_back_unchanged() -> None:
    model, x = _digits()
    network = read_network(model)
    np.testing.assert_allclose(_torch(network, x), _in_order(model, x), atol=1e-6)
    assert write_weights(network, model) == model.SerializeToString(deterministic=True)
    assert len(network.layers) == 2


def test_trained_weights_are_those_of_the_file() -> None:
    model, x = _digits()
    network = read_network(model)
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter.mul_(1.5)
    written = onnx.load_from_string(write_weights(network, model))
    np.testing.assert_allclose(_torch(network, x), _in_order(written, x), atol=1e-4)
    assert np.abs(_in_order(written, x) - _in_order(model, x)).max() > 0.01


def test_gradient_of_a_photo_in_bytes_is_that_of_differences() -> None:
    nodes = [
        _node("DequantizeLinear", "x", "scale", "zero", output="a"),
        _node("Conv", "a", "w", output="b"),
        _node("GlobalAveragePool", "b"),
    ]
    model = _model(
        nodes, PHOTO, TensorProto.UINT8, w=WEIGHTS, scale=np.float32(1 / 128), zero=np.uint8(127)
    )  # fmt: skip
    network = read_network(model)
    x = RNG.integers(10, 240, (2, 4, 9, 9)).astype(np.uint8)
    np.testing.assert_allclose(_torch(network, x), _run(model, x), atol=1e-6)
    floats = torch.from_numpy(x.astype(np.float32)).requires_grad_()
    (gradient,) = torch.autograd.grad(network.module(floats)[:, 0].sum(), floats)
    moved = x.copy()
    moved[:, 1, 4, 4] += 4
    difference = (_run(model, moved) - _run(model, x))[:, 0].ravel() / 4
    np.testing.assert_allclose(gradient[:, 1, 4, 4].numpy(), difference, rtol=1e-3, atol=1e-3)


def test_channels_taken_out_of_convolutions_go_back_into_the_file() -> None:
    depth = RNG.normal(size=(6, 1, 3, 3)).astype(np.float32)
    nodes = [
        _node("Conv", "x", "w", "bias", output="a"),
        _node("Relu", "a", output="b"),
        _node("Conv", "b", "depth", output="c", group=6),
        _node("BatchNormalization", "c", "one", "bias", "bias", "one", output="d"),
        _node("Reshape", "d", "rows", output="e", allowzero=1),
        _node("Gemm", "e", "dense"),
    ]
    bias = RNG.normal(size=6).astype(np.float32)
    model = _model(
        nodes, PHOTO, w=WEIGHTS, bias=bias, depth=depth, one=np.ones(6, np.float32), rows=_i(-1, 150),
        dense=RNG.normal(size=(150, 3)).astype(np.float32),
    )  # fmt: skip
    x = RNG.normal(size=(3, 4, 9, 9)).astype(np.float32)
    network = read_network(model)
    (last,) = (network.module.get_submodule(name) for name, node in network.layers.items() if "Gemm" in node)
    torch_pruning.pruner.MetaPruner(
        network.module, torch.from_numpy(x), importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=0.5, ignored_layers=[last],
    ).step()  # fmt: skip
    pruned = onnx.load_from_string(write_weights(network, model))
    np.testing.assert_allclose(_run(pruned, x), _torch(network, x), rtol=1e-4, atol=1e-3)  # of values up to 300
    shapes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    assert shapes["w"] == [3, 4, 3, 3]
    assert shapes["dense"] == [75, 3]


def test_layers_that_share_weights_are_each_their_own_when_trained() -> None:
    square = WEIGHTS[0, :, :, 0] @ np.ones((3, 4), np.float32)
    model = _model([_node("Gemm", "x", "w", output="a"), _node("Gemm", "a", "w")], ("batch", 4), w=square)
    network = read_network(model)
    with torch.no_grad():
        network.module.layer_1.weight.zero_()
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    written = onnx.load_from_string(write_weights(network, model))
    np.testing.assert_array_equal(_run(written, x), np.zeros((2, 4)))
    assert np.abs(numpy_helper.to_array(written.graph.initializer[0])).max() > 0


def test_weights_in_constant_nodes_go_back_as_initialisers() -> None:
    weight = numpy_helper.from_array(WEIGHTS[0, :, 0], "value")
    model = _model([_node("Constant", output="w", value=weight), _node("MatMul", "x", "w")], ("batch", 4))
    network = read_network(model)
    with torch.no_grad():
        network.module.layer_0.weight.mul_(2)
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(_run(write_weights(network, model), x), 2 * _run(model, x), rtol=1e-6)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            _node("Einsum", "x", equation="bchw->bc"),
            r"Einsum \(the_Einsum_y\): this operator cannot be read into torch",
        ),
        (_node("Conv", "x", "x"), r"Conv \(the_Conv_y\): .* 'x' is no constant"),
        (_node("Conv", "x", "w", auto_pad="SAME_UPPER"), "auto_pad SAME_UPPER: write pads instead"),
        (_node("ReduceMean", "x"), "no axes: rows would be mixed"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_node(node: onnx.NodeProto, said: str) -> None:
    with pytest.raises(InvalidContent, match=said):
        read_network(_model([node], PHOTO, w=WEIGHTS))
