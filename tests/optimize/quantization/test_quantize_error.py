"""Noise of each layer: against a computation in NumPy, and which layers it proposes to leave in float."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from app.errors import InvalidContent
from app.optimize.quantization.error import layer_errors
from app.optimize.quantization.method import Method
from app.optimize.quantization.noise import LayerError, decibels, propose_float
from app.optimize.quantization.quantizer import Quantizer
from app.tensors import Array
from recipes.digits import split_digits
from tests.running import ROOT

DIGITS = ROOT / "models" / "digits" / "1.1.0" / "model.onnx"
FIRST, SECOND = "MatMul/MatMulAddFusion", "MatMul1/MatMulAddFusion"


def _rows(count: int = 40) -> list[dict[str, Array]]:
    return [{"pixels": row[np.newaxis]} for row in split_digits().train_pixels[:count]]


@pytest.fixture
def quantizer() -> Iterator[Quantizer]:
    quantizer = Quantizer(DIGITS, lambda: iter(_rows()))
    yield quantizer
    quantizer.close()


def _weights(model: bytes) -> dict[str, Array]:
    found = onnx.load_from_string(model).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in found}


def _decibels(exact: Array, rounded: Array) -> float:
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - rounded) ** 2)))


def test_noise_of_weights_against_numpy(quantizer: Quantizer) -> None:
    """FP16: only weights are rounded, so each layer is one product with one matrix more."""
    model = quantizer.quantize(Method("fp16"), "digits")
    errors = layer_errors(quantizer.prepare(Method("fp16")), model, _rows())
    exact, rounded = _weights(DIGITS.read_bytes()), _weights(model)
    scaled = np.concatenate([row["pixels"] for row in _rows()]) * exact["Mu_Mulcst"] + exact["Ad_Addcst"]
    hidden = scaled @ exact["coefficient"] + exact["intercepts"]
    logits = np.maximum(hidden, 0) @ exact["coefficient1"] + exact["intercepts1"]
    with_first = scaled @ rounded["coefficient/fp16"] + rounded.get("intercepts/100/fp16", exact["intercepts"])
    with_second = np.maximum(hidden, 0) @ rounded["coefficient1/fp16"] + exact["intercepts1"]
    assert [(one.name, one.operator, one.weights) for one in errors] == [(FIRST, "Gemm", 6400), (SECOND, "Gemm", 1000)]
    assert errors[0].sqnr_db == pytest.approx(_decibels(hidden, with_first), abs=0.1)
    assert errors[1].sqnr_db == pytest.approx(_decibels(logits, with_second), abs=0.1)


def test_noise_of_inputs_and_weights_against_numpy(quantizer: Quantizer) -> None:
    """INT8: the first layer's input is what the graph gives, rounded with its own scale and zero point."""
    model = quantizer.quantize(Method("int8"), "digits")
    errors = layer_errors(quantizer.prepare(Method("int8")), model, _rows())
    exact, found = _weights(DIGITS.read_bytes()), _weights(model)
    scaled = np.concatenate([row["pixels"] for row in _rows()]) * exact["Mu_Mulcst"] + exact["Ad_Addcst"]
    hidden = np.maximum(scaled @ exact["coefficient"] + exact["intercepts"], 0)
    logits = hidden @ exact["coefficient1"] + exact["intercepts1"]
    scale, zero_point = found["next_activations_scale"], found["next_activations_zero_point"]
    integers = np.clip(np.rint(hidden / scale) + zero_point, 0, 255)
    weight = found["coefficient1_quantized"] * found["coefficient1_scale"]
    rounded = (integers - zero_point) * scale @ weight + exact["intercepts1"]
    assert errors[1].sqnr_db == pytest.approx(_decibels(logits, rounded), abs=0.1)


def test_layer_in_float_adds_nothing(quantizer: Quantizer) -> None:
    for method in (Method("int4", keep_float=(FIRST,)), Method("fp16", keep_float=(FIRST,))):
        errors = layer_errors(quantizer.prepare(method), quantizer.quantize(method, "digits"), _rows(5))
        assert errors[0].sqnr_db is None
        assert errors[1].sqnr_db is not None


def test_fewer_bits_are_more_noise(quantizer: Quantizer) -> None:
    noise = []
    for method in (Method("fp16"), Method("int8", reduce_range=False), Method("int8"), Method("int4")):
        errors = layer_errors(quantizer.prepare(method), quantizer.quantize(method, "digits"), _rows(10))
        noise.append([error.sqnr_db or 0.0 for error in errors])
    assert np.all(np.diff(noise, axis=0) < 0)


def test_proposal_is_the_noisiest_layers_with_half_of_the_noise() -> None:
    def errors(*decibels: float | None) -> list[LayerError]:
        return [LayerError(str(number), "Conv", 9, value) for number, value in enumerate(decibels)]

    assert propose_float(errors(40, 20, 40, 40)) == ["1"]
    assert propose_float(errors(*[30.0] * 15, 10)) == ["15"]
    assert propose_float(errors(*[30.0] * 24)) == ["0", "1", "2"]
    assert propose_float(errors(None, 30)) == []
    assert propose_float([]) == []


def test_noise_that_is_no_number_is_refused() -> None:
    assert (decibels(100.0, 1.0), decibels(1.0, 0.0), decibels(0.0, 1.0)) == (20.0, None, 0.0)
    for signal, noise in ((np.inf, 1.0), (np.inf, np.inf), (np.nan, 1.0)):
        with pytest.raises(InvalidContent, match="the sums of squares are not finite"):
            decibels(signal, noise)
