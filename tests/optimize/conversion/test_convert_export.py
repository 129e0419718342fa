"""A PyTorch module as an ONNX file: its answers for any number of rows, its layers, its bytes; and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from app.errors import InvalidContent
from app.optimize.networks.torch_export import export_onnx, load_factory
from tests.fixtures_convert import images, save_program, trained, write_nets
from tests.running import ROOT


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names of nets.py, which lies in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return write_nets(tmp_path)


def _run(file: bytes, *arrays: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(file)
    names = [entry.name for entry in session.get_inputs()]
    return list(session.run(None, dict(zip(names, arrays, strict=True))))


def test_file_answers_as_the_module_for_any_number_of_rows(nets: dict[str, Any]) -> None:
    module = trained(nets)
    file = export_onnx(module, images(1), input_names=["image"], output_names=["logits"])
    assert ort.InferenceSession(file).get_inputs()[0].shape == ["batch", 1, 8, 8]
    for rows in (1, 2, 7):
        with torch.no_grad():
            expected = module(torch.from_numpy(images(rows))).numpy()
        np.testing.assert_allclose(_run(file, images(rows))[0], expected, atol=1e-5)


def test_batch_normalisation_is_folded_and_layers_have_their_names(nets: dict[str, Any]) -> None:
    model = onnx.load_from_string(export_onnx(trained(nets), images(), input_names=["image"], output_names=["logits"]))
    names = [node.name for node in model.graph.node]
    assert names == ["0/Conv", "2/Clip", "3.conv/Conv", "3/Add", "3/Relu", "4/MaxPool", "5/Reshape", "7/Gemm"]
    assert (model.producer_name, model.opset_import[0].version) == ("", 21)
    assert not any(part.metadata_props or part.doc_string for part in (model, model.graph, *model.graph.node))


def test_several_inputs_and_outputs(nets: dict[str, Any]) -> None:
    module = nets["Pair"]()
    values, ids = np.ones((3, 3), np.float32), np.array([[1, 2], [3, 4], [0, 6]])
    file = export_onnx(module, [values, ids], input_names=["values", "ids"], output_names=["scores", "score"])
    expected = module(torch.from_numpy(values), torch.from_numpy(ids))
    for found, wanted in zip(_run(file, values, ids), expected.values(), strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-6)


def test_same_module_gives_the_same_bytes_in_another_process(nets: dict[str, Any], tmp_path: Path) -> None:
    module = trained(nets)
    module.train()
    torch.save(module.state_dict(), tmp_path / "digits.pt")
    export_onnx(nets["Pair"](), [np.ones((2, 3), np.float32), np.ones((2, 2), np.int64)], input_names=["v", "i"],
                output_names=["a", "b"])  # fmt: skip
    file = export_onnx(module, images(), input_names=["image"], output_names=["logits"])
    assert module.training
    code = (
        "import hashlib, numpy, sys, torch; from app.optimize.networks.torch_export import *;"
        "m = load_factory('nets:digits');"
        "m.load_state_dict(torch.load('digits.pt'));"
        "b = export_onnx(m, numpy.zeros((1, 1, 8, 8), 'f'), input_names=['image'], output_names=['logits']);"
        "print(hashlib.sha256(b).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == hashlib.sha256(file).hexdigest() + "\n"  # and nothing else on stdout


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("lacking", r"operator prims\.bessel_j0\.default in layer 1\.1 \(Bessel\) has no ONNX translation"),
        ("TwoRows", "works for 2 rows only"),
        ("ByValue", "depends on values"),
    ],
)
def test_what_no_graph_can_say_is_named(nets: dict[str, Any], factory: str, says: str) -> None:
    with pytest.raises(InvalidContent, match=says):
        export_onnx(nets[factory](), np.ones((2, 3), np.float32), input_names=["x"], output_names=["y"])


def test_names_and_examples_that_do_not_fit(nets: dict[str, Any]) -> None:
    row = np.ones((2, 3), np.float32)
    with pytest.raises(InvalidContent, match="has 2 outputs, and 1 names"):
        export_onnx(nets["Pair"](), [row, np.ones((2, 2), np.int64)], input_names=["v", "i"], output_names=["a"])
    with pytest.raises(InvalidContent, match="the same number of rows"):
        export_onnx(nets["Pair"](), [row, np.ones((1, 2), np.int64)], input_names=["v", "i"], output_names=["a"])


def test_load_factory(nets: dict[str, Any]) -> None:
    assert len(load_factory("nets:digits")) == len(nets["digits"]())
    assert type(load_factory("nets:Pair")).__name__ == "Pair"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nets", "write module:factory"),
        ("nets.py:digits", "nets.small:build"),
        ("nothing:digits", "cannot be imported .*No module named 'nothing'"),
        ("nets:missing", "there is no 'missing' in nets"),
        ("nets:number", "is a int"),
        ("nets:Residual", "missing 1 required positional argument: 'width'"),
        ("nets:failing", "RuntimeError: no such dataset"),
        ("json:JSONDecoder", "returns a JSONDecoder"),
    ],
)
def test_load_factory_refusals(nets: dict[str, Any], spec: str, says: str) -> None:  # noqa: ARG001
    with pytest.raises(InvalidContent, match=says):
        load_factory(spec)


def test_program_with_a_fixed_number_of_rows_keeps_it(nets: dict[str, Any], tmp_path: Path) -> None:
    from app.optimize.conversion.from_torch import open_program
    from app.optimize.conversion.source import Given

    save_program(tmp_path / "one.pt2", trained(nets), images(1), free=False)
    source = open_program(tmp_path / "one.pt2", Given(output_names=("logits",)))
    assert [spec.shape for spec in source.inputs] == [(1, 1, 8, 8)]
    source.convert("onnx", tmp_path / "one.onnx")
    assert ort.InferenceSession(tmp_path / "one.onnx").get_inputs()[0].shape == [1, 1, 8, 8]
