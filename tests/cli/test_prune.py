"""`headway prune`: the version that it publishes, what it prints, and its refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from app.cli.main import cli
from app.registry.manifest import read_manifest
from tests.cli.conftest import Headway
from tests.fixtures_prune import write_cnn
from tests.running import ROOT


@pytest.fixture
def data(root: Path) -> Path:
    """The folder of train.npz and test.npz of digits; cnn 1.0.0 is in the registry."""
    write_cnn(root)
    return root.parent


def test_prune_publishes_the_next_minor_version(headway: Headway, root: Path, data: Path) -> None:
    arguments = (
        "prune", "cnn@1.0.0", "--sparsity", "0.5", "--fine-tune", data / "train.npz", "--fine-tune-size", "200",
        "--epochs", "1", "--evaluation", data / "test.npz", "--sensitivity-size", "20",
    )  # fmt: skip
    done = headway(*arguments, COLUMNS="400")
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[0] == "cnn@1.1.0: weights by magnitude, sparsity 0.5; on 450 inputs (test.npz)"
    assert any(line.startswith("wide/Conv 6,912 ") for line in lines)
    assert "50.0% of the prunable weights are 0: stored and sent it is smaller, a run takes what it took" in lines
    assert "added cnn@1.1.0 to " in done.out
    card = (root / "cnn" / "1.1.0" / "README.md").read_text()
    command = (
        "headway prune cnn@1.0.0 --by magnitude --sparsity 0.5 --structure weight --schedule once "
        "--fine-tune train.npz --fine-tune-size 200 --epochs 1 --learning-rate 0.001 --batch-size 32 --alpha 1 "
        "--temperature 2 --evaluation test.npz --seed 0"
    )
    assert f"| Made by | `{command}` |" in card
    assert not list(root.glob(".staging-*"))


@pytest.mark.slow
def test_prune_channels_as_json_once(headway: Headway, root: Path, data: Path) -> None:
    arguments = (
        "prune", "cnn@1.0.0", "--structure", "channel", "--percentile", "25", "--multiple", "4", "--max-drop", "100",
        "--evaluation", data / "test.npz", "--sensitivity-size", "20",
    )  # fmt: skip
    done = headway(*arguments, "--version", "1.7.0", "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert [result[key] for key in ("model", "of", "version", "new")] == ["cnn", "1.0.0", "1.7.0", True]
    assert result["multiply_adds"]["after"] < result["multiply_adds"]["before"]
    assert [layer["channels"] for layer in result["layers"]] == [[12, 16], [12, 16], [36, 48], [12, 16], [10, 10]]
    assert (result["gone"], result["losses"], len(result["curve"])) == (0.25, [], 9)
    assert read_manifest(root / "cnn" / "1.7.0").files["model.onnx"].sha256 == result["sha256"]
    assert headway("models", "verify", "cnn@1.7.0").code == 0
    assert "cnn@1.7.0 is this very file already; nothing was added" in headway(*arguments).out


@pytest.mark.slow
def test_prune_registers_nothing_that_loses_too_much(headway: Headway, root: Path, data: Path) -> None:
    before = sorted(root.rglob("*"))
    done = headway(
        "prune",
        "cnn",
        "--percentile",
        "97",
        "--evaluation",
        data / "test.npz",
        "--sensitivity-size",
        "20",
        COLUMNS="900",
    )
    assert (done.code, done.out) == (1, "")
    assert "not registered: it loses " in done.err
    assert "the layers that hurt most are " in done.err
    assert sorted(root.rglob("*")) == before


# What is typed is wrong by itself.
MISUSE = {
    "say how much goes, once: --sparsity or --percentile or --threshold",
    "say --evaluation, or --fine-tune",
    "--by gradient takes data: say --fine-tune",
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cnn", "--evaluation", "test.npz"], "say how much goes, once: --sparsity or --percentile or --threshold"),
        (["cnn", "--sparsity", "0.5"], "say --evaluation, or --fine-tune"),
        (["cnn", "--sparsity", "0.5", "--by", "gradient"], "--by gradient takes data: say --fine-tune"),
        (["cnn", "--sparsity", "0.5", "--evaluation", "test.npz", "--version", "1.0.0"], "cnn@1.0.0 is there already"),
        (["nothing", "--sparsity", "0.5", "--evaluation", "test.npz"], "there is no model 'nothing'"),
        (["cnn", "--sparsity", "0.5", "--evaluation", "gone.npz"], "cannot be read"),
    ],
)
def test_prune_refusals(headway: Headway, root: Path, data: Path, arguments: list[str], says: str) -> None:
    before = sorted(root.rglob("*"))
    given = [str(data / word) if (data / word).is_file() else word for word in arguments]
    done = headway("prune", *given, COLUMNS="400")
    assert (done.code, done.out) == (2 if says in MISUSE else 1, "")
    assert says in done.err
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("rest", ["--learning-rate=-1", "--learning-rate=nan", "--temperature=0", f"--seed={2**64}"])
def test_numbers_that_no_training_takes_are_misuse(headway: Headway, rest: str) -> None:
    done = headway("prune", "cnn", "--sparsity", "0.5", rest)
    assert (done.code, done.out) == (2, "")
    assert rest.partition("=")[0] in done.err


def test_guide_and_reference_name_the_options_that_are_there() -> None:
    command = get_command(cli).commands["prune"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    guide = (ROOT / "docs/guides/prune.md").read_text(encoding="utf-8")
    reference = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    (line,) = (line for line in reference.splitlines() if line.startswith("| `headway prune "))
    others = {"--models", "--json", "--version", "--threads", "--seed", "--help"}
    assert options - others <= set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", guide))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)) == options - {"--help"}
