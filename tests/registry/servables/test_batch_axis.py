"""Whether rows get each its own answer is found out by trial, with rows that a mistake would show in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from app.registry.servables.batch_axis import BatchAxis, mixes_rows
from app.runtimes.onnx import OnnxRuntime
from tests.fixtures_models import onnx_file

Case = tuple[str, list[Any], str, list[Any], list[NodeProto], dict[str, np.ndarray]]


def _node(kind: str, *inputs: str, into: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, list(inputs), [into], **attributes)


TO_FLOAT = _node("Cast", "x", into="f", to=TensorProto.FLOAT)
TO_INT = _node("Cast", "x", into="i", to=TensorProto.INT64)
ZERO = {"zero": np.array(0, np.int64)}

MIXED: dict[str, Case] = {
    "integers less their mean": (
        "INT64", [-1, 1], "FP32", [-1, 1],
        [TO_FLOAT, _node("ReduceMean", "f", into="m", axes=[0], keepdims=1), _node("Sub", "f", "m", into="y")], {},
    ),
    "the largest of all rows": (
        "INT64", [-1], "INT64", [-1],
        [_node("ReduceMax", "x", into="m", axes=[0], keepdims=1), _node("Mul", "x", "zero", into="e"),
         _node("Add", "e", "m", into="y")], ZERO,
    ),
    "the first text for all": (
        "BYTES", [-1], "BYTES", [-1],
        [_node("Shape", "x", into="s"),
         _node("ConstantOfShape", "s", into="i", value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
         _node("Gather", "x", "i", into="y")], {},
    ),
    "numbers of things, as floats": (
        "FP32", [-1, 1], "INT64", [-1, 1],
        [TO_INT, _node("ReduceMax", "i", into="m", axes=[0], keepdims=1), _node("Sub", "m", "i", into="y")], {},
    ),
    "bytes of pictures less their mean": (
        "UINT8", [-1, 2, 2, 3], "FP32", [-1, 2, 2, 3],
        [TO_FLOAT, _node("ReduceMean", "f", into="m", axes=[0], keepdims=1), _node("Sub", "f", "m", into="d"),
         _node("Div", "d", "k", into="y")], {"k": np.array(255, np.float32)},
    ),
    "turned": (
        "FP32", ["n", "m"], "FP32", ["n", "m"],
        [_node("Shape", "x", into="s"), _node("Transpose", "x", into="t", perm=[1, 0]),
         _node("Reshape", "t", "s", into="y")], {},
    ),
    "sorted": (
        "FP32", [-1], "FP32", [-1],
        [_node("Shape", "x", into="n"), helper.make_node("TopK", ["x", "n"], ["y", "at"])], {},
    ),
    "added up": ("FP32", [-1, 2], "FP32", [-1, 2], [_node("CumSum", "x", "zero", into="y")], ZERO),
    "or": (
        "BOOL", [-1], "BOOL", [-1],
        [TO_FLOAT, _node("ReduceMax", "f", into="m", keepdims=1), _node("Add", "f", "m", into="a"),
         _node("Cast", "a", into="y", to=TensorProto.BOOL)], {},
    ),
    "no row can be tried: all indexes are out of range": (
        "INT64", [-1], "FP32", [-1],
        [_node("Add", "x", "far", into="i"), _node("Gather", "table", "i", into="y")],
        {"far": np.array(1000, np.int64), "table": np.zeros(3, np.float32)},
    ),
}  # fmt: skip
OWN: dict[str, Case] = {
    **{
        f"{datatype} as they are": (datatype, ["n", "m"], datatype, ["n", "m"], [_node("Identity", "x", into="y")], {})
        for datatype in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT64", "BOOL", "FP16", "FP32", "FP64", "BYTES")
    },
    "two words of a table": (
        "INT64", [-1, -1], "FP32", [-1, -1], [_node("Gather", "table", "x", into="y")],
        {"table": np.arange(2.0, dtype=np.float32)},
    ),
    "one free size that must be 1": (
        "FP32", [-1, -1], "FP32", [-1, 1], [_node("Reshape", "x", "form", into="y")],
        {"form": np.array([0, 1], np.int64)},
    ),
    "shares": ("FP32", [-1, 5], "FP32", [-1, 5], [_node("Softmax", "x", into="y", axis=1)], {}),
    "a constant": (
        "BOOL", [-1, 1], "FP32", [-1, 1], [TO_FLOAT, _node("Mul", "f", "none", into="y")],
        {"none": np.zeros((), np.float32)},
    ),
}  # fmt: skip


def _mixes(case: Case, folder: Path) -> bool:
    datatype, shape, gives, form, nodes, constants = case
    path = folder / "model.onnx"
    path.write_bytes(onnx_file(nodes, [("x", datatype, shape)], [("y", gives, form)], constants))
    runtime = OnnxRuntime(path, 1)
    return mixes_rows(BatchAxis(("x",), False), runtime.inputs, runtime.run)


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_depend_on_each_other_are_found(name: str, tmp_path: Path) -> None:
    assert _mixes(MIXED[name], tmp_path)


@pytest.mark.parametrize("name", OWN)
def test_rows_of_their_own_may_share_a_run(name: str, tmp_path: Path) -> None:
    assert not _mixes(OWN[name], tmp_path)
