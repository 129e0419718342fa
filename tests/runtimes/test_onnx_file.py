"""Where an ONNX file keeps its weights, against what the onnx package says."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import _get_all_tensors

from app.errors import RuntimeLoadError
from app.runtimes.onnx_file import external_locations
from tests.fixtures_models import onnx_bytes
from tests.running import MODELS


def _tensor(name: str, location: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def _nested() -> onnx.ModelProto:
    """Weights in every place that may hold some."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=_tensor("c", "in a constant of a branch"))],
        "inner",
        [],
        [],
        [_tensor("i", "in a branch")],
    )
    sparse = onnx.SparseTensorProto(values=_tensor("v", "sparse values"), indices=_tensor("n", "sparse indices"))
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner)
    node.attribute.append(onnx.AttributeProto(name="list", tensors=[_tensor("l", "in a list")], graphs=[inner]))
    node.attribute.append(onnx.AttributeProto(name="sparse", sparse_tensor=sparse, sparse_tensors=[sparse]))
    graph = helper.make_graph([node], "outer", [], [], [_tensor("w", "../outside"), _tensor("w2", "../outside")])
    graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=_tensor("a", "sparse initializer"), indices=_tensor("b", "its indices"))
    )
    constant = helper.make_node("Constant", [], ["c"], value=_tensor("f", "in a function"))
    function = helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    function.attribute_proto.append(onnx.AttributeProto(name="default", t=_tensor("d", "default of a function")))
    model = helper.make_model(graph, functions=[function])
    model.training_info.append(onnx.TrainingInfoProto(initialization=inner, algorithm=inner))
    return model


def test_every_place_is_found(tmp_path: Path) -> None:
    model = _nested()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = external_locations(tmp_path / "m.onnx")
    assert set(found) == {
        "../outside", "in a branch", "in a constant of a branch", "in a list", "sparse values", "sparse indices",
        "sparse initializer", "its indices", "in a function", "default of a function",
    }  # fmt: skip
    assert len(found) == len(set(found))
    known = {
        entry.value for tensor in _get_all_tensors(model) for entry in tensor.external_data if entry.key != "offset"
    }
    assert known <= set(found)


@pytest.mark.parametrize("kind", ["scores", "count", "cube"])
def test_file_with_all_in_itself(tmp_path: Path, kind: str) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_bytes(kind))
    assert external_locations(tmp_path / "m.onnx") == []


def test_shipped_models() -> None:
    for path in MODELS.rglob("*.onnx"):
        assert external_locations(path) == []


@pytest.mark.parametrize("data", [b"", b"hello world", b"\x3a\xff\xff\xff\xff\x0f", b"\x80" * 20, b"\x3b"])
def test_what_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(RuntimeLoadError, match=r"m\.onnx: is (no ONNX model|empty)"):
        external_locations(tmp_path / "m.onnx")


def test_damage_is_never_a_crash(tmp_path: Path) -> None:
    good = _nested().SerializeToString()
    generator = random.Random(0)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(3):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (tmp_path / "m.onnx").write_bytes(data)
        try:
            external_locations(tmp_path / "m.onnx")
        except RuntimeLoadError:
            continue


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    data = b""
    for _ in range(2000):  # a graph in an attribute of a node of a graph …
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            data = tag + _varint(len(data)) + data
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + _varint(len(data)) + data)
    with pytest.raises(RuntimeLoadError, match="nested more than"):
        external_locations(tmp_path / "m.onnx")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
