"""The shipped TFLite model beside the ONNX one, and the head that its recipe puts on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from app import load
from app.optimize.networks.tflite_file import read_tflite, write_tflite
from app.optimize.quantization import tflite_graph
from app.runtimes.tflite import TfliteRuntime
from app.tensors import TensorSpec
from recipes import portability, tflite_conversion
from tests.fixtures_tflite import Network, Node, tflite_file
from tests.recipes.foolbox_photos import foolbox_photos

MODELS = Path(__file__).parents[2] / "models"
TFLITE, ONNX = MODELS / "efficientnet-lite0-tflite/1.0.0", MODELS / "efficientnet-lite0/1.1.0"
PIXELS = np.array([[0, 127, 128, 255]], np.uint8)
ADDED = np.array([1, 2, 3, 4], np.float32)

CONVERTED = Network(
    {"args_0": ("FP32", [1, 4]), "place/of/a/class": ("FP32", [1, 4]), "sum": ("FP32", [1, 4])},
    ["args_0"],
    ["sum"],
    [Node("ADD", ["args_0", "added"], ["place/of/a/class"]), Node("ADD", ["place/of/a/class", "added"], ["sum"])],
    {"added": ADDED},
    signature={"sum": "probabilities"},
)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    model = read_tflite(tflite_file(CONVERTED))
    tflite_conversion.attach_pixels(model)
    tflite_conversion.name_inner_tensors(model)
    path = tmp_path / "model.tflite"
    path.write_bytes(write_tflite(model))
    return path


def test_network_takes_pixels_as_efficientnet_lite_normalises_them(finished: Path) -> None:
    runtime = TfliteRuntime(finished, 1)
    assert runtime.inputs == (TensorSpec("image", "UINT8", (1, 4)),)
    assert runtime.outputs == (TensorSpec("probabilities", "FP32", (1, 4)),)
    answer = runtime.run({"image": PIXELS})["probabilities"]
    np.testing.assert_array_equal(answer, (PIXELS.astype(np.float32) - 127) / 128 + ADDED + ADDED)


def test_network_has_no_names_of_its_maker(finished: Path) -> None:
    (graph,) = read_tflite(finished.read_bytes()).subgraphs
    assert {tensor.name for tensor in graph.tensors} == {
        b"image", b"dequantize_0", b"add_1", b"t3", b"probabilities"
    }  # fmt: skip


def test_bytes_of_a_photo_go_into_the_shipped_network_without_floats() -> None:
    model = read_tflite((TFLITE / "model.tflite").read_bytes())
    (graph,) = model.subgraphs
    kinds = [tflite_graph.code_of(model, operator) for operator in graph.operators]
    assert kinds[:2] == [schema.BuiltinOperator.QUANTIZE, schema.BuiltinOperator.CONV_2D]
    assert list(graph.operators[0].inputs) == list(graph.inputs)


def test_biases_of_the_shipped_file_fit() -> None:
    """ai-edge-quantizer cuts off those that do not, at the ends of 32 bits."""
    model = read_tflite((TFLITE / "model.tflite").read_bytes())
    (graph,) = model.subgraphs
    biases = [
        tflite_graph.constant(model, tensor) for tensor in graph.tensors if tensor.type == schema.TensorType.INT32
    ]
    values = [bias.astype(np.int64) for bias in biases if bias is not None and bias.ndim == 1 and bias.size > 4]
    assert len(values) == 49
    assert max(int(np.abs(bias).max()) for bias in values) < 2**31 - 1


def test_weights_of_the_shipped_file_are_aligned() -> None:
    """As the schema asks: else vector instructions of some CPUs are slow, or fault."""
    content = (TFLITE / "model.tflite").read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    starts = []
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if buffer.DataLength():
            starts.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert len(starts) > 50
    assert {start % 16 for start in starts} == {0}


def test_shipped_file_is_small() -> None:
    assert (TFLITE / "model.tflite").stat().st_size < 6_000_000


def test_same_names_of_classes_as_onnx() -> None:
    assert (TFLITE / "labels.txt").read_bytes() == (ONNX / "labels.txt").read_bytes()


def test_same_labels_as_onnx() -> None:
    """Two INT8 versions of one network, rounded differently: on the 300 evaluation photos 286 labels are the same."""
    paths = foolbox_photos()
    rows = [load(name, models=MODELS).predict(paths, top_k=1) for name in (TFLITE.parent.name, ONNX.parent.name)]
    same = [one[0].label == other[0].label for one, other in zip(*rows, strict=True)]
    assert len(same) == 20
    assert sum(same) >= 19


@pytest.mark.slow
def test_same_answers_without_vnni() -> None:
    """Needs qemu-user-static. Its weights have all 8 bits: XNNPACK does not saturate in 16."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)
    result = portability.compare(TFLITE / "model.tflite", pixels)
    assert (result.n, result.equal) == (5, 5)
    assert result.largest_difference < 1e-4
