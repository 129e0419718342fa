"""`headway robustness`: the figures that it keeps, what it prints, the release that it opens, and its refusals."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from app.cli.main import cli
from app.registry.robustness import ROBUSTNESS_FILE, read_record
from recipes.digits import split_digits
from tests.cli.conftest import PATIENCE_SECONDS, Headway, environment
from tests.fixtures_models import edit_manifest, write_release
from tests.fixtures_robust import write_colour, write_photos
from tests.running import ROOT


@pytest.fixture
def test_rows(root: Path, tmp_path: Path) -> Path:
    """Labelled digits; digits 1.0.0, released, and 1.1.0 that asks for robustness are in the registry."""
    for version in ("1.0.0", "1.1.0"):
        shutil.copytree(ROOT / "models" / "digits" / version, root / "digits" / version)
    gate = {"attack": "fgsm", "strength": 0.5, "value": 0.5, "samples": 40}
    edit_manifest(root / "digits" / "1.1.0", min_robust_accuracy=gate)
    write_release(root, "digits", "1.0.0")
    data = split_digits()
    path = tmp_path / "test.npz"
    np.savez(path, pixels=data.test_pixels, class_index=data.test_digits)
    return path


def test_robustness_opens_the_release_that_asks_for_it(
    headway: Headway, root: Path, test_rows: Path, tmp_path: Path
) -> None:
    refused = headway("release", "promote", "digits@1.1.0", COLUMNS="400")
    assert refused.code == 1
    assert (
        "digits@1.1.0 may not be released: min_robust_accuracy asks for 0.5 under fgsm of strength 0.5" in refused.err
    )
    home = tmp_path / "home"
    home.mkdir()
    arguments = ("robustness", "digits@1.1.0", test_rows, "--attacks", "fgsm,pgd", "--strengths", "0.5,1.5,0.5")
    arguments += ("--limit", "40", "--output", "out")
    done = headway(*arguments, COLUMNS="400", HOME=str(home))
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert re.match(r"digits@1.1.0 on 40 samples \(test.npz\), \d+\.\d% right", lines[0])
    assert lines[1] == "attack strength label changed still right"
    assert "fgsm: L∞, units of the input, one step; gradients of digits@1.1.0" in lines
    assert "it meets its min_robust_accuracy" in lines
    assert not (home / ".art").exists()  # which ART makes there, if it is let
    record = read_record(root / "digits" / "1.1.0")
    assert record is not None
    assert [(one.attack, one.strength) for one in record.measurements] == [
        ("fgsm", 0.5), ("fgsm", 1.5), ("pgd", 0.5), ("pgd", 1.5),
    ]  # fmt: skip
    out = tmp_path / "working" / "out"
    assert {path.name for path in out.iterdir()} == {ROBUSTNESS_FILE, "curve.png", "curve.svg", "examples.png"}
    kept = (root / "digits" / "1.1.0" / ROBUSTNESS_FILE).read_bytes()
    assert (out / ROBUSTNESS_FILE).read_bytes() == kept
    assert headway("release", "promote", "digits@1.1.0").code == 0


@pytest.mark.slow
def test_robustness_as_json_twice_the_same(headway: Headway, root: Path, test_rows: Path) -> None:
    arguments = ("robustness", "digits@1.1.0", test_rows, "--strengths", "0.1", "--limit", "20", "--json")
    results = []
    for _ in range(2):
        done = headway(*arguments)
        assert (done.code, done.err) == (0, "")
        results.append((json.loads(done.out), (root / "digits" / "1.1.0" / ROBUSTNESS_FILE).read_bytes()))
    assert results[0] == results[1]
    result = results[0][0]
    assert (result["model"], result["version"], result["n"], result["kept"]) == ("digits", "1.1.0", 20, True)
    assert "that was not measured of this file" in result["unmet"]
    assert [one["attack"] for one in result["measurements"]] == ["fgsm", "pgd", "hopskipjump"]


def test_robustness_of_corruptions_needs_no_attack_library(
    headway_process: Headway, root: Path, tmp_path: Path
) -> None:
    write_colour(root, "2.0.0")
    write_photos(tmp_path / "photos", 6)
    blocked = tmp_path / "blocked" / "art"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('art is not here')")
    paths = f"{tmp_path / 'blocked'}:{ROOT}"
    arguments = ("robustness", "colour@2.0.0", tmp_path / "photos", "--no-keep")
    done = headway_process(*arguments, "--attacks", "fog,contrast", PYTHONPATH=paths)
    assert (done.code, done.err) == (0, "")
    assert not (root / "colour" / "2.0.0" / ROBUSTNESS_FILE).exists()
    refused = headway_process(*arguments, PYTHONPATH=paths, COLUMNS="400")
    assert refused.code == 1
    assert "robustness needs a package (art is not here): pip install 'headway[robustness]'" in refused.err


def test_robustness_into_a_registry_that_is_full(root: Path, tmp_path: Path) -> None:
    write_colour(root, "2.0.0")
    write_photos(tmp_path / "photos", 6)
    command = [sys.executable, "-m", "app.cli.main", "robustness", "colour@2.0.0", str(tmp_path / "photos")]
    before = sorted(root.rglob("*"))
    done = subprocess.run(
        [*command, "--attacks", "contrast"],
        env=environment(root) | {"COLUMNS": "400"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),  # no file may grow
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no space left (File too large); nothing was changed; free some" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in sorted(root.rglob("*")) if path.name != ".lock"] == before


# What is typed is wrong by itself.
MISUSE = {
    "write numbers with commas between them",
    "a strength is above 0",
    "and a number that 32 bits can hold",
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digits@1.1.0", "ROWS", "--strengths", "1;2"], "write numbers with commas between them"),
        (["digits@1.1.0", "ROWS", "--strengths", "0,1"], "a strength is above 0"),
        (["digits@1.1.0", "ROWS", "--strengths", "1e300"], "and a number that 32 bits can hold"),
        (["sum@1.0.0", "ROWS", "--attacks", "fog"], "sum is no classifier"),
        (["digits@1.1.0", "ROWS", "--attacks", "fog", "--output", "ROWS"], "is no directory that can be written to"),
        (["digits@1.1.0", "ROWS", "--attacks", "fog", "--output", "ROWS/new"], "is no directory that can be written"),
    ],
)
def test_robustness_refusals(headway: Headway, root: Path, test_rows: Path, arguments: list[str], says: str) -> None:
    before = sorted(root.rglob("*"))
    given = [word.replace("ROWS", str(test_rows)) for word in arguments]
    done = headway("robustness", *given, COLUMNS="400")
    assert (done.code, done.out) == (2 if says in MISUSE else 1, "")
    assert says in done.err
    assert sorted(root.rglob("*")) == before


def test_guide_and_reference_name_the_options_that_are_there() -> None:
    command = get_command(cli).commands["robustness"]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    (line,) = (line for line in reference.splitlines() if line.startswith("| `headway robustness"))
    guide = (ROOT / "docs" / "guides" / "robustness.md").read_text(encoding="utf-8")
    own = re.findall(r"headway robustness[^`]*|`--[a-z-]+", guide)
    named = set(re.findall(r"--[a-z-]+", line.partition("`")[2].partition("`")[0] + " ".join(own)))
    assert named - {"--help"} <= options
    for option in ("--attacks", "--strengths", "--limit", "--seed", "--queries", "--gradients-from", "--output"):
        assert option in named
