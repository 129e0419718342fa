"""Quantisation of ONNX networks: W_q = round(W / S) + Z, with a scale S and a zero point Z for each channel.

    int8, static   activations and weights in 8 bits, ranges of activations by MinMax over calibration inputs
    int8, dynamic  weights of matrix products in 8 bits, ranges of activations found at each run
    fp16           weights stored in 16 bits, computed with in 32
    int4           weights of matrix products in 4 bits, a scale for each block of 32

The affine scheme is B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime import quantization  # type: ignore[import-untyped]
from onnxruntime.quantization.quant_utils import add_pre_process_metadata  # type: ignore[import-untyped]

from app.errors import InvalidContent
from app.optimize.networks import onnx_graph as graphs
from app.optimize.quantization.error import layer_errors
from app.optimize.quantization.method import Method
from app.optimize.quantization.noise import LayerError
from app.optimize.quantization.weights import store_in_fp16, store_in_int4
from app.tensors import Tensors

# What is quantised together with the layers. Clip and Relu must be in the list: between two quantised tensors ONNX
# Runtime drops them (EfficientNet-Lite0: 2.3 ms a run, else 3.8 ms). Those that only move values round nothing.
_STATIC_OPERATORS = (
    *graphs.LAYER_OPERATORS, "Add", "Clip", "Relu", "ReduceMean", "GlobalAveragePool", "AveragePool", "MaxPool",
    "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip


class Quantizer:
    """One float network, opened once: a file, or the `float_model` of another with other weights. `float_model` is what
    its layers are named and compared by.

    Ranges of activations are measured once, with the first static method; `calibration` gives the inputs, one row
    each. Raises InvalidContent where the network cannot be quantised.
    """

    def __init__(
        self, source: Path | onnx.ModelProto, calibration: Callable[[], Iterator[Tensors]] | None = None
    ) -> None:
        self.float_model = graphs.open_float(source) if isinstance(source, Path) else source
        self._calibration = calibration
        self._ranges = tempfile.TemporaryDirectory(prefix="headway-ranges-")

    def close(self) -> None:
        self._ranges.cleanup()

    def prepare(self, method: Method) -> onnx.ModelProto:
        """The float network in the form that `method` takes, with layers of the same names."""
        model = onnx.ModelProto()
        model.CopyFrom(self.float_model)
        if method.takes_products_only:
            graphs.split_gemm(model)
        self._check(model, method)
        return model

    def quantize(self, method: Method, name: str) -> bytes:
        """The quantised file, whose graph is called `name`. Raises InvalidContent."""
        model = self.prepare(method)
        if method.to == "fp16":
            store_in_fp16(model, method.keep_float)
        elif method.to == "int4":
            store_in_int4(model, _chosen(model, method))
        else:
            model = self._in_int8(model, method)
        return graphs.to_bytes(model, name)

    def errors(self, method: Method, model: bytes, rows: Iterable[Tensors]) -> list[LayerError]:
        """Of every layer of `model`, which `quantize` gave for `method`. Raises RunFailed."""
        return layer_errors(self.prepare(method), model, rows)

    def _check(self, model: onnx.ModelProto, method: Method) -> None:
        found = graphs.layers(model)
        if not found:
            raise InvalidContent(
                f"the network has no layer that can be quantised ({', '.join(graphs.LAYER_OPERATORS)} with constant "
                "weights); a tree, a table or a linear classifier of ai.onnx.ml gains nothing here"
            )
        unknown = [name for name in method.keep_float if name not in found]
        if unknown:
            raise InvalidContent(f"there is no layer {unknown[0]!r} to keep in float; there are {', '.join(found)}")
        if not _chosen(model, method):
            what = "matrix product" if method.takes_products_only else "layer"
            raise InvalidContent(
                f"{method}: there is nothing to quantise, no {what} with constant weights that is not kept in float"
                + ("; for convolutions use --to int8 --scheme static" if method.takes_products_only else "")
            )

    def _in_int8(self, model: onnx.ModelProto, method: Method) -> onnx.ModelProto:
        add_pre_process_metadata(model)
        with tempfile.TemporaryDirectory(prefix="headway-quantize-") as folder, _one_cpu(), _quiet():
            source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
            onnx.save(model, source)
            try:
                if method.has_fixed_ranges:
                    self._run_static(source, target, model, method)
                else:
                    _run_dynamic(source, target, method)
            except InvalidContent:
                raise
            except Exception as exc:  # the quantiser raises many classes for graphs that it cannot take
                raise InvalidContent(f"ONNX Runtime cannot quantise this network: {exc}") from exc
            quantised = onnx.load(target)
        if method.has_fixed_ranges:
            graphs.keep_bytes(quantised)
            graphs.keep_answer(quantised)
        return quantised

    def _run_static(self, source: Path, target: Path, model: onnx.ModelProto, method: Method) -> None:
        ranges = Path(self._ranges.name, "ranges.json")
        reader = None
        if not ranges.exists():
            if self._calibration is None:
                raise InvalidContent("static quantisation needs inputs to calibrate with: say --calibration")
            reader = _reader(self._calibration())
        quantization.quantize_static(
            source,
            target,
            reader,
            calibration_cache_path=ranges,
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=method.reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            op_types_to_quantize=list(_STATIC_OPERATORS),
            nodes_to_exclude=list(method.keep_float),
            extra_options={"TensorQuantOverrides": _known_ranges(model)},
        )


def _chosen(model: onnx.ModelProto, method: Method) -> list[str]:
    """The names of the layers that are quantised."""
    found = graphs.layers(model)
    if method.takes_products_only:
        constants = graphs.weights(model)
        found = {name: node for name, node in found.items() if _is_matrix(node, constants[node.input[1]])}
    return [name for name in found if name not in method.keep_float]


def _is_matrix(node: onnx.NodeProto, weight: TensorProto) -> bool:
    return node.op_type == "MatMul" and len(weight.dims) == 2 and weight.data_type == TensorProto.FLOAT


def _known_ranges(model: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Scale and zero point of a photo's bytes, which are no matter of calibration."""
    kinds: dict[int, Any] = {
        TensorProto.UINT8: quantization.QuantType.QUInt8,
        TensorProto.INT8: quantization.QuantType.QInt8,
    }
    return {
        name: [
            {
                "quant_type": kinds[zero_point.data_type],
                "scale": numpy_helper.to_array(scale),
                "zero_point": numpy_helper.to_array(zero_point),
            }
        ]
        for name, (scale, zero_point) in graphs.quantised_inputs(model).items()
    }


def _run_dynamic(source: Path, target: Path, method: Method) -> None:
    quantization.quantize_dynamic(
        source,
        target,
        # A convolution with ranges found at each run (ConvInteger) is slower than one in float.
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=method.reduce_range,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=list(method.keep_float),
    )


def _reader(rows: Iterator[Tensors]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Tensors | None:
            return next(rows, None)

    return Reader()


@contextlib.contextmanager
def _one_cpu() -> Iterator[None]:
    """ONNX Runtime's calibrator takes no thread setting, and sums depend on how many threads share them."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser gives advice as warnings of the root logger; failures still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
