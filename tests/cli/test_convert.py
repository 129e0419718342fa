"""`headway convert`: the version that it publishes, what it prints, and its refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from typer.main import get_command

from app.cli.main import cli
from app.registry.manifest import read_manifest
from tests.cli.conftest import Headway
from tests.fixtures_convert import NETS, fit, write_pickle
from tests.running import ROOT


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    return write_pickle(tmp_path / "blobs.pkl", fit(LogisticRegression(), names=["ant", "bee", "cat"]))


def test_convert_publishes_a_version_that_serves(headway: Headway, root: Path, blobs: Path) -> None:
    arguments = ("convert", blobs, "--trust-pickle", "--name", "blobs", "--version", "2.0.0", "--licence", "MIT")
    done = headway(*arguments, COLUMNS="400")
    assert (done.code, done.err) == (0, "")
    first, second, third, *_ = done.out.splitlines()
    assert first.startswith("converted blobs.pkl (scikit-learn) to onnx by scikit-learn ")
    assert re.fullmatch(r"largest difference from the source \S+ \(of 'probabilities'\), same top-1, on 17 .*", second)
    assert third.startswith("added blobs@2.0.0 to ")
    manifest = read_manifest(root / "blobs" / "2.0.0")
    assert (manifest.task, manifest.licence) == ("tabular-classification", "MIT")
    assert headway("models", "verify", "blobs@2.0.0").code == 0
    card = (root / "blobs" / "2.0.0" / "README.md").read_text()
    assert "`headway convert blobs.pkl --to onnx --trust-pickle --name blobs --version 2.0.0`" in card
    again = headway(*arguments, COLUMNS="400")
    assert "blobs@2.0.0 is in " in again.out
    done = headway(*arguments, "--models", "new", COLUMNS="400")
    assert (done.code, done.err) == (0, "made the registry directory new\n")


@pytest.mark.slow
def test_convert_as_json_on_given_samples(headway: Headway, root: Path, blobs: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((40, 7)))
    arguments = ("convert", blobs, "--trust-pickle", "--name", "blobs", "--samples", tmp_path / "rows.npy")
    done = headway(*arguments, "--output-name", "shares", "--json")
    found = json.loads(done.out)
    assert (done.code, found["version"], found["target"]) == (0, "1.0.0", "onnx")
    assert (found["samples"], found["agreement"]["rows"]) == ("40 rows of rows.npy", 40)
    assert found["agreement"]["output"] == "shares"
    assert found["agreement"]["largest"] < 1e-5
    assert read_manifest(root / "blobs" / "1.0.0").outputs[0].name == "shares"
    dry = headway(*arguments, "--bump", "minor", "--dry-run")
    assert "version: 1.1.0" in dry.out
    assert not (root / "blobs" / "1.1.0").exists()


def test_what_the_module_prints_is_not_the_answer(headway_process: Headway, tmp_path: Path) -> None:
    code = "import torch\nprint('importing')\nclass Net(torch.nn.Identity):\n    def forward(self, x):\n        "
    (tmp_path / "working" / "loud.py").write_text(code + "print('running')\n        return x + 1\n")
    done = headway_process("convert", "loud:Net", "--input", "x:FP32:n,3", "--name", "loud", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["new"] is True
    assert "importing" in done.err


def test_convert_of_a_module_from_the_current_directory(headway_process: Headway, root: Path, tmp_path: Path) -> None:
    (tmp_path / "working" / "nets.py").write_text(NETS, encoding="utf-8")
    done = headway_process("convert", "nets:Bessel", "--input", "x:FP32:n,3", "--name", "odd", COLUMNS="400")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(
        "error: operator prims.bessel_j0.default in layer the module itself (Bessel) has no ONNX"
    )
    done = headway_process("convert", "nets:TwoRows", "--input", "x:FP32:n,3", "--name", "odd", COLUMNS="400")
    assert "works for 2 rows only" in done.err
    assert not (root / "odd").exists()


# What is typed is wrong by itself.
MISUSE = {
    "say --name",
    "use a-z, 0-9",
    "--version 'new' is not a version",
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["blobs.pkl", "--name", "b"], "opening one runs what code it holds; say --trust-pickle"),
        (["blobs.pkl"], "say --name"),
        (["blobs.pkl", "--name", "B!"], "use a-z, 0-9"),
        (["blobs.pkl", "--name", "b", "--version", "new"], "--version 'new' is not a version"),
        (["blobs.pkl", "--name", "b", "--trust-pickle", "--to", "tflite"], "is not converted to tflite"),
        (["blobs.pkl", "--name", "b", "--trust-pickle", "--tolerance", "0"], "not registered: the result answers"),
        (["blobs.pkl", "--name", "b", "--trust-pickle", "--samples", "gone.npy"], "gone.npy: cannot be read"),
        (["blobs.pkl", "--name", "b", "--trust-pickle", "--activation", "softmax"], "add up to 1 for trial rows"),
        (["blobs.pkl", "--name", "b", "--input", "x:FP32"], "write NAME:DATATYPE:n,SIZE"),
        (["gone.onnx", "--name", "b"], "there is no such file"),
    ],
)
def test_convert_refusals(headway: Headway, root: Path, blobs: Path, arguments: list[str], says: str) -> None:
    before = sorted(root.rglob("*"))
    given = [str(blobs) if word == "blobs.pkl" else word for word in arguments]
    done = headway("convert", *given, COLUMNS="400")
    assert (done.code, done.out) == (2 if says in MISUSE else 1, "")
    assert says in done.err
    assert sorted(root.rglob("*")) == before


def test_guide_and_reference_name_the_options_that_are_there() -> None:
    command = get_command(cli).commands["convert"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    guide = (ROOT / "docs/guides/convert.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", guide)) <= options
    reference = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| `headway convert .*$", reference, re.MULTILINE)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)) == options
