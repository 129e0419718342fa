"""`headway distill`: the version that it publishes, what it prints, its refusals, and that Ctrl-C leaves nothing."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.main import cli
from app.registry.manifest import read_manifest
from recipes.digits import split_digits
from tests.cli.conftest import environment
from tests.fixtures_models import write_release
from tests.running import ROOT

PATIENCE_SECONDS = 240.0
LINEAR = "tests.fixtures_distill:Linear"
NET = f"""
import pathlib, torch
class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(64, 10))
    def forward(self, pixels):
        if self.training:
            pathlib.Path("started").touch()
        return super().forward(pixels / {16})
"""


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """A folder with train.npz, some of it labelled, and test.npz of digits, which are in the registry, too."""
    shutil.copytree(ROOT / "models" / "digits", root / "digits")
    write_release(root, "digits", "1.1.0")
    digits, folder = split_digits(), tmp_path / "data"
    folder.mkdir()
    classes = np.where(np.arange(600) % 5 == 0, digits.train_digits[:600], -1)
    np.savez(folder / "train.npz", pixels=digits.train_pixels[:600], class_index=classes)
    np.savez(folder / "test.npz", pixels=digits.test_pixels, class_index=digits.test_digits)
    np.savez(folder / "plain.npz", pixels=digits.train_pixels[:60])
    return folder


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """In this process, where PyTorch is imported already."""
    monkeypatch.setenv("HEADWAY_MODELS", str(root))
    monkeypatch.setenv("COLUMNS", "400")
    return CliRunner()


def _arguments(data: Path, *rest: str) -> list[str]:
    given = ["--teacher", "digits", "--student", LINEAR, "--data", str(data / "train.npz")]
    return ["distill", *given, "--evaluation", str(data / "test.npz"), "--learning-rate", "0.05", *rest]


def test_distill_publishes_the_next_minor_version(run: CliRunner, root: Path, data: Path) -> None:
    done = run.invoke(cli, _arguments(data, "--until-accuracy", "0.8", "--max-drop", "20"))
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == f"digits@1.2.0: {LINEAR} taught by 1.1.0; on 450 inputs (test.npz)"
    assert "epoch H(q, p)·T² H(q, y) loss top-1, held out" in lines
    assert any(
        line.startswith("learnt from 600 inputs, 120 of them labelled; the teacher's term can") for line in lines
    )
    epochs = done.stderr.splitlines()
    reached = f"The accuracy that was asked for, 80.0%, was reached in epoch {len(epochs)}: "
    assert any(line.startswith(reached) for line in lines)
    assert f"added digits@1.2.0 to {root}" in lines
    terms = r"epoch 1: loss (\S+) = (\S+) \(teacher\) \+ 0\.5 · (\S+) \(labels\); top-1 \d+\.\d%"
    loss, from_teacher, from_labels = map(float, re.fullmatch(terms, epochs[0]).groups())  # type: ignore[union-attr]
    assert loss == pytest.approx(from_teacher + 0.5 * from_labels, abs=2e-4)
    card = (root / "digits" / "1.2.0" / "README.md").read_text()
    made_by = f"headway distill --teacher digits@1.1.0 --student {LINEAR} --data train.npz --evaluation test.npz "
    assert f"| Made by | `{made_by}--alpha 0.5 --temperature 4 --until-accuracy 0.8 --max-epochs 100 " in card
    assert run.invoke(cli, ["models", "verify", "digits@1.2.0"]).exit_code == 0
    assert not list(root.glob(".staging-*"))


@pytest.mark.slow
def test_another_process_makes_the_same_file(run: CliRunner, root: Path, data: Path) -> None:
    wanted = _arguments(data, "--max-epochs", "3", "--max-drop", "90")
    assert run.invoke(cli, wanted).exit_code == 0
    command = [sys.executable, "-m", "app.cli.main", *wanted]
    again = subprocess.run(command, env=environment(root), cwd=ROOT, capture_output=True, timeout=PATIENCE_SECONDS)
    assert b"digits@1.2.0 is this very file already; nothing was added" in again.stdout


@pytest.mark.slow
def test_distill_as_json_says_that_the_target_was_not_reached(run: CliRunner, root: Path, data: Path) -> None:
    target = ("--until-accuracy", "1", "--max-epochs", "3", "--max-drop", "90")
    done = run.invoke(cli, _arguments(data, *target, "--version", "1.7.0", "--json"))
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [result[key] for key in ("model", "of", "version", "new", "reached", "inputs", "labelled", "held_out")] == [
        "digits", "1.1.0", "1.7.0", True, False, 600, 120, 450,
    ]  # fmt: skip
    assert [epoch["number"] for epoch in result["epochs"]] == [1, 2, 3]
    assert result["epochs"][-1]["from_teacher"] > result["least_from_teacher"]
    assert result["measured"]["lost_points"] <= 90
    assert read_manifest(root / "digits" / "1.7.0").files["model.onnx"].sha256 == result["sha256"]


@pytest.mark.parametrize(
    ("rest", "code", "says"),
    [
        (["--teacher", "sum@1.0.0"], 1, "sum is no classifier"),
        (["--teacher", "nothing"], 1, "there is no model 'nothing'"),
        (["--student", "nowhere:Net"], 1, "nowhere"),
        (["--student", "Net"], 1, "write module:factory"),
        (["--student", "sys:exit"], 1, "sys:exit: fails with SystemExit"),
        (["--data", "missing.npz"], 1, "the first: has a value that is missing or not finite"),
        (["--data", "gone.npz"], 1, "gone.npz"),
        (["--version", "1.0.0"], 1, "digits@1.0.0 is there already"),
        (["--until-accuracy", "97"], 2, "until-accuracy"),
        (["--temperature", "0"], 2, "temperature"),
    ],
)
def test_distill_refusals(run: CliRunner, root: Path, data: Path, rest: list[str], code: int, says: str) -> None:
    before = sorted(root.rglob("*"))
    np.savez(data / "missing.npz", pixels=np.full((3, 64), np.nan, np.float32), class_index=[1, 2, 3])
    done = run.invoke(cli, _arguments(data, *(str(data / word) if word == "missing.npz" else word for word in rest)))
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr
    assert sorted(root.rglob("*")) == before


def test_ctrl_c_leaves_nothing(root: Path, data: Path, tmp_path: Path) -> None:
    working, temporary = tmp_path / "working", tmp_path / "temporary"
    for folder in (working, temporary):
        folder.mkdir()
    (working / "net.py").write_text(NET)
    before = sorted(root.rglob("*"))
    command = [
        sys.executable,
        "-m",
        "app.cli.main",
        *_arguments(data, "--student", "net:Net", "--max-epochs", "999999"),
    ]
    env = environment(root) | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, cwd=working, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (working / "started").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert sorted(root.rglob("*")) == before
    # torch may have made its own cache there, which all of its programs share.
    assert not [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


def test_guide_and_reference_name_the_options_that_are_there() -> None:
    command = get_command(cli).commands["distill"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    guide = (ROOT / "docs/guides/distill.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", guide)) <= options
    reference = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| `headway distill .*$", reference, re.MULTILINE)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)) == options
