"""FLOPs and parameters: against torch's own counter, by hand, and of one network in two formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from app.optimize.profiling.counts import count_onnx
from app.optimize.profiling.counts_tflite import count_tflite
from app.runtimes.packed import pack
from tests.fixtures_models import onnx_bytes, onnx_file
from tests.fixtures_tflite import Network, Node, tflite_bytes, tflite_file
from tests.running import ROOT

DIGITS = ROOT / "models" / "digits"
SHAPES = {"pixels": (1, 64)}


def _values(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _write(tmp_path: Path, content: bytes, name: str = "model.onnx") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def _convolutions() -> bytes:
    """[1, 3, 17, 20] to 8 channels by stride 2, each channel alone, back by ConvTranspose, two matrix products."""
    return onnx_file(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w2"], ["c"], group=8),
            helper.make_node("ConvTranspose", ["c", "w3"], ["d"], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["d"], ["e"]),
            helper.make_node("Flatten", ["e"], ["f"]),
            helper.make_node("Gemm", ["f", "w4", "b4"], ["g"], transB=1),
            helper.make_node("MatMul", ["g", "w5"], ["y"]),
        ],
        [("x", "FP32", ["n", 3, "height", "width"])],
        [("y", "FP32", ["n", 5])],
        {
            "w1": _values(8, 3, 3, 3), "b1": _values(8), "w2": _values(8, 1, 3, 3), "w3": _values(8, 6, 2, 2),
            "w4": _values(7, 6), "b4": _values(7), "w5": _values(7, 5),
        },
    )  # fmt: skip


def _torch_flops() -> int:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, groups=8, bias=False),
        torch.nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(6, 7), torch.nn.Linear(7, 5, bias=False),
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 17, 20))
    return int(counter.get_total_flops())


def test_flops_equal_those_of_torch(tmp_path: Path) -> None:
    counts = count_onnx(_write(tmp_path, _convolutions()), {"x": (1, 3, 17, 20)})
    assert counts.flops == _torch_flops()
    assert counts.parameters == 8 * 27 + 8 + 8 * 9 + 8 * 6 * 4 + 42 + 7 + 35
    assert counts.unknown == {}


def test_one_network_in_two_formats_has_the_same_counts() -> None:
    photo = {"image": (1, 224, 224, 3)}
    of_onnx = count_onnx(ROOT / "models/efficientnet-lite0/1.1.0/model.onnx", photo)
    of_tflite = count_tflite(ROOT / "models/efficientnet-lite0-tflite/1.0.0/model.tflite")
    assert of_onnx == of_tflite
    # Its makers publish 407 M multiply-adds and 4.7 M parameters.
    assert of_onnx.flops == pytest.approx(2 * 407e6, rel=0.06)
    assert of_onnx.parameters == pytest.approx(4.7e6, rel=0.02)


def test_digits_by_hand() -> None:
    """A linear classifier that keeps its weights in an attribute, and a perceptron; both scale the pixels first."""
    linear = count_onnx(DIGITS / "1.0.0" / "model.onnx", SHAPES)
    assert (linear.flops, linear.parameters) == (2 * 64 * 10, 640 + 10 + 2 * 64)
    perceptron = count_onnx(DIGITS / "1.1.0" / "model.onnx", SHAPES)
    assert (perceptron.flops, perceptron.parameters) == (2 * (6400 + 1000), 6400 + 100 + 1000 + 10 + 2 * 64)


def test_rounding_changes_neither_flops_nor_parameters(tmp_path: Path) -> None:
    source, rows = DIGITS / "1.1.0" / "model.onnx", np.random.default_rng(0).uniform(0, 16, (20, 64))
    expected = count_onnx(source, SHAPES)
    for scheme in _schemes(source):
        made = scheme(tmp_path, [{"pixels": row[np.newaxis].astype(np.float32)} for row in rows])
        assert count_onnx(made, SHAPES) == expected


def _schemes(source: Path) -> list[Any]:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, rows: list[Any]) -> None:
            self._rows = iter(rows)

        def get_next(self) -> Any:
            return next(self._rows, None)

    def static(folder: Path, rows: list[Any]) -> Path:
        quantization.quantize_static(source, folder / "static.onnx", Reader(rows), per_channel=True)
        return folder / "static.onnx"

    def operators(folder: Path, rows: list[Any]) -> Path:
        form = quantization.QuantFormat.QOperator
        quantization.quantize_static(
            source, folder / "operators.onnx", Reader(rows), quant_format=form, op_types_to_quantize=["MatMul"]
        )
        return folder / "operators.onnx"

    def dynamic(folder: Path, _: list[Any]) -> Path:
        quantization.quantize_dynamic(source, folder / "dynamic.onnx", per_channel=True)
        return folder / "dynamic.onnx"

    return [static, operators, dynamic]


def test_packed_file_has_the_counts_of_the_file(tmp_path: Path) -> None:
    content = (DIGITS / "1.1.0" / "model.onnx").read_bytes()
    packed = _write(tmp_path, pack(content), "model.onnx.gz")
    assert count_onnx(packed, SHAPES) == count_onnx(DIGITS / "1.1.0" / "model.onnx", SHAPES)


def _with_node(node: onnx.NodeProto, domain: str) -> bytes:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(_values(3, 2), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)] if domain else [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets).SerializeToString()
    return data


@pytest.mark.parametrize(
    ("node", "domain", "flops", "parameters"),
    [
        (
            helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik"),
            "",
            "the operator Einsum is not counted",
            None,
        ),
        (
            helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft"),
            "com.microsoft",
            "the operator com.microsoft.FusedMatMul is not counted",
            "what the operator com.microsoft.FusedMatMul holds is not counted",
        ),
        (
            helper.make_node("SVMRegressor", ["x"], ["y"], domain="ai.onnx.ml"),
            "ai.onnx.ml",
            "the operator ai.onnx.ml.SVMRegressor is not counted",
            "what the operator ai.onnx.ml.SVMRegressor holds is not counted",
        ),
    ],
)
def test_what_cannot_be_counted_has_a_reason(
    tmp_path: Path, node: onnx.NodeProto, domain: str, flops: str, parameters: str | None
) -> None:
    counts = count_onnx(_write(tmp_path, _with_node(node, domain)), {"x": (1, 3)})
    assert counts.flops is None
    assert counts.unknown["flops"] == flops
    assert counts.unknown.get("parameters") == parameters
    assert counts.parameters == (6 if parameters is None else None)


def test_size_that_only_a_run_tells_is_not_guessed(tmp_path: Path) -> None:
    content = onnx_file(
        [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Cast", ["places"], ["float"], to=1),
         helper.make_node("MatMul", ["w", "float"], ["y"])],
        [("x", "FP32", [-1, 3])], [("y", "FP32", [4, -1])], {"w": _values(4, 2)},
    )  # fmt: skip
    counts = count_onnx(_write(tmp_path, content), {"x": (1, 3)})
    assert counts.flops is None
    assert counts.unknown["flops"] == "the shape of 'y', of MatMul '', is not known before a run"


def test_newer_opset_is_not_guessed(tmp_path: Path) -> None:
    model = onnx.load_from_string(onnx_bytes("double"))
    model.opset_import[0].version = 999
    counts = count_onnx(_write(tmp_path, model.SerializeToString()), {"x": ()})
    assert "the file is of opset 999" in counts.unknown["flops"]


def test_graph_within_the_graph_is_not_counted(tmp_path: Path) -> None:
    counts = count_onnx(_write(tmp_path, onnx_bytes("count")), {"to": ()})
    assert (counts.flops, counts.unknown["flops"]) == (None, "the operator Loop is not counted")
    assert counts.parameters == 0


def test_tflite_by_hand(tmp_path: Path) -> None:
    network = Network(
        {"x": ("FP32", [-1, 4]), "y": ("FP32", [-1, 3])},
        ["x"], ["y"], [Node("FULLY_CONNECTED", ["x", "w", "b"], ["y"], {"type": "FullyConnectedOptions"})],
        {"w": _values(3, 4), "b": _values(3)},
    )  # fmt: skip
    counts = count_tflite(_write(tmp_path, tflite_file(network), "model.tflite"))
    assert (counts.flops, counts.parameters, counts.unknown) == (2 * 3 * 4, 3 * 4 + 3, {})


def test_tflite_sizes_and_custom_operators(tmp_path: Path) -> None:
    turned = count_tflite(_write(tmp_path, tflite_bytes("turned"), "model.tflite"))
    assert (turned.flops, turned.parameters) == (0, 0)
    custom = Network({"x": ("FP32", [1, 2]), "y": ("FP32", [1, 2])}, ["x"], ["y"], [Node("Mine", ["x"], ["y"])])
    counts = count_tflite(_write(tmp_path, tflite_file(custom), "model.tflite"))
    assert (counts.flops, counts.unknown["flops"]) == (None, "the operator CUSTOM is not counted")
