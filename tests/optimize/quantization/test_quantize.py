"""Quantised files: their numbers against NumPy's, their answers against the float network's, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.errors import InvalidContent
from app.optimize.examples import pick
from app.optimize.quantization.method import BLOCK, Method
from app.optimize.quantization.quantizer import Quantizer
from app.optimize.quantization.weights import quantize_blocks
from app.tensors import Array, Tensors
from recipes.digits import split_digits
from tests.fixtures_models import onnx_bytes
from tests.running import ROOT

DIGITS = ROOT / "models" / "digits" / "1.1.0" / "model.onnx"
RNG = np.random.default_rng(7)
INT8, DYNAMIC, FP16, INT4 = Method("int8"), Method("int8", "dynamic"), Method("fp16"), Method("int4")


def _digits(count: int = 100) -> Iterator[Tensors]:
    return ({"pixels": row[np.newaxis]} for row in split_digits().train_pixels[:count])


def _photos(count: int = 20) -> Iterator[Tensors]:
    rng = np.random.default_rng(1)
    return ({"image": rng.integers(0, 256, (1, 8, 8, 3), np.uint8)} for _ in range(count))


def _network(tmp_path: Path, opset: int = 21, *, softmax: bool = True) -> Path:
    """Photo bytes, (x - 127) / 128, two convolutions with ReLU and clip, mean, Gemm with a bias of [1, 5]."""
    rng = np.random.default_rng(3)
    constants: dict[str, Array] = {
        "scale": np.float32(1 / 128), "zero": np.uint8(127), "low": np.float32(0), "high": np.float32(6),
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)), "b1": rng.normal(0, 0.1, 8), "w2": rng.normal(0, 0.2, (16, 8, 3, 3)),
        "w3": rng.normal(0, 0.4, (5, 16)), "b3": rng.normal(0, 0.1, (1, 5)),
    }  # fmt: skip
    answer = "logits" if softmax else "scores"
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["nchw", "scale", "zero"], ["pixels"]),
        helper.make_node("Conv", ["pixels", "w1", "b1"], ["c1"], name="first"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second"),
        helper.make_node("Clip", ["c2", "low", "high"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], [answer], transB=1),
        *([helper.make_node("Softmax", ["logits"], ["scores"])] if softmax else []),
    ]
    graph = helper.make_graph(
        nodes,
        "photo",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5])],
        [
            numpy_helper.from_array(np.asarray(value, np.float32 if name[0] in "wb" else None), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])
    path = tmp_path / f"network-{opset}-{softmax}.onnx"
    onnx.save(model, path)
    return path


def _quantize(source: Path, method: Method, rows: Any = None) -> bytes:
    quantizer = Quantizer(source, rows)
    try:
        return quantizer.quantize(method, "test")
    finally:
        quantizer.close()


def _run(model: bytes | Path, rows: Tensors) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = model if isinstance(model, bytes) else model.read_bytes()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, rows)[0]


def _constants(model: bytes) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(model).graph.initializer}


def _operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.mark.parametrize("method", [INT8, DYNAMIC, FP16, INT4, Method("int8", reduce_range=False)], ids=str)
def test_digits_keep_their_answers(method: Method) -> None:
    data = split_digits()
    model = _quantize(DIGITS, method, _digits)
    before, after = (_run(file, {"pixels": data.test_pixels}) for file in (DIGITS, model))
    assert np.mean(before.argmax(axis=1) == after.argmax(axis=1)) > 0.985
    assert len(model) < DIGITS.stat().st_size / 1.9


@pytest.mark.parametrize("method", [INT8, DYNAMIC, FP16, INT4], ids=str)
def test_same_input_gives_the_same_file(method: Method) -> None:
    first, second = (_quantize(DIGITS, method, _digits) for _ in range(2))
    assert first == second
    assert b"onnx.quantize" not in first


@pytest.mark.parametrize(("method", "most"), [(INT8, 64), (Method("int8", reduce_range=False), 127)], ids=str)
def test_weights_are_rounded_by_the_formula_for_each_channel(tmp_path: Path, method: Method, most: int) -> None:
    """W_q = round(W / S), S from the largest weight of the channel; NumPy is the independent computation."""
    source = _network(tmp_path)
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    found = _constants(_quantize(source, method, _photos))
    for name in ("w1", "w2", "w3"):
        weight = original[name]
        per_channel = weight.reshape(len(weight), -1)
        scale = found[f"{name}_scale"]
        assert not found[f"{name}_zero_point"].any()
        assert scale == pytest.approx(np.abs(per_channel).max(axis=1) / most, rel=0.02)
        expected = np.rint(per_channel / scale[:, None])
        assert np.abs(expected).max() <= most + 1
        assert np.array_equal(found[f"{name}_quantized"].reshape(per_channel.shape), expected)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_photo_bytes_go_on_as_they_came_and_scores_stay_float(tmp_path: Path, opset: int) -> None:
    source = _network(tmp_path, opset)
    model = onnx.load_from_string(_quantize(source, INT8, _photos))
    made_by = {name: node for node in model.graph.node for name in node.output}
    first = next(node for node in model.graph.node if node.name == "first")
    assert made_by[made_by[first.input[0]].input[0]].op_type == "Transpose"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scale, zero_point = (constants[name] for name in made_by[first.input[0]].input[1:])
    assert (scale, zero_point) == (np.float32(1 / 128), 127)
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    assert made_by[softmax.input[0]].op_type == "Gemm"
    photos = np.concatenate([row["image"] for row in _photos(50)])
    before, after = (_run(file, {"image": photos}) for file in (source, model.SerializeToString()))
    assert np.abs(before - after).max() < 0.02


def test_an_answer_without_softmax_is_not_rounded_either(tmp_path: Path) -> None:
    source = _network(tmp_path, softmax=False)
    model = onnx.load_from_string(_quantize(source, INT8, _photos))
    assert next(node for node in model.graph.node if "scores" in node.output).op_type == "Gemm"
    photos = np.concatenate([row["image"] for row in _photos(50)])
    before, after = (_run(file, {"image": photos}) for file in (source, model.SerializeToString()))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()


@pytest.mark.parametrize("method", [INT8, FP16], ids=str)
def test_layer_that_is_kept_keeps_its_weights(tmp_path: Path, method: Method) -> None:
    source = _network(tmp_path)
    kept = Method(method.to, keep_float=("second",))
    found = _constants(_quantize(source, kept, _photos))
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    assert np.array_equal(found["w2"], original["w2"])
    assert "w1" not in found


@pytest.mark.parametrize(("rows", "columns"), [(64, 10), (100, 3), (BLOCK, 1), (BLOCK + 1, 4)])
def test_int4_blocks_against_a_loop(rows: int, columns: int) -> None:
    weight = RNG.normal(0, 2, (rows, columns)).astype(np.float32)
    weight[:BLOCK, 0] = 0
    numbers, scales = quantize_blocks(weight)
    assert scales.shape == (-(-rows // BLOCK), columns)
    for column in range(columns):
        for block in range(len(scales)):
            part = weight[block * BLOCK : (block + 1) * BLOCK, column]
            scale = max(abs(part)) / 7 or 1.0
            assert scales[block, column] == pytest.approx(scale, rel=1e-6)
            got = numbers[block * BLOCK : (block + 1) * BLOCK, column].astype(np.float32)
            assert np.abs(got).max() <= 7
            assert np.abs(got * scale - part).max() <= scale / 2 * 1.0001


def test_int4_in_the_file_is_what_was_computed() -> None:
    weight = numpy_helper.to_array(
        next(tensor for tensor in onnx.load(DIGITS).graph.initializer if tensor.name == "coefficient")
    )
    numbers, scales = quantize_blocks(weight)
    found = _constants(_quantize(DIGITS, INT4))
    assert np.array_equal(found["coefficient/int4"].astype(np.int8), numbers.astype(np.int8))
    assert np.array_equal(found["coefficient/scales"], scales)


def test_fp16_is_the_nearest_number_of_16_bits() -> None:
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(DIGITS).graph.initializer}
    model = _quantize(DIGITS, FP16)
    assert np.array_equal(_constants(model)["coefficient/fp16"], original["coefficient"].astype(np.float16))
    assert "Gemm" in _operators(model)


def test_dynamic_takes_matrix_products_and_no_convolutions(tmp_path: Path) -> None:
    operators = _operators(_quantize(_network(tmp_path), DYNAMIC))
    assert operators.count("MatMulInteger") == 1
    assert operators.count("Conv") == 2


def test_ranges_are_measured_once() -> None:
    asked = 0

    def rows() -> Iterator[Tensors]:
        nonlocal asked
        asked += 1
        return _digits(20)

    quantizer = Quantizer(DIGITS, rows)
    whole = quantizer.quantize(INT8, "test")
    quantizer.quantize(Method("int8", keep_float=("MatMul/MatMulAddFusion",)), "test")
    assert quantizer.quantize(INT8, "test") == whole
    quantizer.close()
    assert asked == 1


def test_refusals(tmp_path: Path) -> None:
    quantised, tree, only_conv = (tmp_path / name for name in ("quantised.onnx", "tree.onnx", "conv.onnx"))
    quantised.write_bytes(_quantize(DIGITS, DYNAMIC))
    tree.write_bytes(onnx_bytes("scores"))
    whole = onnx.shape_inference.infer_shapes(onnx.load(_network(tmp_path)))
    only_conv.write_bytes(onnx.utils.Extractor(whole).extract_model(["image"], ["r1"]).SerializeToString())
    linear = ROOT / "models" / "digits" / "1.0.0" / "model.onnx"
    cases = [
        (quantised, INT8, "is quantised already (DynamicQuantizeLinear, MatMulInteger)"),
        (tree, FP16, "has no layer that can be quantised"),
        (linear, INT8, "has no layer that can be quantised"),
        (only_conv, INT4, "no matrix product with constant weights"),
        (only_conv, DYNAMIC, "for convolutions use --to int8 --scheme static"),
        (DIGITS, Method("fp16", keep_float=("last",)), "there is no layer 'last' to keep in float; there are MatMul/"),
        (DIGITS, INT8, "static quantisation needs inputs to calibrate with"),
    ]
    for source, method, says in cases:
        with pytest.raises(InvalidContent) as caught:
            _quantize(source, method)
        assert says in str(caught.value)


def test_everything_kept_in_float_is_refused() -> None:
    both = ("MatMul/MatMulAddFusion", "MatMul1/MatMulAddFusion")
    with pytest.raises(InvalidContent, match="there is nothing to quantise, no layer"):
        _quantize(DIGITS, Method("int8", keep_float=both), _digits)


def test_pick_is_by_seed_and_takes_each_once() -> None:
    assert pick(5, 10, 0) == [0, 1, 2, 3, 4]
    first = pick(1000, 200, 0)
    assert first == pick(1000, 200, 0) != pick(1000, 200, 1)
    assert len(set(first)) == 200
    assert first == sorted(first)
