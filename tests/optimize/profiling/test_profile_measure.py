"""What is measured of real versions, and that OpenVINO, which is only here to be measured, reports to nobody."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from app.errors import InvalidContent, RuntimeLoadError
from app.optimize.profiling.inputs import find_contents
from app.optimize.profiling.measure import describe_hardware, measure
from app.optimize.profiling.openvino_runtime import OpenvinoRuntime
from app.optimize.profiling.records import Profile
from app.optimize.profiling.stack import open_with
from app.registry.store import Store
from app.runtimes.onnx import OnnxRuntime
from app.runtimes.packed import pack
from recipes.digits import split_digits
from tests.fixtures_models import GOLDEN, onnx_bytes, write_composition, write_model
from tests.fixtures_odd_models import write_odd_models
from tests.running import ROOT

MODELS = Store(ROOT / "models")
DIGITS = ROOT / "models" / "digits" / "1.1.0"


def _silent(_name: str, _total: int) -> Callable[[], None]:
    return lambda: None


def _measure(store: Store, directory: Path, runtimes: Sequence[str], data: Path | None = None) -> list[Profile]:
    opened = [open_with(store, directory, runtime, 1) for runtime in runtimes]  # type: ignore[arg-type]
    return measure(store, opened, 1, data, _silent)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[Profile]:
    """digits 1.1.0 on held-out rows, with both runtimes in one run."""
    split = split_digits()
    path = tmp_path_factory.mktemp("data") / "test.npz"
    np.savez(path, pixels=split.test_pixels, class_index=split.test_digits)
    return _measure(MODELS, DIGITS, ("onnx", "openvino"), path)


def test_accuracy_is_that_of_an_independent_count(digits: list[Profile]) -> None:
    split = split_digits()
    session = ort.InferenceSession(DIGITS / "model.onnx")
    scores = session.run(["probabilities"], {"pixels": split.test_pixels.astype(np.float32)})[0]
    expected = float(np.mean(scores.argmax(axis=1) == split.test_digits))
    for profile in digits:
        assert profile.accuracy is not None
        assert profile.accuracy.top1 == pytest.approx(expected)
        assert (profile.accuracy.n, profile.accuracy.data, profile.accuracy.is_measured) == (450, "test.npz", True)


def test_profile_is_whole(digits: list[Profile]) -> None:
    for profile, runtime in zip(digits, ("onnx", "openvino"), strict=True):
        assert (profile.stack.runtime, profile.threads) == (runtime, 1)
        assert profile.hardware == describe_hardware()
        assert {"python", "numpy", "pillow"} < profile.libraries.keys()
        for times in (profile.run_ms, profile.whole_ms):
            assert 0 < times.p50 <= times.p95 <= times.p99
        assert profile.run_ms.p50 < profile.whole_ms.p50
        assert (profile.throughput.batch_size, profile.golden, profile.unknown) == (64, "", {})
        assert profile.throughput.rows_per_second > 0
        assert (profile.flops, profile.parameters) == (14_800, 7_638)
        assert profile.inputs == "32 of test.npz"
        if sys.platform.startswith("linux"):
            assert profile.memory is not None
            assert 0 < profile.memory.rss_bytes <= profile.memory.peak_rss_bytes < 1e9


@pytest.mark.parametrize(
    "kind", ["sum", "colour", "two_inputs", "echo", "double", "same", "one_row", "centred", "scaled"]
)
def test_every_kind_of_version_is_timed_with_something(tmp_path: Path, kind: str) -> None:
    options = {"batch": {"axis": None}} if kind == "centred" else {}
    directory = write_model(tmp_path, kind, kind=kind, **options)
    servable = open_with(Store(tmp_path), directory, "onnx", 1).servable
    contents = find_contents(servable, None)
    assert contents.data == "a blank input"
    servable.run_item(contents.kind, contents.items[0])


def test_stacks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    scores = write_model(tmp_path, "scores", **GOLDEN)
    with pytest.raises(InvalidContent, match=r"scores@1\.0\.0 runs with ONNX Runtime or OpenVINO, not with LiteRT"):
        open_with(store, scores, "tflite", 1)
    with pytest.raises(InvalidContent, match="is made of other versions"):
        open_with(store, write_composition(tmp_path, "mean", "average", ["scores@1.0.0", "scores"]), "onnx", 1)
    with pytest.raises(RuntimeLoadError, match="is of OpenVINO's type string"):
        open_with(store, write_model(tmp_path, "same", kind="same"), "openvino", 1)


def test_other_answers_to_golden_requests_are_a_finding(tmp_path: Path) -> None:
    """A file in which ONNX Runtime's answer is recorded wrongly would not load; OpenVINO is measured all the same."""
    wrong = {
        "golden.json": b'{"requests": [{"inputs": [[0, 0, 1]], "top": [{"index": 1, "confidence": 1}]}]}',
    }
    directory = write_model(tmp_path, "scores", files=wrong, golden={"file": "golden.json", "tolerance": 0.01})
    opened = open_with(Store(tmp_path), directory, "openvino", 1)
    assert opened.golden is not None
    assert opened.golden.startswith("golden.json: request 1 no longer gives its recorded answer")


@pytest.mark.parametrize(("kind", "shape"), [("scores", (3, 3)), ("colour", (2, 4, 4, 3)), ("centred", (4, 3))])
def test_openvino_answers_as_onnx_runtime(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_bytes(kind))
    expected = OnnxRuntime(path, 1)
    (tmp_path / "model.onnx.gz").write_bytes(pack(path.read_bytes()))
    names = [[spec.name for spec in specs] for specs in (expected.inputs, expected.outputs)]
    spec = expected.inputs[0]
    values = np.random.default_rng(0).integers(0, 200, shape)
    feed = {spec.name: values.astype(np.uint8 if spec.datatype == "UINT8" else np.float32)}
    for file in (path, tmp_path / "model.onnx.gz"):
        found = OpenvinoRuntime(file, 1, *names)
        assert (found.inputs, found.outputs) == (expected.inputs, expected.outputs)
        first = found.run(feed)
        found.run({spec.name: np.zeros_like(feed[spec.name])})
        for name, array in expected.run(feed).items():
            np.testing.assert_allclose(first[name], array, rtol=1e-5)
        found.close()


def test_openvino_refuses_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(RuntimeLoadError, match=r"model\.onnx: OpenVINO 2026.* cannot load it"):
        OpenvinoRuntime(path, 1)


_WATCHED = """
import os, sys
seen = []
def watch(event, arguments):
    made = ("os.fork", "os.forkpty", "os.mkdir", "os.posix_spawn", "subprocess.Popen")
    if event.startswith("socket.") or event in made:
        seen.append(event)
sys.addaudithook(watch)
import numpy as np
from pathlib import Path
from app.optimize.profiling.openvino_runtime import OpenvinoRuntime
seen.clear()
runtime = OpenvinoRuntime(Path(sys.argv[1]), 1, ["pixels"], ["probabilities"])
runtime.run({"pixels": np.zeros((1, 64), np.float32)})
import openvino
assert sys.modules["openvino_telemetry"] is None
assert seen == [], seen
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at HOME as Linux has it")
def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """`import openvino` alone makes ~/intel/openvino_ga_cid and forks a process that sends."""
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(DIGITS / "model.onnx")],
        env={"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_blank_input_is_of_each_datatype(tmp_path: Path) -> None:
    write_odd_models(tmp_path)
    for name in ("three", "same-bool", "same-bytes", "same-fp16", "pair"):
        (profile,) = _measure(Store(tmp_path), tmp_path / name / "1.0.0", ("onnx",))
        assert profile.inputs == "1 of a blank input"
