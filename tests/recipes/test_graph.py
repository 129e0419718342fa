from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.registry.manifest import read_manifest
from recipes.graph import CLASSES, INPUT, OUTPUT, SIDE, attach_pixels

SHIPPED = Path(__file__).parents[2] / "models/efficientnet-lite0/1.1.0"


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def with_pixels(weights: np.ndarray) -> onnx.ModelProto:
    """A network that can be worked out by hand, the mean colour times a matrix, with the head put on."""
    nodes = [
        helper.make_node("ReduceMean", [INPUT, "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], [OUTPUT]),
    ]
    tensors = [numpy_helper.from_array(np.array([2, 3]), "axes"), numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    attach_pixels(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("rows", [1, 3])
def test_graph_takes_bytes_as_efficientnet_lite_normalises_them(
    with_pixels: onnx.ModelProto, weights: np.ndarray, rows: int
) -> None:
    photos = np.random.default_rng(rows).integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)
    session = ort.InferenceSession(with_pixels.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: photos})
    expected = ((photos.astype(np.float64) - 127) / 128).mean(axis=(1, 2)) @ weights
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_shipped_model_becomes_integer_kernels_throughout(tmp_path: Path) -> None:
    """No float pass before the last layers: the head is fused into the first convolution."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4  # it warns that the optimised file is for this machine
    ort.InferenceSession(str(SHIPPED / "model.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert nodes[0].op_type == "QLinearConv"
    assert nodes[0].input[0] == INPUT
    assert sum(node.op_type == "QLinearConv" for node in nodes) == 49
    assert not [node.name for node in nodes if node.op_type in ("Conv", "Clip", "Gemm", "Cast")]


def test_shipped_model_says_nothing_of_its_maker() -> None:
    model = onnx.load(SHIPPED / "model.onnx")
    assert (model.producer_name, model.doc_string, list(model.metadata_props)) == ("", "", [])
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    assert read_manifest(SHIPPED).files["model.onnx"].bytes < 5_100_000
