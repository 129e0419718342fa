"""`headway baseline`: the version that it publishes, the file that it writes, and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.registry.baseline import load_baseline, read_baseline
from app.registry.manifest import read_manifest
from tests.cli.conftest import Headway, environment
from tests.fixtures_models import GOLDEN, write_model
from tests.running import heed_rights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 photos: two thirds red, one third green."""
    path = tmp_path / "photos [of May]"
    path.mkdir()
    for number in range(60):
        Image.new("RGB", (8, 8), (0, 200, 0) if number % 3 == 0 else (200 + number % 50, 0, 0)).save(
            path / f"{number}.png"
        )
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("one,two,three\n" + "".join(f"{number / 60},0.25,0\n" for number in range(60)))
    return path


def test_baseline_publishes_the_next_patch_version(headway: Headway, root: Path, folder: Path) -> None:
    (folder / "[odd].png").write_bytes(b"no image")
    done = headway("baseline", "colour", folder, COLUMNS="400")
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["colour@1.0.0", "on", "60", "inputs", "(photos", "[of", "May])"] in lines
    assert ["size", "6.4e-05", "6.4e-05", "6.4e-05", "0.0%"] in lines
    assert "most frequent classes: red 67%, green 33%" in done.out
    assert f"1 inputs were left out; the first: {folder / '[odd].png'}: " in done.out
    assert "added colour@1.0.1 to " in done.out
    assert "the model has no release.yaml" in done.out
    path = root / "colour" / "1.0.1"
    baseline = load_baseline(path, read_manifest(path))
    assert baseline is not None
    assert (baseline.n, baseline.data) == (60, "photos [of May]")
    assert headway("models", "verify", "colour@1.0.1").code == 0
    again = headway("baseline", "colour@1.0.0", folder)
    assert "colour@1.0.1 carries this very baseline already; nothing was added to " in again.out
    assert sorted(entry.name for entry in (root / "colour").iterdir() if not entry.name.startswith(".")) == [
        "1.0.0",
        "1.0.1",
    ]
    assert not list(root.glob(".staging-*"))


def test_baseline_as_json_with_how_to_release(headway: Headway, root: Path, rows: Path) -> None:
    write_model(root, "scores", "1.9.0", **GOLDEN)
    done = headway("baseline", "scores", rows, "--data", "May", "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    found = {key: result[key] for key in ("model", "of", "version", "new", "verified", "file", "columns", "skipped")}
    assert found == {
        "model": "scores", "of": "1.9.0", "version": "1.9.1", "new": True, "verified": True, "file": None,
        "columns": 3, "skipped": [],
    }  # fmt: skip
    assert result["baseline"]["order"] == ["one", "two", "three"]
    assert result["baseline"]["data"] == "May"
    assert read_baseline(root / "scores" / "1.9.1" / "baseline.json").to_dict() == result["baseline"]
    promoted = headway("release", "promote", "scores@1.9.1")
    assert promoted.code == 0, promoted.err


def test_baseline_says_that_a_version_is_unverified(headway: Headway, rows: Path) -> None:
    done = headway("baseline", "scores@canary", rows, COLUMNS="400")
    assert done.code == 0, done.err
    assert "added scores@1.10.1 to " in done.out
    assert "it is unverified" in done.out
    line = "headway release promote scores@1.10.1 --unverified"
    assert line in done.out
    assert headway(*line.split()[1:]).code == 0


def test_baseline_to_a_file_publishes_nothing(headway: Headway, root: Path, rows: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    output = tmp_path / "out" / "sum.json"
    output.parent.mkdir()
    for _ in range(2):
        done = headway("baseline", "sum@1.0.0", rows, "--output", output, COLUMNS="400")
        assert done.code == 0, done.err
        assert f"written to {output}" in done.out
    assert read_baseline(output).value is not None
    assert list(output.parent.iterdir()) == [output]
    assert sorted(root.rglob("*")) == before


def test_baseline_keeps_what_was_there_when_it_fails(headway: Headway, tmp_path: Path) -> None:
    output, short = tmp_path / "sum.json", tmp_path / "short.csv"
    output.write_text("before")
    short.write_text("1,2,3\n" * 49)
    done = headway("baseline", "sum@1.0.0", short, "--output", output)
    assert done.code == 1
    assert "a baseline needs 50 inputs or more, and here are 49" in done.err
    assert output.read_text() == "before"


# What is typed is wrong by itself.
MISUSE = {
    "write the model as name",
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sum@1.0.0", "rows.csv", "--output", "gone/sum.json"], "cannot be written there"),
        (["sum@1.0.0", "rows.csv", "--output", "."], "cannot be written there"),
        (["sum@1.0.0", "photos"], "is no file of rows"),
        (["colour", "rows.csv"], "is not a folder of images"),
        (["two_inputs", "rows.csv"], "this is for models of photos, or of one input of numbers"),
        (["nothing", "rows.csv"], "there is no model 'nothing'"),
        (["Sum!", "rows.csv"], "write the model as name"),
        (["sum", "rows.csv", "--data", ""], "cannot be the name of the data"),
        (["sum", "rows.csv", "--models", "gone"], "there is no such registry directory"),
    ],
)
def test_baseline_refusals(headway: Headway, tmp_path: Path, arguments: list[str], says: str) -> None:
    working = tmp_path / "working"
    (working / "photos").mkdir()
    (working / "rows.csv").write_text("1,2,3\n" * 60)
    done = headway("baseline", *arguments)
    assert (done.code, done.out) == (2 if says in MISUSE else 1, "")
    assert says in done.err
    assert not (working / "gone").exists()


def test_baseline_of_a_registry_that_is_read_only(root: Path, rows: Path, tmp_path: Path) -> None:
    root.chmod(0o555)
    command = [sys.executable, "-m", "app.cli.main", "baseline", "sum", str(rows)]
    env = environment(root)
    try:
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, preexec_fn=heed_rights
        )
    finally:
        root.chmod(0o755)
    assert done.returncode == 1
    assert "cannot be changed here" in done.stderr
