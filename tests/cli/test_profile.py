"""`headway profile`: what it prints, keeps and refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from app.cli.main import cli
from app.optimize.profiling.records import PROFILES, read_profiles
from recipes.digits import split_digits
from tests.cli.conftest import Headway, environment
from tests.fixtures_models import write_composition, write_model
from tests.fixtures_tflite import tflite_bytes
from tests.running import ROOT, heed_rights


@pytest.fixture
def digits(root: Path) -> Path:
    """digits 1.1.0, in the registry beside the others."""
    return Path(shutil.copytree(ROOT / "models/digits/1.1.0", root / "digits/1.1.0"))


def _run(root: Path, *arguments: str) -> Result:
    """In this process, where nothing is measured."""
    return CliRunner().invoke(cli, ["profile", *arguments], env={"HEADWAY_MODELS": str(root), "COLUMNS": "400"})


def test_profile_is_printed_and_kept(headway: Headway, digits: Path) -> None:
    done = headway("profile", "digits", COLUMNS="300")
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert re.match(r"digits@1\.1\.0 with ONNX Runtime [\d.]+, 1 thread\(s\), on .+ CPUs?\)$", lines[0])
    shown = r"p50 \d+\.\d{3} ms, p95 \d+\.\d{3} ms, p99 \d+\.\d{3} ms"
    assert re.fullmatch(f"one row, model alone {shown}", lines[1])
    assert re.fullmatch(f"one row, with processing {shown}", lines[2])
    assert any(
        line.startswith("top-1 accuracy 98.4% of 450 (scikit-learn")
        and line.endswith("; not measured now: the version's own evaluation says so")
        for line in lines
    )
    assert "FLOPs of a row 14,800 (twice the multiply-adds of convolutions and products)" in lines
    assert lines[-1] == "kept in profiles.json of the version"
    (kept,) = read_profiles(digits)
    assert (kept.stack.runtime, kept.threads, kept.parameters) == ("onnx", 1, 7638)


def test_matrix_measures_stacks_in_one_run_and_names_the_fastest(
    headway: Headway, digits: Path, tmp_path: Path
) -> None:
    split = split_digits()
    np.savez(tmp_path / "test.npz", pixels=split.test_pixels[:50], class_index=split.test_digits[:50])
    done = headway(
        "profile", "matrix", "digits", "--runtimes", "onnx,openvino", "--data", tmp_path / "test.npz", "--json"
    )
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert result["kept"] is True
    (found,) = result["matrices"]
    assert [(one["model"], one["runtime"]) for one in found["stacks"]] == [
        ("digits@1.1.0", "onnx"), ("digits@1.1.0", "openvino"),
    ]  # fmt: skip
    (times,) = found["figures"]["latency_ms"]["values"]
    kept = read_profiles(digits)
    assert times == [one.run_ms.p50 for one in kept]
    assert found["figures"]["latency_ms"]["mean"] == pytest.approx(np.mean(times))
    assert found["figures"]["top1"]["values"][0][0] == found["figures"]["top1"]["values"][0][1] > 0.9
    fastest = found["stacks"][int(np.argmin(times))]
    assert found["fastest"].startswith(f"{fastest['model']}, ")
    assert found["fastest"].endswith(fastest["version"])
    printed = _run(digits.parent.parent, "matrix")
    assert (printed.exit_code, printed.stderr) == (0, "")
    assert f"{times[0]:.3f}" in printed.stdout
    assert f": {found['fastest']}\n" in printed.stdout


def test_matrix_sets_twins_beside_each_other(headway: Headway, root: Path) -> None:
    write_model(root, "total", kind="two_inputs", runtime="tflite", files={"model.tflite": tflite_bytes("two_inputs")})
    done = headway("profile", "matrix", "two_inputs", "total", "--runtimes", "onnx,tflite", "--json")
    assert (done.code, done.err) == (0, "")
    (found,) = json.loads(done.out)["matrices"]
    assert [(one["model"], one["runtime"]) for one in found["stacks"]] == [
        ("two_inputs@1.0.0", "onnx"), ("total@1.0.0", "tflite"),
    ]  # fmt: skip
    assert found["figures"]["top1"]["values"] == [[None, None]]
    kept = read_profiles(root / "total" / "1.0.0")
    assert [(one.flops, one.parameters, one.golden) for one in kept] == [(0, 0, None)]
    assert kept[0].unknown == {"accuracy": "the version's own evaluation has none; say --data"}
    apart = json.loads(_run(root, "matrix", "--json").stdout)["matrices"]
    assert [[one["model"] for one in each["stacks"]] for each in apart] == [["total@1.0.0"], ["two_inputs@1.0.0"]]
    assert [each["fastest"] for each in apart] == [None, None]


def test_profile_of_a_registry_that_is_read_only_is_told_and_not_kept(root: Path, tmp_path: Path) -> None:
    (root / "sum").chmod(0o555)
    command = [sys.executable, "-m", "app.cli.main", "profile", "sum", "--json"]
    try:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(root),
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=heed_rights,
        )
    finally:
        (root / "sum").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] is False
    assert not (root / "sum" / "1.0.0" / PROFILES).exists()


# What is typed is wrong by itself.
MISUSE = {
    "there is no 'torch'; known are onnx, tflite, openvino",
    "--runtimes measures: name the models",
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sum", "--runtime", "tflite"], "sum@1.0.0 runs with ONNX Runtime or OpenVINO, not with LiteRT"),
        (["mean"], "is made of other versions"),
        (["sum", "--data", "gone.csv"], "sum is no classifier"),
        (["matrix"], "nothing was kept for 1 thread(s); headway profile MODEL measures a version"),
        (["matrix", "sum", "--runtimes", "torch"], "there is no 'torch'; known are onnx, tflite, openvino"),
        (["matrix", "sum", "--runtimes", "tflite"], "--runtimes tflite: reads no file of sum"),
        (["matrix", "--runtimes", "onnx"], "--runtimes measures: name the models"),
        (["matrix", "nothing"], "there is no model 'nothing'"),
        (["matrix", "scores"], "profiles.json: holds no profiles that this Headway can read"),
    ],
)
def test_profile_refusals(root: Path, arguments: list[str], says: str) -> None:
    write_composition(root, "mean", "average", ["scores@1.9.0", "scores@1.10.0"])
    if arguments[-1] == "scores":
        (root / "scores" / "1.9.0" / PROFILES).write_bytes(b"{}")
    before = sorted(root.rglob("*"))
    done = _run(root, *arguments)
    assert (done.exit_code, done.stdout) == (2 if says in MISUSE else 1, "")
    assert says in done.stderr
    assert sorted(root.rglob("*")) == before


def test_guide_and_reference_name_the_options_that_are_there() -> None:
    group = get_command(cli).commands["profile"]  # type: ignore[attr-defined]
    options = {
        name: {option for one in command.params for option in one.opts if option.startswith("--")}
        for name, command in group.commands.items()
    }
    guide = (ROOT / "docs/guides/profile.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", guide)) <= options["measure"] | options["matrix"]
    reference = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    for start, name in (("headway profile MODEL", "measure"), ("headway profile matrix", "matrix")):
        (line,) = re.findall(rf"^\| `{start}.*$", reference, re.MULTILINE)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)) == options[name]
