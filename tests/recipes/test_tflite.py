"""The shipped TFLite model beside the ONNX one, and the head that its recipe puts on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from app import load
from app.runtimes.tflite import TfliteRuntime
from app.tensors import TensorSpec
from recipes import graph, portability, tflite_conversion
from tests.fixtures_tflite import Network, Node, tflite_file
from tests.recipes.foolbox_photos import foolbox_photos

MODELS = Path(__file__).parents[2] / "models"
TFLITE, ONNX = MODELS / "efficientnet-lite0-tflite/1.0.0", MODELS / "efficientnet-lite0/1.1.0"
PIXELS = np.array([[0, 127, 128, 255]], np.uint8)
ADDED = np.array([1, 2, 3, 4], np.float32)

FLOAT = Network(
    {"args_0": ("FP32", [1, 4]), "sum": ("FP32", [1, 4])},
    ["args_0"],
    ["sum"],
    [Node("ADD", ["args_0", "added"], ["sum"])],
    {"added": ADDED},
    signature={"sum": "probabilities"},
)
INT8 = Network(
    {"args_0": ("FP32", [1, 4]), "levels": ("INT8", [1, 4]), "float": ("FP32", [1, 4]), "sum": ("FP32", [1, 4])},
    ["args_0"],
    ["sum"],
    [
        Node("QUANTIZE", ["args_0"], ["levels"]),
        Node("DEQUANTIZE", ["levels"], ["float"]),
        Node("ADD", ["float", "added"], ["sum"]),
    ],
    {"added": ADDED},
    {"levels": (1 / 128, -1)},
    {"sum": "probabilities"},
)


@pytest.mark.parametrize("network", [FLOAT, INT8], ids=["float", "int8"])
def test_finished_network_takes_pixels(tmp_path: Path, network: Network) -> None:
    """What (x - 127) / 128 is stands in recipes/graph.py too: the two formats must agree on it."""
    runtime = TfliteRuntime(_finish(tmp_path, network), 1)
    assert runtime.inputs == (TensorSpec("image", "UINT8", (1, 4)),)
    assert runtime.outputs == (TensorSpec("probabilities", "FP32", (1, 4)),)
    answer = runtime.run({"image": PIXELS})["probabilities"]
    np.testing.assert_array_equal(answer, (PIXELS.astype(np.float32) - 127) / 128 + ADDED)
    assert (tflite_conversion.PIXEL_SCALE, tflite_conversion.PIXEL_ZERO_POINT) == (
        graph.PIXEL_SCALE,
        graph.PIXEL_ZERO_POINT,
    )


@pytest.mark.parametrize("network", [FLOAT, INT8], ids=["float", "int8"])
def test_finished_network_has_no_names_of_its_maker(tmp_path: Path, network: Network) -> None:
    content = _finish(tmp_path, network).read_bytes()
    assert b"args_0" not in content
    assert b"levels" not in content


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
    """Two INT8 versions of one network, rounded differently: on the 300 evaluation photos 285 labels are the same."""
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


def _finish(tmp_path: Path, network: Network) -> Path:
    made, finished = tmp_path / "made.tflite", tmp_path / "finished.tflite"
    made.write_bytes(tflite_file(network))
    tflite_conversion.finish(made, finished)
    return finished
