"""LiteRT with models whose outputs are worked out by hand."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.errors import RegistryError, RunFailed, RuntimeLoadError
from app.registry.servables.loading import load_servable
from app.runtimes.base import Cancellation
from app.runtimes.tflite import TfliteRuntime
from app.tensors import Array, TensorSpec, object_array
from tests.fixtures_models import write_model
from tests.fixtures_tflite import Network, Node, tflite_bytes, tflite_file
from tests.running import ROOT


def _write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    return path


def _load(tmp_path: Path, kind: str) -> TfliteRuntime:
    return TfliteRuntime(_write(tmp_path, tflite_bytes(kind)), 1)


def _load_levels(tmp_path: Path) -> TfliteRuntime:
    return TfliteRuntime(_write(tmp_path, tflite_bytes("levels")), 1, ["x"], ["y"])


def _floats(*rows: list[float]) -> Array:
    return np.array(rows, np.float32)


def test_signature_of_two_inputs(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "two_inputs")
    assert runtime.inputs == (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2)))
    assert runtime.outputs == (TensorSpec("total", "FP32", (-1, 2)),)


def test_run_two_inputs(tmp_path: Path) -> None:
    answer = _load(tmp_path, "two_inputs").run({"b": _floats([10, 20]), "a": _floats([1, 2])})
    np.testing.assert_array_equal(answer["total"], [[11, 22]])


def test_run_any_number_of_rows(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "two_inputs")
    for rows in (1, 5, 0, 2, 64, 1):
        a = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        np.testing.assert_array_equal(runtime.run({"a": a, "b": a})["total"], 2 * a)


def test_run_strings_as_bytes(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "column")
    assert runtime.inputs == (TensorSpec("text", "BYTES", (-1,)),)
    answer = runtime.run({"text": object_array(["grün".encode(), b"", b"\xff\x00"], (3,))})["column"]
    assert answer.dtype == object
    assert answer.tolist() == [["grün".encode()], [b""], [b"\xff\x00"]]
    assert {type(value) for value in answer.flat} == {bytes}


def test_run_scalar(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "double")
    assert runtime.inputs == (TensorSpec("x", "FP32", ()),)
    answer = runtime.run({"x": np.array(21, np.float32)})["twice"]
    assert isinstance(answer, np.ndarray)
    assert answer.shape == ()
    assert answer.tolist() == 42


def test_run_rows_that_do_not_lie_in_order(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2).transpose(2, 1, 0)
    answer = _load(tmp_path, "turned").run({"x": x})["turned"]
    np.testing.assert_array_equal(answer, x.transpose(0, 2, 1))


def test_run_gives_booleans(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "positive")
    assert runtime.outputs[0].datatype == "BOOL"
    answer = runtime.run({"x": _floats([-1, 0, 2])})["is_positive"]
    assert answer.dtype == np.bool_
    assert answer.tolist() == [[False, False, True]]


def test_outputs_by_the_names_of_the_signature(tmp_path: Path) -> None:
    """The file lists them the other way round, and its tensors have other names."""
    answer = _load(tmp_path, "swapped").run({"x": _floats([3])})
    assert {name: array.item() for name, array in answer.items()} == {"first": 3, "second": 6}


def test_tensor_names_without_a_signature(tmp_path: Path) -> None:
    network = Network(
        {"in": ("FP32", [-1, 1]), "half": ("FP32", [-1, 1])},
        ["in"],
        ["half"],
        [Node("MUL", ["in", "by"], ["half"])],
        {"by": np.array([0.5], np.float32)},
        signature=None,
    )
    runtime = TfliteRuntime(_write(tmp_path, tflite_file(network)), 1)
    assert runtime.inputs == (TensorSpec("in", "FP32", (-1, 1)),)
    for rows in (1, 3, 2):
        assert runtime.run({"in": np.full((rows, 1), 4, np.float32)})["half"].tolist() == [[2]] * rows


def test_run_named_outputs_only(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "swapped")
    assert set(runtime.run({"x": _floats([3])}, ["first"])) == {"first"}
    with pytest.raises(RunFailed, match="no output out_0"):
        runtime.run({"x": _floats([3])}, ["out_0"])


def test_run_that_fails_says_why(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "lookup")
    for _ in range(3):
        with pytest.raises(RunFailed, match=r"failed on this input: .*index out of bounds"):
            runtime.run({"at": np.array([7], np.int32)})
        np.testing.assert_array_equal(runtime.run({"at": np.array([2, 0], np.int32)})["found"], [30, 10])


def test_run_with_rows_that_do_not_agree(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "two_inputs")
    with pytest.raises(RunFailed, match="failed on this input"):
        runtime.run({"a": _floats([1, 2], [3, 4]), "b": _floats([1, 2], [3, 4], [5, 6])})
    assert runtime.run({"a": _floats([1, 2]), "b": _floats([1, 2])})["total"].tolist() == [[2, 4]]


@pytest.mark.parametrize(
    "feeds",
    [{}, {"x": np.zeros((1, 3))}, {"x": np.zeros((1, 4), np.float32)}, {"x": np.zeros((2, 3), np.float32)}, {"y": 1}],
)
def test_run_with_wrong_feeds_fails(tmp_path: Path, feeds: dict[str, Array]) -> None:
    """A file of one row is not resized: LiteRT would do it, and some graphs then answer wrongly."""
    with pytest.raises(RunFailed):
        _load(tmp_path, "one_row").run(feeds)


def test_run_from_several_threads(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "two_inputs")
    together = threading.Barrier(8)

    def total(number: int) -> list[float]:
        if number < 8:
            together.wait()
        rows = np.full((1 + number % 3, 2), number, np.float32)
        return sorted(set(runtime.run({"a": rows, "b": rows})["total"].flat))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(total, range(400))) == [[2.0 * number] for number in range(400)]


def test_run_that_was_cancelled_before(tmp_path: Path) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(RunFailed, match="ended before it began"):
        _load(tmp_path, "double").run({"x": np.array(1, np.float32)}, None, cancellation)


def test_quantised_tensors_as_they_are(tmp_path: Path) -> None:
    runtime = _load(tmp_path, "levels")
    assert (runtime.inputs[0].datatype, runtime.outputs[0].datatype) == ("UINT8", "INT8")
    answer = runtime.run({"x": np.array([[0, 255]], np.uint8)})["y"]
    assert answer.dtype == np.int8
    assert answer.tolist() == [[-128, 127]]


def test_quantised_tensors_as_floats(tmp_path: Path) -> None:
    """Scale 1/2, zero point 100: 0…255 stand for -50…77.5, halves are exact, and what is between is rounded."""
    runtime = _load_levels(tmp_path)
    assert runtime.inputs == (TensorSpec("x", "FP32", (-1, 2)),)
    assert runtime.outputs == (TensorSpec("y", "FP32", (-1, 2)),)
    answer = runtime.run({"x": _floats([-50, 77.5], [0, 0.5], [3.2, -3.3])})["y"]
    assert answer.dtype == np.float32
    assert answer.tolist() == [[-50, 77.5], [0, 0.5], [3, -3.5]]


def test_floats_beyond_the_range_of_a_quantised_tensor(tmp_path: Path) -> None:
    x = _floats([1000, -1000], [np.inf, -np.inf], [3e38, np.nan])
    assert _load_levels(tmp_path).run({"x": x})["y"].tolist() == [[77.5, -50], [77.5, -50], [77.5, 0]]


def test_float_input_of_a_quantised_output_only(tmp_path: Path) -> None:
    runtime = TfliteRuntime(_write(tmp_path, tflite_bytes("levels")), 1, [], ["y"])
    assert runtime.run({"x": np.array([[100, 102]], np.uint8)})["y"].tolist() == [[0, 1]]


@pytest.mark.parametrize(("datatypes", "row"), [(("FP32", "FP32"), [1.5, -50]), (("UINT8", "INT8"), [103, 0])])
def test_model_yaml_chooses_floats_or_integers(tmp_path: Path, datatypes: tuple[str, str], row: list[float]) -> None:
    servable = load_servable(_write_levels(tmp_path, *datatypes), 1)
    tensors = servable.prepare("tensor", [row])
    answer = servable.run(tensors)["y"]
    assert answer.tolist() == ([[1.5, -50]] if datatypes[0] == "FP32" else [[-25, -128]])


def test_model_yaml_with_a_datatype_that_the_file_has_not(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"says x: INT8 \[n, 2\], but the file says x: UINT8 \[n, 2\]"):
        load_servable(_write_levels(tmp_path, "INT8", "INT8"), 1)


def _write_levels(tmp_path: Path, taken: str, given: str) -> Path:
    return write_model(
        tmp_path,
        kind="two_inputs",
        runtime="tflite",
        files={"model.tflite": tflite_bytes("levels")},
        inputs=[{"name": "x", "datatype": taken, "shape": [-1, 2]}],
        outputs=[{"name": "y", "datatype": given, "shape": [-1, 2]}],
    )


@pytest.mark.parametrize("instances", [None, 2])
def test_file_of_one_row_is_run_for_each_row(tmp_path: Path, instances: int | None) -> None:
    directory = write_model(
        tmp_path,
        kind="one_row",
        runtime="tflite",
        files={"model.tflite": tflite_bytes("one_row")},
        limits={"instances": instances} if instances else {},
    )
    servable = load_servable(directory, 1)
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_array_equal(servable.run({"x": rows})["total"], rows.sum(axis=1, keepdims=True))


def test_load_leaves_the_bytes_that_were_loaded(tmp_path: Path) -> None:
    """A second thread needs a second interpreter, when the file may have gone or be another."""
    path = _write(tmp_path, tflite_bytes("double"))
    runtime = TfliteRuntime(path, 1)
    path.write_bytes(b"another")
    runtime._idle.clear()
    assert runtime.run({"x": np.array(1, np.float32)})["twice"].tolist() == 2


@pytest.mark.parametrize("damage", ["empty", "half", "text", "reversed", "mark only"])
def test_load_of_a_damaged_file_names_it(tmp_path: Path, damage: str) -> None:
    good = tflite_bytes("double")
    contents = {"empty": b"", "half": good[: len(good) // 2], "text": b"not tflite", "reversed": good[::-1]}
    path = _write(tmp_path, contents.get(damage, b"\0\0\0\0TFL3" + b"x" * 100))
    words = "LiteRT cannot load it: .*not a valid" if damage in ("half", "mark only") else "is no TFLite file"
    with pytest.raises(RuntimeLoadError, match=f"{path}: {words}"):
        TfliteRuntime(path, 1)


def test_load_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeLoadError, match=r"nowhere\.tflite: cannot be read: No such file"):
        TfliteRuntime(tmp_path / "nowhere.tflite", 1)


@pytest.mark.parametrize(
    ("operators", "words"),
    [
        (
            ["FlexErf", "FlexRoll"],
            r"operators of TensorFlow itself \(FlexErf, FlexRoll\); convert it without SELECT_TF_OPS",
        ),
        (["OurOwn"], "custom operators, which LiteRT does not have; the file has OurOwn: "),
    ],
)
def test_load_of_operators_that_litert_has_not(tmp_path: Path, operators: list[str], words: str) -> None:
    values = [f"v{number}" for number in range(len(operators) + 1)]
    network = Network(
        {name: ("FP32", [1]) for name in values},
        values[:1],
        values[-1:],
        [Node(operator, [values[at]], [values[at + 1]]) for at, operator in enumerate(operators)],
    )
    with pytest.raises(RuntimeLoadError, match=words):
        TfliteRuntime(_write(tmp_path, tflite_file(network)), 1)


def test_load_of_a_type_that_cannot_be_served(tmp_path: Path) -> None:
    network = Network(
        {"x": ("COMPLEX", [1]), "y": ("COMPLEX", [1])},
        ["x"],
        ["y"],
        [Node("RESHAPE", ["x", "shape"], ["y"])],
        {"shape": np.array([1], np.int32)},
    )
    with pytest.raises(RuntimeLoadError, match="'x' is of type complex64, which cannot be served"):
        TfliteRuntime(_write(tmp_path, tflite_file(network)), 1)


def test_load_without_the_package_says_what_to_install(tmp_path: Path) -> None:
    path = _write(tmp_path, tflite_bytes("double"))
    result = _python(f"sys.modules['ai_edge_litert'] = None\nTfliteRuntime(Path({str(path)!r}), 1)")
    assert "RuntimeLoadError" in result.stderr
    assert "pip install 'headway[tflite]'" in result.stderr


def test_nothing_is_imported_before_a_load() -> None:
    result = _python("import app.main\nassert not [name for name in sys.modules if 'litert' in name]")
    assert result.returncode == 0, result.stderr


def test_load_writes_nothing_of_its_own_on_stderr(tmp_path: Path) -> None:
    path = _write(tmp_path, tflite_bytes("double"))
    result = _python(f"TfliteRuntime(Path({str(path)!r}), 1)\nprint('after', file=sys.stderr)")
    assert result.stderr == "after\n"


def _python(code: str) -> subprocess.CompletedProcess[str]:
    head = "import sys\nfrom pathlib import Path\nfrom app.runtimes.tflite import TfliteRuntime\n"
    return subprocess.run([sys.executable, "-c", head + code], cwd=ROOT, capture_output=True, text=True, check=False)
