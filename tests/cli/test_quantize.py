"""`headway quantize`: the version that it publishes, what it prints, and its refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from app.cli.main import cli
from app.registry.manifest import read_manifest
from recipes.digits import split_digits
from tests.cli.conftest import Headway
from tests.fixtures_models import write_release
from tests.fixtures_quantize import write_brittle
from tests.fixtures_tflite_networks import write_digits_tflite
from tests.running import ROOT


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """A folder with train.npz, plain.csv and test.npz of digits, which are in the registry, too; 1.1.1 is brittle."""
    write_brittle(root, "1.1.1")
    write_digits_tflite(root)
    for version in ("1.0.0", "1.1.0"):
        shutil.copytree(ROOT / "models" / "digits" / version, root / "digits" / version)
    digits = split_digits()
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "train.npz", pixels=digits.train_pixels)
    np.savetxt(folder / "plain.csv", digits.train_pixels[:80], "%g", delimiter=",")
    np.savez(folder / "test.npz", pixels=digits.test_pixels, class_index=digits.test_digits)
    return folder


def test_quantize_publishes_the_next_minor_version(headway: Headway, root: Path, data: Path) -> None:
    write_release(root, "digits", "1.1.0")
    arguments = ("quantize", "digits", "--calibration", data / "train.npz", "--evaluation", data / "test.npz")
    done = headway(*arguments, COLUMNS="400")
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[0] == "digits@1.2.0: static INT8 QDQ, per channel, MinMax, reduce_range; on 450 inputs (test.npz)"
    assert "top-1 accuracy 98.4% 98.4% +0.0 points" in lines
    assert any(line.startswith("model file 31.4 kB 12.7 kB 2.4") for line in lines)
    assert "added digits@1.2.0 to " in done.out
    (line,) = (line for line in lines if line.startswith("no traffic goes to it yet: "))
    assert headway(*line.removeprefix("no traffic goes to it yet: ").split()[1:]).code == 0
    card = (root / "digits" / "1.2.0" / "README.md").read_text()
    command = "headway quantize digits@1.1.0 --to int8 --scheme static --calibration train.npz --evaluation test.npz "
    assert f"| Made by | `{command}--calibration-size 200 --seed 0` |" in card
    assert headway("models", "verify", "digits@1.2.0").code == 0
    again = headway(*arguments)
    assert "digits@1.2.0 is this very file already; nothing was added" in again.out
    assert not list(root.glob(".staging-*"))


def test_quantize_as_json_under_a_given_number(headway: Headway, root: Path, data: Path) -> None:
    done = headway(
        "quantize", "digits@1.1.0", "--to", "int4", "--calibration", data / "plain.csv", "--version", "1.7.0", "--json"
    )
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert [result[key] for key in ("model", "of", "version", "new", "verified")] == [
        "digits", "1.1.0", "1.7.0", True, True,
    ]  # fmt: skip
    assert [layer["weights"] for layer in result["layers"]] == [6400, 1000]
    assert result["proposal"] == ["MatMul/MatMulAddFusion"]
    assert (result["measured"]["n"], result["measured"]["lost_points"]) == (80, None)
    assert result["measured"]["agreement"] > 0.95
    assert read_manifest(root / "digits" / "1.7.0").files["model.onnx"].sha256 == result["sha256"]


def test_quantize_of_a_tflite_file(headway: Headway, root: Path, data: Path) -> None:
    lines = []
    for arguments in (["--to", "int4"], ["--scheme", "dynamic"]):
        done = headway(
            "quantize", "digits-tflite@1.0.0", *arguments, "--evaluation", data / "test.npz", "--json", COLUMNS="400"
        )
        assert (done.code, done.err) == (0, "")
        lines.append(json.loads(done.out))
        assert headway("models", "verify", f"digits-tflite@{lines[-1]['version']}").code == 0
    assert [line["version"] for line in lines] == ["1.1.0", "1.2.0"]
    assert [line["measured"]["n"] for line in lines] == [450, 450]
    assert {layer["name"] for layer in lines[1]["layers"]} == {"hidden", "logits"}
    card = (root / "digits-tflite" / "1.1.0" / "README.md").read_text()
    assert "| Made by | `headway quantize digits-tflite@1.0.0 --to int4 --evaluation test.npz --cal" in card
    done = headway("quantize", "digits-tflite@1.1.0", "--calibration", data / "train.npz")
    assert "is quantised already (FULLY_CONNECTED); name the float version instead" in done.err


@pytest.mark.slow
def test_quantize_with_training(headway: Headway, root: Path, data: Path) -> None:
    learnt = ("--fine-tune", data / "test.npz", "--epochs", "1", "--learning-rate", "0.0005")
    done = headway("quantize", "digits@1.1.0", "--scheme", "qat", *learnt, COLUMNS="400")
    assert (done.code, done.err) == (0, "")
    assert "digits@1.2.0: quantisation-aware training, then static INT8 QDQ, per channel, MinMax, reduce" in done.out
    card = (root / "digits" / "1.2.0" / "README.md").read_text()
    words = (
        "--scheme qat --fine-tune test.npz --epochs 1 --learning-rate 0.0005 --alpha 1 --calibration-size 200 --seed 0"
    )
    assert f"| Made by | `headway quantize digits@1.1.0 --to int8 {words}` |" in card
    without = ("--fine-tune", data / "plain.csv", "--epochs", "1", "--alpha", "0")
    done = headway("quantize", "digits@1.1.0", "--scheme", "qat", *without, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["method"]["scheme"] == "qat"


def test_quantize_registers_nothing_that_loses_too_much(headway: Headway, root: Path, data: Path) -> None:
    before = sorted(root.rglob("*"))
    lossy = ("quantize", "digits@1.1.1", "--to", "int4", "--evaluation", data / "test.npz")
    done = headway(*lossy)
    assert (done.code, done.out) == (1, "")
    assert "not registered: it loses " in done.err
    assert sorted(root.rglob("*")) == before
    kept = headway(*lossy, "--keep-float", "MatMul/MatMulAddFusion", COLUMNS="400")
    assert kept.code == 0, kept.err
    assert "in float: MatMul/MatMulAddFusion; on 450 inputs" in kept.out


# What is typed is wrong by itself.
MISUSE = {
    "say --calibration",
    "in the loop: say --fine-tune, labelled inputs to learn from, or any inp",
    "--alpha are for --scheme qat",
    "quantise the ONNX version that this TFLite",
    "--full-range is for ONNX",
    "--scheme is for --to int8",
    "--auto goes by the accuracy that is lost: say --evaluation",
    "--version 'new' is not a version",
    "write the model as name",
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digits@1.1.0"], "say --calibration"),
        (["digits@1.1.0", "--evaluation", "test.npz"], "say --calibration"),
        (
            ["digits@1.1.0", "--scheme", "qat"],
            "in the loop: say --fine-tune, labelled inputs to learn from, or any inp",
        ),
        (
            ["digits@1.1.0", "--scheme", "qat", "--fine-tune", "plain.csv"],
            "must name the columns, one of them class_index",
        ),
        (["digits@1.1.0", "--calibration", "train.npz", "--epochs", "3"], "--alpha are for --scheme qat"),
        (["digits-tflite", "--scheme", "qat", "--fine-tune", "test.npz"], "quantise the ONNX version that this TFLite"),
        (["digits-tflite", "--full-range", "--calibration", "train.npz"], "--full-range is for ONNX"),
        (["digits-tflite", "--calibration", "train.npz", "--keep-float", "last"], "there is no layer 'last'"),
        (["digits@1.1.0", "--to", "fp16", "--scheme", "static"], "--scheme is for --to int8"),
        (["digits@1.1.0", "--auto"], "--auto goes by the accuracy that is lost: say --evaluation"),
        (["digits@1.1.0", "--calibration", "train.npz", "--version", "1.0.0"], "digits@1.0.0 is there already"),
        (["digits@1.1.0", "--calibration", "train.npz", "--version", "new"], "--version 'new' is not a version"),
        (["digits@1.1.0", "--calibration", "gone.npz"], "is no file of rows"),
        (["digits@1.1.0", "--calibration", "train.npz", "--evaluation", "train.npz"], "has no array 'class_index'"),
        (["digits@1.0.0", "--calibration", "train.npz"], "has no layer that can be quantised"),
        (["digits@1.1.0", "--calibration", "train.npz", "--keep-float", "first"], "there is no layer 'first'"),
        (["digits@1.1.0", "--calibration", "missing.npy"], "has a value that is missing or not finite"),
        (["two_inputs@1.0.0", "--calibration", "train.npz"], "this is for models of photos, or of one input"),
        (["nothing", "--to", "fp16"], "there is no model 'nothing'"),
        (["Digits!", "--to", "fp16"], "write the model as name"),
        (["digits@1.1.0", "--models", "gone"], "there is no such registry directory"),
    ],
)
def test_quantize_refusals(headway: Headway, root: Path, data: Path, arguments: list[str], says: str) -> None:
    before = sorted(root.rglob("*"))
    np.save(data / "missing.npy", np.full((3, 64), np.nan, np.float32))
    given = [str(data / word) if (data / word).is_file() else word for word in arguments]
    done = headway("quantize", *given, COLUMNS="400")
    assert (done.code, done.out) == (2 if says in MISUSE else 1, "")
    assert says in done.err
    assert sorted(root.rglob("*")) == before


def test_guide_and_reference_name_the_options_that_are_there() -> None:
    command = get_command(cli).commands["quantize"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    guide = (ROOT / "docs/guides/quantize.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", guide))
    assert named - {"--keep-fp32"} <= options
    reference = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| `headway quantize .*$", reference, re.MULTILINE)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)) == options
