"""Quantisation of TFLite networks by ai-edge-quantizer.

int8, static   activations and weights in 8 bits, ranges of activations by MinMax over calibration inputs
int8, dynamic  weights of convolutions and matrix products in 8 bits, activations rounded at each run, row by row
fp16           weights stored in 16 bits, computed with in 32
int4           weights of matrix products in 4 bits, a scale for each block of 32; activations as with dynamic
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import InvalidContent
from app.optimize.networks.tflite_file import read_tflite, write_tflite
from app.optimize.quantization import tflite_graph as graphs
from app.optimize.quantization.method import BLOCK, Method
from app.optimize.quantization.noise import LayerError
from app.optimize.quantization.tflite_error import layer_errors
from app.runtimes.tflite import no_banner
from app.tensors import Tensors

# Quantised together with the layers; the rest stays float. Those that only move values round nothing.
_STATIC_OPERATORS = (
    *graphs.LAYER_OPERATORS.values(), "ADD", "SUB", "MUL", "MEAN", "AVERAGE_POOL_2D", "MAX_POOL_2D", "RELU",
    "HARD_SWISH", "LOGISTIC", "CONCATENATION", "PAD", "RESHAPE", "TRANSPOSE", "STRIDED_SLICE", "SLICE", "SPLIT", "PACK",
    "UNPACK", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
)  # fmt: skip
# Without depthwise convolutions: with ranges found at each run, LiteRT takes 17 ms for EfficientNet-Lite0, else 4.
_DYNAMIC_OPERATORS = ("CONV_2D", "FULLY_CONNECTED")
_FP16_MOST = float(np.finfo(np.float16).max)
_NOT_FLOAT = "no_quantize"


class TfliteQuantizer:
    """One float network, opened once. Ranges of activations are measured once, with the first static method;
    `calibration` gives the inputs, one row each. Raises InvalidContent where the network cannot be quantised."""

    def __init__(self, source: Path, calibration: Callable[[], Iterator[Tensors]] | None = None) -> None:
        _require_quantizer()
        self._float_model = graphs.open_float(source)
        self._layers = graphs.layers(self._float_model)
        self._source = write_tflite(self._float_model)
        self._calibration = calibration
        self._ranges: Mapping[str, Any] = {}

    def close(self) -> None:
        """Nothing is held outside of memory."""

    def quantize(self, method: Method, name: str) -> bytes:
        """The quantised file; `name` is of graphs in other formats. Raises InvalidContent."""
        del name
        self._check(method)
        from ai_edge_quantizer import quantizer

        with _quiet():
            made = quantizer.Quantizer(bytearray(self._prepare(method)))
            self._configure(made, method)
        if method.has_fixed_ranges and not self._ranges:
            self._ranges = self._calibrate(made.get_quantization_recipe())
        try:
            with _quiet():
                result = made.quantize(self._ranges if method.has_fixed_ranges else None, enable_progress_report=False)
        except Exception as exc:  # the quantiser raises many classes for graphs that it cannot take
            raise InvalidContent(f"ai-edge-quantizer cannot quantise this network: {exc}") from exc
        model = read_tflite(bytes(result.quantized_model))
        graphs.mend_biases(model, self._float_model)
        graphs.mend_scales(model)
        graphs.keep_bytes(model)
        return write_tflite(model)

    def errors(self, method: Method, model: bytes, rows: Iterable[Tensors]) -> list[LayerError]:
        """Of every layer of `model`, which `quantize` gave for `method`. Raises RunFailed."""
        del method
        return layer_errors(self._source, model, rows)

    def _check(self, method: Method) -> None:
        if not self._layers:
            raise InvalidContent(
                "the network has no layer that can be quantised "
                f"({', '.join(graphs.LAYER_OPERATORS.values())} with constant weights)"
            )
        unknown = [name for name in method.keep_float if name not in self._layers]
        if unknown:
            found = ", ".join(self._layers)
            raise InvalidContent(f"there is no layer {unknown[0]!r} to keep in float; there are {found}")
        if not self._chosen(method):
            what = "matrix product" if method.takes_products_only else "layer"
            raise InvalidContent(
                f"{method}: there is nothing to quantise, no {what} with constant weights that is not kept in float"
                + ("; for convolutions use --to int8" if method.takes_products_only else "")
            )

    def _prepare(self, method: Method) -> bytes:
        """The float file in the form that `method` takes."""
        in_blocks = [layer.name for layer in self._chosen(method) if method.to == "int4" and self._in_blocks(layer)]
        if not in_blocks:
            return self._source
        model = read_tflite(self._source)
        graphs.drop_dust(model, in_blocks)
        return write_tflite(model)

    def _in_blocks(self, layer: graphs.Layer) -> bool:
        return bool(self._weights(layer).shape[-1] % BLOCK == 0)

    def _chosen(self, method: Method) -> list[graphs.Layer]:
        """The layers whose weights are quantised."""
        operators: Sequence[str] = tuple(graphs.LAYER_OPERATORS.values())
        if method.takes_products_only:
            operators = ("FULLY_CONNECTED",)
        elif method.scheme == "dynamic":
            operators = _DYNAMIC_OPERATORS
        chosen = [one for one in self._layers.values() if one.operator in operators]
        return [one for one in chosen if one.name not in method.keep_float and self._fits(one, method)]

    def _fits(self, layer: graphs.Layer, method: Method) -> bool:
        return method.to != "fp16" or float(np.abs(self._weights(layer)).max()) <= _FP16_MOST

    def _weights(self, layer: graphs.Layer) -> Any:
        (graph,) = self._float_model.subgraphs
        weight = graph.operators[layer.place].inputs[1]
        return graphs.constant(self._float_model, graph.tensors[weight])

    def _configure(self, made: Any, method: Method) -> None:
        """Later rules of the quantiser go before earlier ones."""
        chosen = self._chosen(method)
        if method.has_fixed_ranges:
            for operator in _STATIC_OPERATORS:
                made.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
            float_results = {*graphs.last_operators(self._float_model), *method.keep_float}
            for name in sorted(float_results):
                made.update_quantization_recipe(_only(name), "*", algorithm_key=_NOT_FLOAT)
            chosen = [layer for layer in chosen if layer.name in float_results]
        for layer in chosen:
            _configure_layer(made, method, layer, in_blocks=self._in_blocks(layer))

    def _calibrate(self, recipe: Any) -> Mapping[str, Any]:
        from ai_edge_quantizer import calibrator, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils

        if self._calibration is None:
            raise InvalidContent("static quantisation needs inputs to calibrate with: say --calibration")
        rules = recipe_manager.RecipeManager()
        with _quiet():
            rules.load_quantization_recipe(recipe)
            # By default it takes a moving average, which depends on the order of the inputs.
            ranges = calibrator.Calibrator(self._source, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        signature = self._float_model.signatureDefs[0].signatureKey.decode()
        for row in self._calibration():
            try:
                with _quiet():
                    ranges.calibrate({signature: [row]}, rules)
            except (ValueError, RuntimeError) as exc:
                raise InvalidContent(f"the network fails on an input to calibrate with: {exc}") from exc
        found = dict(ranges.get_model_qsvs())
        # What a photo's bytes are is no matter of calibration.
        for name, limits in graphs.byte_ranges(self._float_model).items():
            if name in found:
                found[name] = {
                    key: np.full_like(found[name][key], limit)
                    for key, limit in zip(("min", "max"), limits, strict=True)
                }
        return found


def _configure_layer(made: Any, method: Method, layer: graphs.Layer, *, in_blocks: bool) -> None:
    from ai_edge_quantizer import qtyping

    if method.to == "fp16":
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        made.update_quantization_recipe(_only(layer.name), layer.operator, config, "float_casting")
        return
    made.add_dynamic_config(
        _only(layer.name),
        layer.operator,
        num_bits=4 if method.to == "int4" else 8,
        granularity=qtyping.QuantGranularity[
            f"BLOCKWISE_{BLOCK}" if method.to == "int4" and in_blocks else "CHANNELWISE"
        ],
    )


def _only(name: str) -> str:
    """The rule for the operator with this result: the quantiser searches names with what it is given, and ends each
    with a semicolon."""
    return f"^{re.escape(name)};?$"


def _require_quantizer() -> None:
    try:
        import ai_edge_quantizer  # noqa: F401
    except ImportError as exc:
        raise InvalidContent(
            f"quantising a TFLite file needs the package ai-edge-quantizer ({exc}): "
            "pip install 'headway[quantize-tflite]'"
        ) from exc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser warns of rounded inputs and draws bars of its own; failures still raise."""
    with warnings.catch_warnings(), no_banner(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
