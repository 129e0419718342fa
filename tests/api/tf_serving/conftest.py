"""A server of tiny models whose answers can be worked out by hand, one of each shape, and one of each state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from onnx import helper

from tests.fixtures_models import onnx_file, write_model, write_release
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

_CHECKED = {
    "name": "x",
    "datatype": "FP32",
    "shape": [-1, 3],
    "values": {"missing": {"action": "impute", "fill": 0.5}, "range": {"action": "clip", "low": 0, "high": 1}},
}
_KINDS = ("scores", "sum", "colour", "echo", "same", "double", "transpose", "positive", "lookup", "one_row", "scaled")


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A model of each kind under its name, with - for _; pair, binary, numbered, plain, checked, lazy, idle, broken."""
    root = tmp_path_factory.mktemp("tf_serving") / "models"
    for kind in (*_KINDS, "two_inputs", "centred"):
        write_model(root, kind.replace("_", "-"), kind=kind)
    _write_pair(root)
    _write_binary(root)
    for version, serial in (("1.0.0", 7), ("2.0.0", 8)):
        write_model(root, "numbered", version, serial=serial)
    write_release(root, "numbered", "2.0.0", aliases={"old": {"version": "1.0.0"}})
    write_model(root, "plain", "3")
    write_model(root, "checked", inputs=[_CHECKED])
    for name in ("lazy", "idle"):
        write_model(root, name, serial=5)
        write_release(root, name, "1.0.0", load="lazy")
    (write_model(root, "broken") / "model.onnx").write_bytes(b"no model")
    with running_server(root.parent / "log", workers=1, HEADWAY_MODELS=str(root)) as server:
        yield server


@pytest.fixture
def serving(tiny: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{tiny.url}/v1/models", timeout=PATIENCE_SECONDS) as client:
        yield client


def _write_pair(root: Path) -> None:
    """pair: sum and difference of a and b, FP32 [n, 2]."""
    tensors = [("a", "FP32", [-1, 2]), ("b", "FP32", [-1, 2])]
    outputs = [("sum", "FP32", [-1, 2]), ("difference", "FP32", [-1, 2])]
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    files = {"model.onnx": onnx_file(nodes, tensors, outputs)}
    write_model(root, "pair", kind="two_inputs", files=files, outputs=_entries(outputs))


def _write_binary(root: Path) -> None:
    """binary: its text [n] as copy_bytes."""
    outputs = [("copy_bytes", "BYTES", [-1])]
    node = helper.make_node("Identity", ["text"], ["copy_bytes"])
    files = {"model.onnx": onnx_file([node], [("text", "BYTES", [-1])], outputs)}
    write_model(root, "binary", kind="same", files=files, outputs=_entries(outputs))


def _entries(outputs: list[tuple[str, str, list[int]]]) -> list[dict[str, object]]:
    return [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in outputs]
