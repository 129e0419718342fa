"""ONNX models as other people's tools leave them: several inputs and outputs, every datatype, axes with odd names or
none, no batch axis. All answers can be worked out by hand.

name          input                                answer
same-…        x [n, m] of the datatype             y = x; both axes are named, oddly
unnamed       x FP32 [?, ?]                        y = x; neither axis has a name
pair          a, b FP32 [n, 2]                     total = a + b, difference = a - b; eight rows share a run
three         number INT32, flag BOOL, text BYTES  number + 1, not flag, text; all [n]
odd-names     "input:0" FP32 [n], "a b/ü" INT64 [n]   "out put:0" = their sum, FP32 [n]
total         x FP32 [n, 3]                        total FP32 []: the sum of all; no row of the answer is anybody's
one-row       x FP32 [1, 3]                        y = x; the file takes one row a run
wide          x FP32 [n, m]                        columns FP32 [m]: the sum of each column; no batch axis
brightness    image UINT8 [n, 4, 4, 3]             mean FP32 []: of all values; images one at a time
shades        image UINT8 [n, 4, 4, 3]             mean FP32 [n, 3]: of each channel
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from app.tensors import NUMPY_DTYPES
from tests.fixtures_models import onnx_file, write_model, write_release

# Name, datatype, shape; a size that is a number below 0 has no name.
_Value = tuple[str, str, list[Any]]
_IMAGE = {
    "type": "image", "resize": 4, "crop": 4, "filter": "bilinear",
    "colour": "RGB", "layout": "NHWC", "normalise": "in_graph",
}  # fmt: skip
SAME = {f"same-{datatype.lower()}": datatype for datatype in NUMPY_DTYPES}


@dataclass(frozen=True)
class _Odd:
    nodes: Sequence[onnx.NodeProto]
    inputs: Sequence[_Value]
    outputs: Sequence[_Value]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)


def _same(datatype: str, sizes: list[Any]) -> _Odd:
    return _Odd([helper.make_node("Identity", ["x"], ["y"])], [("x", datatype, sizes)], [("y", datatype, sizes)])


def _means(axes: list[int], shape: list[Any], **manifest: Any) -> _Odd:
    return _Odd(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["mean"], axes=axes, keepdims=0),
        ],
        [("image", "UINT8", [-1, 4, 4, 3])],
        [("mean", "FP32", shape)],
        manifest={"processing": _IMAGE, **manifest},
    )


_ODD: Mapping[str, _Odd] = {
    **{name: _same(datatype, ["batch size?!", "Länge"]) for name, datatype in SAME.items()},
    "unnamed": _same("FP32", [-1, -1]),
    "one-row": _same("FP32", [1, 3]),
    "pair": _Odd(
        [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        [("a", "FP32", ["N", 2]), ("b", "FP32", ["N", 2])],
        [("total", "FP32", ["N", 2]), ("difference", "FP32", ["N", 2])],
        manifest={"batch": {"axis": 0, "max_size": 8, "max_wait_ms": 20}},
    ),
    "three": _Odd(
        [
            helper.make_node("Add", ["number", "one"], ["next"]),
            helper.make_node("Not", ["flag"], ["other"]),
            helper.make_node("Identity", ["text"], ["copy"]),
        ],
        [("number", "INT32", [-1]), ("flag", "BOOL", [-1]), ("text", "BYTES", [-1])],
        [("next", "INT32", [-1]), ("other", "BOOL", [-1]), ("copy", "BYTES", [-1])],
        {"one": np.array(1, np.int32)},
    ),
    "odd-names": _Odd(
        [
            helper.make_node("Cast", ["a b/ü"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["input:0", "float"], ["out put:0"]),
        ],
        [("input:0", "FP32", ["0"]), ("a b/ü", "INT64", ["0"])],
        [("out put:0", "FP32", ["0"])],
    ),
    "total": _Odd(
        [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)],
        [("x", "FP32", ["n", 3])],
        [("total", "FP32", [])],
        manifest={"batch": {"axis": 0, "max_size": 8}},
    ),
    "wide": _Odd(
        [helper.make_node("ReduceSum", ["x", "axes"], ["columns"], keepdims=0)],
        [("x", "FP32", ["n", "m"])],
        [("columns", "FP32", ["m"])],
        {"axes": np.array([0])},
        manifest={"batch": {"axis": None}},
    ),
    "brightness": _means([0, 1, 2, 3], [], batch={"axis": None}),
    "shades": _means([1, 2], ["n", 3]),
}


def write_odd_models(root: Path) -> Path:
    """Write them all, each released; returns `root`."""
    for name, odd in _ODD.items():
        write_model(
            root,
            name,
            kind="same",
            files={"model.onnx": onnx_file(list(odd.nodes), odd.inputs, odd.outputs, odd.constants)},
            inputs=[_entry(*value) for value in odd.inputs],
            outputs=[_entry(*value) for value in odd.outputs],
            **odd.manifest,
        )
        write_release(root, name, "1.0.0")
    return root


def _entry(name: str, datatype: str, shape: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1 if isinstance(size, str) else size for size in shape]}
