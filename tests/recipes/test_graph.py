from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from recipes.graph import CLASSES, INPUT, LOGITS, OPSET, OUTPUT, SIDE, finish, normalise


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: np.ndarray) -> Path:
    """A network that can be worked out by hand, the mean colour times a matrix, with head and tail put on."""
    folder = tmp_path_factory.mktemp("graph")
    nodes = [
        helper.make_node("ReduceMean", [INPUT, "axes"], ["mean"], keepdims=0, doc_string="made at /some/where"),
        helper.make_node("MatMul", ["mean", "weights"], [LOGITS]),
    ]
    tensors = [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.zeros(1000, np.float32), "unused"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", CLASSES])],
        tensors,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, producer_name="someone", doc_string="today", opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "network.onnx")
    finish(folder / "network.onnx", folder / "model.onnx")
    return folder / "model.onnx"


def test_normalise_is_efficientnet_lites_own() -> None:
    photo = np.array([0, 127, 255], np.uint8).reshape(1, 1, 1, 3)
    assert normalise(photo).reshape(-1).tolist() == [-127 / 128, 0.0, 1.0]


@pytest.mark.parametrize("rows", [1, 3])
def test_finished_graph_takes_bytes_and_gives_probabilities(finished: Path, weights: np.ndarray, rows: int) -> None:
    photos = np.random.default_rng(rows).integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)
    session = ort.InferenceSession(str(finished), providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: photos})
    logits = ((photos.astype(np.float64) - 127) / 128).mean(axis=(1, 2)) @ weights
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)


def test_finished_graph_says_nothing_of_its_maker(finished: Path) -> None:
    model = onnx.load(finished)
    assert (model.producer_name, model.doc_string) == ("", "")
    assert b"/some/where" not in finished.read_bytes()
    assert "unused" not in {tensor.name for tensor in model.graph.initializer}


def test_shipped_model_becomes_integer_kernels_throughout(tmp_path: Path) -> None:
    """No float pass before the last layers: the head is fused into the first convolution."""
    shipped = Path(__file__).parents[2] / "models/efficientnet-lite0/1.1.0/model.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4  # it warns that the optimised file is for this machine
    ort.InferenceSession(str(shipped), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert nodes[0].op_type == "QLinearConv"
    assert nodes[0].input[0] == INPUT
    assert sum(node.op_type == "QLinearConv" for node in nodes) == 49
    assert not [node.name for node in nodes if node.op_type in ("Conv", "Clip", "Gemm", "Cast")]
