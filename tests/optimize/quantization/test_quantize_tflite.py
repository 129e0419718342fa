"""Quantised TFLite files: their numbers against NumPy's, their answers against the float network's, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from app.errors import InvalidContent, RunFailed
from app.optimize.examples import find_examples, find_labelled
from app.optimize.networks.tflite_file import read_tflite, write_tflite
from app.optimize.quantization.method import Method
from app.optimize.quantization.noise import LayerError
from app.optimize.quantization.tflite import TfliteQuantizer
from app.optimize.quantization.tflite_graph import code_of, constant, name_of
from app.optimize.quantization.version import Wishes, quantize_version
from app.registry.manifest import read_manifest
from app.registry.servables.golden import run_golden_tests
from app.registry.servables.loading import load_servable
from app.registry.servables.opening import Opener
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.runtimes.tflite import TfliteRuntime
from app.tensors import Array, Tensors
from recipes.digits import split_digits
from tests.fixtures_tflite import tflite_bytes
from tests.fixtures_tflite_networks import SIDE, digits_tflite, photo_tflite, photo_weights, write_digits_tflite

INT8, DYNAMIC = Method("int8", runtime="tflite"), Method("int8", "dynamic", runtime="tflite")
FP16, INT4 = Method("fp16", runtime="tflite"), Method("int4", runtime="tflite")
METHODS = [INT8, DYNAMIC, FP16, INT4]


def _digits(count: int = 100) -> Iterator[Tensors]:
    return ({"pixels": row[np.newaxis]} for row in split_digits().train_pixels[:count])


def _photos(count: int = 20) -> Iterator[Tensors]:
    rng = np.random.default_rng(1)
    return ({"image": rng.integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)} for _ in range(count))


@pytest.fixture
def digits(tmp_path: Path) -> TfliteQuantizer:
    return _open(tmp_path, digits_tflite(), _digits)


@pytest.fixture
def photos(tmp_path: Path) -> TfliteQuantizer:
    return _open(tmp_path, photo_tflite(), _photos)


def _open(folder: Path, content: bytes, rows: Any = None) -> TfliteQuantizer:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return TfliteQuantizer(path, rows)


def _run(folder: Path, content: bytes, rows: Tensors) -> Array:
    path = folder / "run.tflite"
    path.write_bytes(content)
    runtime = TfliteRuntime(path, 1)
    (answer,) = runtime.run(rows).values()
    runtime.close()
    return answer


def _on_photos(folder: Path, content: bytes) -> Array:
    return np.concatenate([_run(folder, content, row) for row in _photos(50)])


def _tensors(content: bytes) -> Mapping[str, Any]:
    (graph,) = read_tflite(content).subgraphs
    return {tensor.name.decode(): tensor for tensor in graph.tensors}


def _operators(content: bytes) -> list[tuple[int, list[str], list[str]]]:
    """Code, inputs, outputs."""
    model = read_tflite(content)
    (graph,) = model.subgraphs
    return [
        (code_of(model, one), *([name_of(graph, tensor) for tensor in ends] for ends in (one.inputs, one.outputs)))
        for one in graph.operators
    ]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_digits_keep_their_answers(digits: TfliteQuantizer, tmp_path: Path, method: Method) -> None:
    model, source = digits.quantize(method, "digits"), digits_tflite()
    pixels = {"pixels": split_digits().test_pixels}
    before, after = (_run(tmp_path, file, pixels) for file in (source, model))
    assert np.mean(before.argmax(axis=1) == after.argmax(axis=1)) > 0.98
    assert len(model) < len(source) / 1.8


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_same_input_gives_the_same_file(tmp_path: Path, method: Method) -> None:
    first, second = (_open(tmp_path, photo_tflite(), _photos).quantize(method, "photo") for _ in range(2))
    assert first == second


@pytest.mark.parametrize("method", [DYNAMIC, INT4], ids=str)
def test_rows_of_one_run_get_the_answers_that_they_get_alone(
    digits: TfliteQuantizer, tmp_path: Path, method: Method
) -> None:
    """So calls may share runs, which with ONNX Runtime's dynamic ranges they may not."""
    model = digits.quantize(method, "digits")
    rows = split_digits().test_pixels[:16] * np.linspace(0.1, 4, 16, dtype=np.float32)[:, None]
    together = _run(tmp_path, model, {"pixels": rows})
    alone = np.concatenate([_run(tmp_path, model, {"pixels": row[np.newaxis]}) for row in rows])
    assert together == pytest.approx(alone, abs=1e-6)
    assert not method.mixes_rows


def test_weights_are_rounded_by_the_formula_for_each_channel(photos: TfliteQuantizer) -> None:
    """W_q = round(W / S), S from the largest weight of the channel; NumPy is the independent computation."""
    model = read_tflite(photos.quantize(INT8, "photo"))
    tensors = {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}
    for name, axis in (("w1", 0), ("w2", 3), ("w3", 0), ("w4", 0)):
        weight = np.moveaxis(photo_weights()[name], axis, 0)
        per_channel = weight.reshape(len(weight), -1)[: 7 if name == "w1" else None]
        scale = np.array(tensors[name].quantization.scale)[: len(per_channel)]
        is_zero = ~per_channel.any(axis=1)
        assert scale[~is_zero] == pytest.approx(np.abs(per_channel).max(axis=1)[~is_zero] / 127, rel=1e-5)
        levels = constant(model, tensors[name])
        assert levels is not None
        levels = np.moveaxis(levels, axis, 0).reshape(len(weight), -1)[: len(per_channel)]
        assert np.array_equal(levels, np.rint(per_channel / scale[:, None]))


def test_photo_bytes_go_on_as_they_came_and_scores_stay_float(photos: TfliteQuantizer, tmp_path: Path) -> None:
    model = photos.quantize(INT8, "photo")
    operators = _operators(model)
    code, inputs, (rounded,) = operators[0]
    assert (code, inputs) == (schema.BuiltinOperator.QUANTIZE, ["image"])
    assert [one for one in operators if one[0] == schema.BuiltinOperator.DEQUANTIZE and "image" in one[1]] == []
    tensors = _tensors(model)
    found = tensors[rounded].quantization
    # The bytes' own steps, whatever was calibrated with: value + 127 - 128 is exact.
    assert (list(found.scale), list(found.zeroPoint)) == ([1 / 128], [-1])
    for name in ("logits", "scores"):
        assert tensors[name].type == schema.TensorType.FLOAT32
    assert tensors["w4"].type == schema.TensorType.INT8
    before, after = (_on_photos(tmp_path, file) for file in (photo_tflite(), model))
    assert np.abs(before - after).max() < 0.02


def test_bias_of_a_channel_without_weights_fits(photos: TfliteQuantizer, tmp_path: Path) -> None:
    """3 in steps of 1e-13 / 127 / 128 is beyond 32 bits; cut off it came out as another number, or below 0."""
    model = read_tflite(photos.quantize(INT8, "photo"))
    bias = next(tensor for tensor in model.subgraphs[0].tensors if tensor.name == b"b1")
    levels = constant(model, bias)
    assert levels is not None
    values = levels * np.array(bias.quantization.scale, np.float64)
    assert values == pytest.approx(photo_weights()["b1"], abs=1e-3)
    assert values[-1] == pytest.approx(3, rel=1e-6)
    before, after = (_on_photos(tmp_path, file) for file in (photo_tflite(), write_tflite(model)))
    assert np.abs(before - after).max() < 0.02


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_layer_that_is_kept_keeps_its_weights(photos: TfliteQuantizer, tmp_path: Path, method: Method) -> None:
    kept = "third" if method is not INT4 else "logits"
    method = Method(method.to, method.scheme, keep_float=(kept,), runtime="tflite")
    if method.to == "int4":
        with pytest.raises(InvalidContent, match="there is nothing to quantise, no matrix product"):
            photos.quantize(method, "photo")
        return
    content = photos.quantize(method, "photo")
    tensors = _tensors(content)
    assert tensors["w3"].type == schema.TensorType.FLOAT32
    assert tensors["w1"].type != schema.TensorType.FLOAT32
    before, after = (_on_photos(tmp_path, file) for file in (photo_tflite(), content))
    assert np.abs(before - after).max() < 0.02


def test_a_file_without_names_and_signature(tmp_path: Path) -> None:
    model = read_tflite(photo_tflite(signature=False))
    for tensor in model.subgraphs[0].tensors[1:]:
        tensor.name = b"same"
    quantizer = _open(tmp_path, write_tflite(model), _photos)
    content = quantizer.quantize(INT8, "photo")
    before, after = (_on_photos(tmp_path, file) for file in (photo_tflite(), content))
    assert np.abs(before - after).max() < 0.02
    assert len({error.name for error in quantizer.errors(INT8, content, _photos(2))}) == 4


def test_noise_of_a_layer_is_that_of_an_independent_computation(digits: TfliteQuantizer) -> None:
    """Inputs, weights and what comes out rounded, from exact inputs."""
    model = digits.quantize(INT8, "digits")
    tensors, parsed = _tensors(model), read_tflite(model)
    weights = {name: constant(read_tflite(digits_tflite()), value) for name, value in _tensors(digits_tflite()).items()}
    rows = np.concatenate([row["pixels"] for row in _digits(32)]).astype(np.float64)
    steps = next(value for name, value in tensors.items() if name.startswith("pixels") and value.type != 0)
    exact = np.maximum(rows @ weights["w1"].T.astype(np.float64) + weights["b1"], 0)
    levels = constant(parsed, tensors["w1"])
    assert levels is not None
    rounded_weights = levels * np.array(tensors["w1"].quantization.scale)[:, None]
    rounded = np.maximum(_rounded(rows, steps) @ rounded_weights.T + weights["b1"], 0)
    rounded = _rounded(rounded, tensors["hidden"])
    first, second = digits.errors(INT8, model, _digits(32))
    assert (first.name, first.operator, first.weights) == ("hidden", "FULLY_CONNECTED", 6400)
    assert first.sqnr_db == pytest.approx(_ratio(exact, rounded), abs=0.1)
    # The last layer is rounded row by row when it runs, after its input was rounded as the layer before gives it.
    assert (second.name, second.weights) == ("logits", 1000)
    levels = constant(parsed, tensors["w2"])
    assert levels is not None
    last = (
        _by_row(_rounded(exact, tensors["hidden"])) @ (levels * np.array(tensors["w2"].quantization.scale)[:, None]).T
    )
    assert second.sqnr_db == pytest.approx(
        _ratio(exact @ weights["w2"].T + weights["b2"], last + weights["b2"]), abs=0.3
    )


def _rounded(values: Array, tensor: Any) -> Array:
    (scale,), (zero_point,) = tensor.quantization.scale, tensor.quantization.zeroPoint
    levels: Array = np.clip(np.rint(values / scale) + zero_point, -128, 127)
    return (levels - zero_point) * scale


def _by_row(values: Array) -> Array:
    """As XNNPACK: 255 steps from the least to the largest value of a row, 0 among them."""
    least, largest = np.minimum(values.min(axis=1), 0), np.maximum(values.max(axis=1), 0)
    scale = ((largest - least) / 255)[:, None]
    zero_point = np.rint(-128 - least[:, None] / scale)
    return (np.clip(np.rint(values / scale) + zero_point, -128, 127) - zero_point) * scale


def _ratio(exact: Array, rounded: Array) -> float:
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - rounded) ** 2)))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_noise_of_every_layer_by_method(photos: TfliteQuantizer, method: Method) -> None:
    errors = photos.errors(method, photos.quantize(method, "photo"), _photos(4))
    assert [error.name for error in errors] == ["first", "second", "third", "logits"]
    assert [error.weights for error in errors] == [216, 72, 128, 80]
    floats = {INT8: [], DYNAMIC: ["second"], FP16: [], INT4: ["first", "second", "third"]}[method]
    assert [error.name for error in errors if error.sqnr_db is None] == floats
    assert min(error.sqnr_db for error in errors if error.sqnr_db is not None) > (55 if method is FP16 else 15)


def test_noise_in_blocks_of_four_bits(digits: TfliteQuantizer) -> None:
    """w1 has 64 columns: two blocks; w2 has 100, so one scale for each row of weights."""
    model = digits.quantize(INT4, "digits")
    tensors = _tensors(model)
    assert isinstance(tensors["w1"].quantization.details, schema.BlockwiseQuantizationT)
    assert len(tensors["w2"].quantization.scale) == 10
    errors = digits.errors(INT4, model, _digits(8))
    assert all(isinstance(one, LayerError) and 15 < (one.sqnr_db or 0) < 35 for one in errors)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            Method("int8", keep_float=("gone",), runtime="tflite"),
            "no layer 'gone' to keep in float; there are hidden, lo",
        ),
        (Method("int8", keep_float=("hidden", "logits"), runtime="tflite"), "there is nothing to quantise, no layer"),
    ],
)
def test_methods_that_make_no_sense(digits: TfliteQuantizer, method: Method, says: str) -> None:
    with pytest.raises(InvalidContent, match=says):
        digits.quantize(method, "digits")


def test_files_that_cannot_be_quantised(tmp_path: Path, digits: TfliteQuantizer) -> None:
    with pytest.raises(InvalidContent, match="no layer that can be quantised"):
        _open(tmp_path, tflite_bytes("two_inputs")).quantize(INT8, "sum")
    for method, operator in ((INT8, "QUANTIZE"), (FP16, "DEQUANTIZE"), (INT4, "FULLY_CONNECTED")):
        with pytest.raises(InvalidContent, match=rf"is quantised already \(.*{operator}.*name the float version"):
            _open(tmp_path, digits.quantize(method, "digits"))
    model = read_tflite(digits_tflite())
    model.subgraphs.append(model.subgraphs[0])
    with pytest.raises(InvalidContent, match="has 2 graphs"):
        _open(tmp_path, write_tflite(model))


def test_inputs_that_cannot_be_calibrated_with(tmp_path: Path) -> None:
    with pytest.raises(InvalidContent, match="say --calibration"):
        _open(tmp_path, digits_tflite()).quantize(INT8, "digits")
    wrong = _open(tmp_path, digits_tflite(), lambda: iter([{"pixels": np.zeros((1, 3), np.float32)}]))
    with pytest.raises(InvalidContent, match="the network fails on an input to calibrate with"):
        wrong.quantize(INT8, "digits")
    good = _open(tmp_path, digits_tflite(), _digits)
    with pytest.raises(RunFailed, match="fails on an input that the noise is measured with"):
        good.errors(INT8, good.quantize(INT8, "digits"), [{"pixels": np.zeros((1, 3), np.float32)}])


def _no_progress(_name: str, _total: int) -> Callable[[], None]:
    return lambda: None


def test_version_is_whole_and_says_how_it_came_to_be(tmp_path: Path) -> None:
    write_digits_tflite(tmp_path / "models")
    data = split_digits()
    np.savez(tmp_path / "train.npz", pixels=data.train_pixels)
    np.savez(tmp_path / "test.npz", pixels=data.test_pixels, class_index=data.test_digits)
    store = Store(tmp_path / "models")
    parent = Opener(store).open(ModelRef.parse("digits-tflite")).servable
    examples, labelled = find_examples(parent, tmp_path / "train.npz"), find_labelled(parent, tmp_path / "test.npz")
    directory = tmp_path / "work" / "digits-tflite" / "1.1.0"
    outcome = quantize_version(store, parent, directory, Wishes(INT8, examples, labelled, 50), _no_progress)
    manifest = read_manifest(directory)
    assert (manifest.runtime, manifest.files["model.tflite"].sha256) == ("tflite", outcome.sha256)
    assert manifest.batch.max_size == parent.manifest.batch.max_size == 64
    assert manifest.parent is not None
    assert manifest.parent.parameters == {
        "to": "int8", "seed": "0", "scheme": "static", "calibration": "train.npz", "calibration_size": "50",
    }  # fmt: skip
    assert outcome.measured is not None
    assert (outcome.measured.lost_points or 0) <= 1
    assert outcome.measured.times_smaller > 2.5
    assert {error.name for error in outcome.errors} == {"hidden", "logits"}
    assert "| `hidden` | FULLY_CONNECTED | 6,400 | " in (directory / "README.md").read_text(encoding="utf-8")
    made = load_servable(directory, 1)
    assert run_golden_tests(made) == 10
    made.close()
    shutil.copytree(directory, store.root / "digits-tflite" / "1.1.0")
    again = quantize_version(store, parent, directory, Wishes(INT8, examples, labelled, 50), _no_progress)
    assert again.same_as == "1.1.0"
