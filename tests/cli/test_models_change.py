"""`headway models add | diff | remove | undelete | backup | restore`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper
from PIL import Image

from app.registry.manifest import Manifest, read_manifest
from app.registry.yaml import parse_yaml
from tests.cli.conftest import Done, Headway
from tests.fixtures_models import onnx_bytes, onnx_file, write_model, write_release
from tests.fixtures_tflite import tflite_bytes
from tests.running import ROOT


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """NAME.onnx of every kind, and what goes with them."""
    path = tmp_path / "files"
    path.mkdir()
    for kind in (
        "sum",
        "colour",
        "two_inputs",
        "double",
        "transpose",
        "one_row",
        "scaled",
        "centred",
        "same",
        "lookup",
    ):
        (path / f"{kind}.onnx").write_bytes(onnx_bytes(kind))
    (path / "softmax.onnx").write_bytes(_classifier("Softmax"))
    (path / "logits.onnx").write_bytes(_classifier("Identity"))
    (path / "labels.txt").write_text("low\nmiddle\nhigh\n")
    (path / "colours.txt").write_text("red\ngreen\nblue\n")
    return path


def _classifier(operator: str, more: str | None = None) -> bytes:
    nodes = [helper.make_node(operator, ["x"], ["scores"])]
    outputs = [("scores", "FP32", [-1, 3])]
    if more is not None:
        nodes.append(helper.make_node("Identity", ["x"], [more]))
        outputs.append((more, "FP32", [-1, 3]))
    return onnx_file(nodes, [("x", "FP32", [-1, 3])], outputs)


def _added(root: Path, label: str) -> Manifest:
    name, _, version = label.partition("@")
    return read_manifest(root / name / version)


CLASSIFIER = ("--labels", "labels.txt", "--activation", "none")
PHOTO = ("--labels", "colours.txt", "--activation", "none", "--resize", "4", "--filter", "bilinear", "--colour", "RGB",
         "--normalise", "in_graph")  # fmt: skip


@pytest.fixture
def add(headway: Headway, files: Path) -> Headway:
    """`headway models add`; names of `files` stand for their paths."""

    def run(source: str | Path, *flags: Any) -> Done:
        given = [files / flag if isinstance(flag, str) and (files / flag).exists() else flag for flag in flags]
        return headway("models", "add", files / source, *given, COLUMNS="400")

    return run


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [
        ("softmax", CLASSIFIER, {"task": "tabular-classification", "axis": 0, "answer": "classification"}),
        ("colour", PHOTO, {"task": "image-classification", "axis": 0, "answer": "classification"}),
        ("colour", ("--content", "tensor"), {"task": "tensor", "axis": 0, "answer": "tensor"}),
        ("sum", ("--task", "regression"), {"task": "regression", "axis": 0, "answer": "regression"}),
        ("sum", (), {"task": "tensor", "axis": 0, "answer": "tensor"}),
        ("two_inputs", (), {"task": "tensor", "axis": 0, "answer": "tensor"}),
        ("double", (), {"task": "tensor", "axis": None, "answer": "tensor"}),
        ("transpose", (), {"task": "tensor", "axis": None, "answer": "tensor"}),
        ("one_row", (), {"task": "tensor", "axis": 0, "answer": "tensor"}),
        ("scaled", ("--shared", "by"), {"task": "tensor", "axis": 0, "answer": "tensor"}),
        ("scaled", ("--batch-axis", "none"), {"task": "tensor", "axis": None, "answer": "tensor"}),
        ("centred", (), {"task": "tensor", "axis": None, "answer": "tensor"}),
        ("same", (), {"task": "tensor", "axis": 0, "answer": "tensor"}),
        ("lookup", (), {"task": "tensor", "axis": 0, "answer": "tensor"}),
    ],
)
def test_bare_file_is_described(
    add: Headway, root: Path, kind: str, flags: tuple[str, ...], expected: dict[str, Any]
) -> None:
    done = add(f"{kind}.onnx", "--name", "new", *flags)
    assert (done.code, done.err) == (0, "")
    assert f"added new@1.0.0 to {root}" in done.out
    found = _added(root, "new@1.0.0")
    assert {"task": found.task, "axis": found.batch.axis, "answer": found.answer.type} == expected
    assert sorted(found.files) == sorted({"model.onnx", *({"labels.txt"} if "--labels" in flags else ())})


def test_first_version_makes_the_registry(add: Headway, tmp_path: Path) -> None:
    root = tmp_path / "new"
    arguments = ("--name", "new", "--models", root)
    for file, *flags in (["colour.onnx"], ["sum.onnx", "--bump", "major"], ["gone.onnx"]):
        done = add(file, *arguments, *flags)
        assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
        assert not root.exists()
    assert "name: new" in add("sum.onnx", *arguments, "--dry-run").out
    assert not root.exists()
    done = add("sum.onnx", *arguments, "--json")
    assert (done.code, done.err) == (0, f"made the registry directory {root}\n")
    assert json.loads(done.out)["new"] is True
    assert _added(root, "new@1.0.0").task == "tensor"
    assert add("sum.onnx", *arguments, "--version", "1.0.1").err == ""
    version = shutil.copytree(root / "new" / "1.0.1", tmp_path / "version")
    assert add(version, "--models", tmp_path / "other").err == f"made the registry directory {tmp_path / 'other'}\n"


def test_registry_that_cannot_be_made(add: Headway, files: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    places = {
        tmp_path / "a" / "b": f"there is no such registry directory, and no {tmp_path / 'a'} to make it in",
        files / "labels.txt": "there is no such registry directory; name it with --models",
        tmp_path / "link": "there is no such registry directory; name it with --models",
        Path("/sys/new"): "/sys: cannot be changed here",
    }
    for place, words in places.items():
        done = add("sum.onnx", "--name", "new", "--models", place)
        assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1), done.err
        assert words in done.err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("kind", "flags", "datatypes"),
    [
        ("one_row", ("--task", "regression"), ["FP32", "FP32"]),
        ("two_inputs", (), ["FP32", "FP32", "FP32"]),
        ("levels", (), ["FP32", "FP32"]),  # 8 bits in the file: callers send and get what they stand for
    ],
)
def test_tflite_file_is_described(
    add: Headway, files: Path, root: Path, kind: str, flags: tuple[str, ...], datatypes: list[str]
) -> None:
    (files / "new.tflite").write_bytes(tflite_bytes(kind))
    done = add("new.tflite", "--name", "new", *flags)
    assert (done.code, done.err) == (0, "")
    found = _added(root, "new@1.0.0")
    assert (found.runtime, sorted(found.files), found.batch.axis) == ("tflite", ["model.tflite"], 0)
    assert [entry.datatype for entry in (*found.inputs, *found.outputs)] == datatypes


def test_photo_model_answers(add: Headway, headway: Headway, root: Path, tmp_path: Path) -> None:
    golden = tmp_path / "golden"
    golden.mkdir()
    Image.new("RGB", (9, 9), (255, 51, 0)).save(golden / "red.png")
    done = add("colour.onnx", "--name", "new", *PHOTO, "--golden", golden, "--json")
    assert json.loads(done.out) == {"model": "new", "version": "1.0.0", "new": True, "verified": True}
    found = _added(root, "new@1.0.0")
    assert found.processing.model_dump() == {
        "type": "image", "resize": 4, "crop": 4, "filter": "bilinear", "colour": "RGB", "layout": "NHWC",
        "normalise": "in_graph",
    }  # fmt: skip
    recorded = json.loads((root / "new" / "1.0.0" / "golden" / "golden.json").read_text())["requests"]
    assert recorded[0]["image"] == "red.png"
    assert [(one["index"], one["confidence"]) for one in recorded[0]["top"]] == [(0, 1.0), (1, 0.2), (2, 0.0)]
    done = headway("predict", "new", golden / "red.png", "--json")
    assert json.loads(done.out)["results"][0][0]["label"] == "red"
    # What was recorded can be given again.
    done = add("colour.onnx", "--name", "other", *PHOTO, "--golden", root / "new" / "1.0.0" / "golden")
    assert done.code == 0, done.err


def test_golden_rows_are_recorded(add: Headway, root: Path, tmp_path: Path) -> None:
    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "one.json").write_text("[[1, 2, 3]]")
    (golden / "two.json").write_text('{"inputs": {"x": [[0, 0, 0.5]]}}')
    assert add("sum.onnx", "--name", "new", "--task", "regression", "--golden", golden).code == 0
    recorded = json.loads((root / "new" / "1.0.0" / "golden" / "golden.json").read_text())["requests"]
    assert recorded == [{"inputs": [[1, 2, 3]], "value": 6.0}, {"inputs": {"x": [[0, 0, 0.5]]}, "value": 0.5}]
    (golden / "two.json").write_text("[[1]]")
    done = add("sum.onnx", "--name", "other", "--task", "regression", "--golden", golden)
    assert "two.json: is no golden request of this model: input 'x' has shape [1, 1]" in done.err
    (golden / "two.json").unlink()
    assert add("sum.onnx", "--name", "other", "--golden", golden).code == 0
    recorded = json.loads((root / "other" / "1.0.0" / "golden" / "golden.json").read_text())["requests"]
    assert recorded == [{"inputs": [[1, 2, 3]], "outputs": {"total": [[6.0]]}}]


MISUSE: list[tuple[str, tuple[Any, ...], str]] = [
    ("softmax.onnx", (), "a model file needs a name: say --name"),
    ("softmax.onnx", ("--name", "New"), "--name New: use a-z"),
    ("softmax.onnx", ("--name", "new", "--version", "1.0"), "--version '1.0' is not a version"),
    ("softmax.onnx", ("--name", "new", "--version", "1.0.0", "--bump", "minor"), "say --version or --bump, not both"),
    ("colour.onnx", ("--name", "new", *PHOTO[:-1], "1/"), "--normalise 1/: write in_graph, or MEAN/SCALE"),
]
REFUSED: list[tuple[str, tuple[Any, ...], str]] = [
    ("softmax.onnx", ("--name", "new", "--bump", "minor"), "no version that --bump could start from"),
    ("softmax.onnx", ("--name", "scores"), "has 1.10.0 already: say --bump major, minor or patch"),
    ("softmax.onnx", ("--name", "new", "--labels", "labels.txt"),
     "whether the scores of 'scores' are probabilities the file does not say (those of a trial add up to 1)"),
    ("logits.onnx", ("--name", "new", "--labels", "labels.txt"), "(those of a trial do not add up to 1)"),
    ("logits.onnx", ("--name", "new", *CLASSIFIER), "--activation none: the scores of 'scores' are not from 0 to 1"),
    ("softmax.onnx", ("--name", "new", "--labels", "labels.txt", "--activation", "softmax"), "probabilities already"),
    ("two_inputs.onnx", ("--name", "new", *CLASSIFIER), "has 3 labels, but no output has as many scores"),
    ("two.onnx", ("--name", "new", *CLASSIFIER), "which output is the answer? say --output, one of scores, more"),
    ("two.onnx", ("--name", "new", *CLASSIFIER, "--output", "none"), "--output none: is not one of scores, more"),
    ("softmax.onnx", ("--name", "new", "--labels", "nowhere.txt"), "nowhere.txt: cannot be read (No such file"),
    ("softmax.onnx", ("--name", "new", "--task", "tabular-classification"), "needs --labels"),
    ("colour.onnx", ("--name", "new"),
     "takes photos, it seems. How one becomes it the file does not say, and a wrong way costs accuracy without an "
     "error: say --resize, --filter, --colour, --normalise; or --content tensor"),
    ("colour.onnx", ("--name", "new", *PHOTO[:-2]), "say --normalise; or"),
    ("colour.onnx", ("--name", "new", *PHOTO[:-1], "127/128"), "processing: makes image: FP32 [1, 4, 4, 3], but"),
    ("colour.onnx", ("--name", "new", *PHOTO, "--crop", "5"), "crop (5) must not be larger than resize (4)"),
    ("colour.onnx", ("--name", "new", "--content", "tensor", "--resize", "4"), "--content tensor contradicts --resize"),
    ("scaled.onnx", ("--name", "new"), "say --batch-axis none, or --shared NAME"),
    ("scaled.onnx", ("--name", "new", "--shared", "z"), "--shared: the file has no input 'z'; it has x, by"),
    ("centred.onnx", ("--name", "new", "--batch-axis", "0", "--max-batch-size", "8"), "rows that share a run do not"),
    ("nowhere.onnx", ("--name", "new"), "nowhere.onnx: cannot be read (No such file"),
    ("labels.txt", ("--name", "new"), "labels.txt: is no model file that can be served; known are .onnx"),
    ("broken.onnx", ("--name", "new"), "broken.onnx"),
    ("softmax.onnx", ("--name", "new", *CLASSIFIER, "--golden", "empty"), "empty: holds no golden requests"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "flags", "message", "code"), [*((*one, 2) for one in MISUSE), *((*one, 1) for one in REFUSED)]
)
def test_what_the_file_cannot_say_is_asked_for(
    add: Headway, files: Path, root: Path, source: str, flags: tuple[str, ...], message: str, code: int
) -> None:
    (files / "empty").mkdir()
    (files / "broken.onnx").write_bytes(b"no model")
    (files / "two.onnx").write_bytes(_classifier("Softmax", "more"))
    before = sorted(path.name for path in root.iterdir())
    done = add(source, *flags)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert ".staging" not in done.err
    assert sorted(path.name for path in root.iterdir()) == before


def test_dry_run_prints_the_manifest(add: Headway, root: Path) -> None:
    done = add("softmax.onnx", "--name", "new", *CLASSIFIER, "--licence", "MIT", "--dry-run")
    assert yaml.safe_load(done.out)["licence"] == "MIT"
    as_json = json.loads(
        add("softmax.onnx", "--name", "new", *CLASSIFIER, "--licence", "MIT", "--dry-run", "--json").out
    )
    assert Manifest.model_validate(as_json) == parse_yaml(done.out.encode(), root / "model.yaml", Manifest)
    assert not (root / "new").exists()
    assert [path for path in root.iterdir() if path.name.startswith(".")] == []


def test_weights_beside_the_file_come_along(add: Headway, files: Path, root: Path) -> None:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="data/w.bin")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [weights],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    (files / "big.onnx").write_bytes(model.SerializeToString())
    done = add("big.onnx", "--name", "new")
    assert "data/w.bin: cannot be read" in done.err
    (files / "data").mkdir()
    (files / "data" / "w.bin").write_bytes(np.ones(3, np.float32).tobytes())
    assert add("big.onnx", "--name", "new").code == 0
    assert sorted(_added(root, "new@1.0.0").files) == ["data/w.bin", "model.onnx"]
    assert onnx.load(root / "new" / "1.0.0" / "model.onnx").graph.name == "tiny"


def test_bump_that_the_difference_contradicts(add: Headway, files: Path, root: Path) -> None:
    assert add("softmax.onnx", "--name", "new", *CLASSIFIER).code == 0
    (files / "labels.txt").write_text("low\nmedium\nhigh\n")
    for bump, version in (("patch", "1.0.1"), ("minor", "1.1.0")):
        done = add("softmax.onnx", "--name", "new", *CLASSIFIER, "--bump", bump)
        assert done.code == 1
        assert (
            f"{version} is a {bump} step from 1.0.0, but callers notice what differs (labels: 1 was 'middle' and is "
            "'medium'): this is a major step, 2.0.0"
        ) in done.err
    done = add("softmax.onnx", "--name", "new", *CLASSIFIER, "--version", "1.5.0")
    assert "1.5.0 is a minor step from 1.0.0" in done.err
    assert add("softmax.onnx", "--name", "new", *CLASSIFIER, "--bump", "major").code == 0
    (files / "labels.txt").write_text("low\r\nmedium\r\nhigh\r\n")
    assert add("softmax.onnx", "--name", "new", *CLASSIFIER, "--bump", "patch").code == 0
    assert sorted(path.name for path in (root / "new").glob("[0-9]*")) == ["1.0.0", "2.0.0", "2.0.1"]


def test_add_says_that_no_traffic_goes_to_it(add: Headway, root: Path) -> None:
    assert add("softmax.onnx", "--name", "new", *CLASSIFIER).code == 0
    write_release(root, "new", "1.0.0")
    done = add("softmax.onnx", "--name", "new", *CLASSIFIER, "--bump", "patch")
    assert "it is unverified: without golden requests" in done.out
    assert "no traffic goes to it yet: headway release canary new@1.0.1" in done.out


def test_add_directory(add: Headway, root: Path, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "outside", "new", "2.0.0")
    for flags, message, code in (
        (("--name", "other"), "--name is other, but model.yaml says new", 1),
        (("--version", "1.0.0"), "--version is 1.0.0, but model.yaml says 2.0.0", 1),
        (("--bump", "minor"), "--bump minor is for a model that has a version, but model.yaml says 2.0.0", 1),
        (("--activation", "none"), "--activation is for a bare model file", 2),
    ):
        done = add(directory, *flags)
        assert done.code == code
        assert message in done.err
    assert add(directory, "--name", "new").code == 0
    done = add(directory)
    assert (done.code, done.err) == (0, "")
    assert "already, the same in every byte that is read" in done.out
    directory = write_model(tmp_path / "outside", "new", "2.1.0")
    assert add(directory, "--bump", "minor").code == 0
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_shipped_models_can_be_added(add: Headway, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for version in ("1.0.0", "1.1.0"):
        done = add(ROOT / "models" / "digits" / version, "--models", empty, "--json")
        assert json.loads(done.out)["verified"] is True, done.err


def test_diff(headway: Headway, root: Path) -> None:
    write_model(root, "scores", "2.0.0", files={"labels.txt": b"low\nmiddle\ntop\n"}, limits={"queue": 3})
    done = headway("models", "diff", "scores@1.10.0", "scores@2.0.0")
    assert (done.code, done.err) == (0, "")
    assert "at least a major step" in done.out
    assert "'high'" in done.out
    data = json.loads(headway("models", "diff", "scores@1.10.0", "scores@2.0.0", "--json").out)
    assert data["bump"] == "major"
    assert {"section": "limits", "key": "queue", "old": "64", "new": "3", "bump": "patch"} in data["changes"]
    assert "nothing differs" in headway("models", "diff", "scores@1.9.0", "scores@1.10.0").out
    done = headway("models", "diff", "scores@1.9.0", "scores@3.0.0")
    assert "has no version 3.0.0" in done.err
    assert "name the exact version" in headway("models", "diff", "scores", "scores@1.9.0").err


def test_diff_of_many_labels_is_short(headway: Headway, root: Path) -> None:
    for version, prefix in (("1.0.0", "a"), ("2.0.0", "b")):
        labels = "".join(f"{prefix}{number}\n" for number in range(50)).encode()
        outputs = [{"name": "scores", "datatype": "FP32", "shape": [-1, 50]}]
        write_model(root, "many", version, files={"labels.txt": labels}, outputs=outputs)
    done = headway("models", "diff", "many@1.0.0", "many@2.0.0")
    assert "and 40 more" in done.out
    assert len(done.out.splitlines()) < 20


def test_remove_and_undelete(headway: Headway, root: Path) -> None:
    write_model(root, "scores", "1.8.0")
    done = headway("models", "remove", "scores@1.9.0")
    assert "release.yaml names it (stable)" in done.err
    done = headway("models", "remove", "scores@1.8.0")
    assert (done.code, done.err) == (0, "")
    assert not (root / "scores" / "1.8.0").exists()
    assert headway("models", "undelete", "scores@1.8.0").code == 0
    assert (root / "scores" / "1.8.0" / "model.yaml").exists()
    assert "is in use: without a release.yaml" in headway("models", "remove", "sum@1.0.0").err
    assert headway("models", "remove", "sum@1.0.0", "--force").code == 0
    assert not (root / "sum").exists()
    for arguments in (("remove", "sum@1.0.0"), ("remove", "nothing@1.0.0"), ("undelete", "colour@1.0.0")):
        done = headway("models", *arguments)
        assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)


def test_backup_and_restore(headway: Headway, root: Path, tmp_path: Path) -> None:
    done = headway("models", "backup", tmp_path / "all.tar.gz")
    assert (done.code, done.err) == (0, "")
    assert "all.tar.gz: colour@1.0.0, echo@1.0.0, " in done.out
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    shutil.rmtree(root)
    assert headway("models", "restore", tmp_path / "gone.tar.gz").code == 1
    assert not root.exists()
    done = headway("models", "restore", tmp_path / "all.tar.gz", COLUMNS="400")
    assert (done.code, done.err) == (0, f"made the registry directory {root}\n")
    assert "releases: scores" in done.out
    assert {path: path.read_bytes() for path in before} == before
    write_release(root, "scores", "1.10.0")
    done = headway("models", "restore", tmp_path / "all.tar.gz", COLUMNS="400")
    assert "release.yaml: differs from the one in the backup; --force replaces it" in done.err
    assert "no version: all were there" in headway("models", "restore", tmp_path / "all.tar.gz", "--force").out
    assert headway("models", "backup", tmp_path / "one.tar.gz", "sum", "nothing").code == 1
    assert "one.tar.gz: sum@1.0.0" in headway("models", "backup", tmp_path / "one.tar.gz", "sum").out
