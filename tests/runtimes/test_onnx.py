"""ONNX Runtime with models whose outputs are worked out by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from app.errors import InvalidTensor, RunFailed, RuntimeLoadError
from app.runtimes.onnx import OnnxRuntime
from app.tensors import Array, TensorSpec, object_array
from tests.fixtures_models import onnx_bytes
from tests.running import ROOT


def _load(tmp_path: Path, kind: str, threads: int = 1) -> OnnxRuntime:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_bytes(kind))
    return OnnxRuntime(path, threads)


def _floats(*rows: list[float]) -> Array:
    return np.array(rows, np.float32)


def test_signature_of_two_inputs(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "two_inputs")
    assert runtime.inputs == (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2)))
    assert runtime.outputs == (TensorSpec("total", "FP32", (-1, 2)),)


def test_run_two_inputs(tmp_path: Path) -> None:
    answer = _load(tmp_path, "two_inputs").run({"b": _floats([10, 20]), "a": _floats([1, 2])})
    np.testing.assert_array_equal(answer["total"], [[11, 22]])


def test_run_strings_in_and_out_as_bytes(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "echo")
    assert runtime.inputs == (TensorSpec("text", "BYTES", (-1,)),)
    answer = runtime.run({"text": object_array(["grün".encode(), b""], (2,))})["echoed"]
    assert answer.dtype == object
    assert answer.tolist() == ["grün".encode(), b"", "grün".encode(), b""]


def test_run_string_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(InvalidTensor, match="'text' has a string that is not UTF-8"):
        _load(tmp_path, "echo").run({"text": object_array([b"\xff"], (1,))})


def test_run_scalar(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "double")
    assert runtime.inputs == (TensorSpec("x", "FP32", ()),)
    answer = runtime.run({"x": np.array(21, np.float32)})["twice"]
    assert answer.shape == ()
    assert answer.tolist() == 42


def test_run_without_batch_axis(tmp_path: Path) -> None:
    answer = _load(tmp_path, "transpose").run({"x": _floats([1, 2, 3], [4, 5, 6])})
    np.testing.assert_array_equal(answer["turned"], [[1, 4], [2, 5], [3, 6]])


def test_run_gives_booleans(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "positive")
    assert runtime.outputs[0].datatype == "BOOL"
    answer = runtime.run({"x": _floats([-1, 0, 2])})["is_positive"]
    assert answer.dtype == np.bool_
    assert answer.tolist() == [[False, False, True]]


def test_run_named_outputs_only(tmp_path: Path) -> None:
    assert set(_load(tmp_path, "sum").run({"x": _floats([1, 2, 3])}, ["total"])) == {"total"}


def test_run_that_fails_says_why(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "lookup")
    with pytest.raises(RunFailed, match=r"failed on this input: .*out of data bounds"):
        runtime.run({"at": np.array([7])})
    np.testing.assert_array_equal(runtime.run({"at": np.array([2, 0])})["found"], [30, 10])


@pytest.mark.parametrize("feeds", [{}, {"x": np.zeros((1, 3))}, {"x": np.zeros((1, 4), np.float32)}, {"y": 1}])
def test_run_with_wrong_feeds_fails(tmp_path: Path, feeds: dict[str, Array]) -> None:
    with pytest.raises(RunFailed):
        _load(tmp_path, "sum").run(feeds)


def test_run_no_rows(tmp_path: Path) -> None:
    assert _load(tmp_path, "sum").run({"x": np.zeros((0, 3), np.float32)})["total"].shape == (0, 1)


def test_run_from_several_threads(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "sum", threads=2)

    def total(number: int) -> float:
        return float(runtime.run({"x": np.full((1, 3), number, np.float32)})["total"].item())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(total, range(400))) == [3.0 * number for number in range(400)]


@pytest.mark.parametrize("damage", ["empty", "half", "text", "reversed"])
def test_load_of_a_damaged_file_names_it(tmp_path: Path, damage: str) -> None:
    good = onnx_bytes("sum")
    data = {"empty": b"", "half": good[: len(good) // 2], "text": b"not onnx", "reversed": good[::-1]}[damage]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(RuntimeLoadError, match=rf"{path}: ONNX Runtime .* cannot load it: "):
        OnnxRuntime(path, 1)


def test_load_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeLoadError, match=r"nowhere\.onnx"):
        OnnxRuntime(tmp_path / "nowhere.onnx", 1)


def test_load_of_outputs_that_are_no_tensors(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["list"])],
        "sequence",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RuntimeLoadError, match="only tensors can be served"):
        OnnxRuntime(path, 1)


def test_without_the_package_the_application_starts_and_says_what_to_install() -> None:
    """As in an image for LiteRT alone."""
    code = (
        "import sys; from pathlib import Path\nsys.modules['onnxruntime'] = None\nimport app.main\n"
        "from app.runtimes.onnx import OnnxRuntime\nOnnxRuntime(Path('model.onnx'), 1)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == (
        "app.errors.RuntimeLoadError: model.onnx: needs ONNX Runtime, which is not installed: pip install onnxruntime"
    )


@pytest.mark.parametrize(("choice", "is_reported"), [({}, False), ({"ORT_DISABLE_TELEMETRY": "0"}, True)])
def test_nothing_is_reported_to_anybody_unless_the_operator_wants_it(
    tmp_path: Path, choice: dict[str, str], is_reported: bool
) -> None:
    """What ONNX Runtime keeps for its reports is the sign of them."""
    (tmp_path / "model.onnx").write_bytes(onnx_bytes("echo"))
    code = "from pathlib import Path; from app.runtimes.onnx import OnnxRuntime; OnnxRuntime(Path('MODEL'), 1)"
    env = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": os.environ["PATH"]} | choice
    code = code.replace("MODEL", str(tmp_path / "model.onnx"))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    assert bool(list(tmp_path.rglob("deviceid"))) == is_reported
