"""How to quantise: to which numbers, by which scheme, and what is left as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["int8", "fp16", "int4"]
Scheme = Literal["static", "dynamic", "qat"]
Runtime = Literal["onnx", "tflite"]
# Weights of matrix products in 4 bits have a scale for each so many of a column.
BLOCK = 32

_WORDS = {
    ("onnx", "int8", "static"): "static INT8 QDQ, per channel, MinMax",
    ("onnx", "int8", "qat"): "quantisation-aware training, then static INT8 QDQ, per channel, MinMax",
    ("onnx", "int8", "dynamic"): "dynamic INT8, per channel, matrix products",
    ("onnx", "fp16", "static"): "weights in FP16, computed in FP32",
    ("onnx", "int4", "static"): f"weights of matrix products in INT4, symmetric, blocks of {BLOCK}",
    ("tflite", "int8", "static"): "static INT8, per channel, MinMax",
    ("tflite", "int8", "dynamic"): "dynamic INT8, per channel, convolutions and matrix products",
    ("tflite", "fp16", "static"): "weights in FP16, computed in FP32",
    ("tflite", "int4", "static"): f"weights of matrix products in INT4, symmetric, blocks of {BLOCK}, inputs in INT8",
}


@dataclass(frozen=True, slots=True)
class Method:
    """How to quantise. `keep_float` are names of layers.

    `reduce_range`: weights in 7 bits. x86 without VNNI adds products in 16 bits, which saturate with 8, and other
    answers come with no error; with 7 the answers are those of other CPUs. It is of ONNX alone: LiteRT's kernels add
    in 32 bits.
    """

    to: Target
    scheme: Scheme = "static"
    reduce_range: bool = True
    keep_float: tuple[str, ...] = ()
    runtime: Runtime = "onnx"

    @property
    def takes_products_only(self) -> bool:
        return self.to == "int4" or (self.scheme == "dynamic" and self.runtime == "onnx")

    @property
    def has_fixed_ranges(self) -> bool:
        """Of activations: found once, by calibration."""
        return self.to == "int8" and self.scheme != "dynamic"

    @property
    def mixes_rows(self) -> bool:
        """ONNX Runtime finds the range of an activation over all rows of a run, LiteRT for each row."""
        return self.scheme == "dynamic" and self.runtime == "onnx"

    def __str__(self) -> str:
        words = _WORDS[self.runtime, self.to, self.scheme]
        reduced = ", reduce_range" if self.runtime == "onnx" and self.to == "int8" and self.reduce_range else ""
        kept = f", in float: {', '.join(self.keep_float)}" if self.keep_float else ""
        return f"{words}{reduced}{kept}"
