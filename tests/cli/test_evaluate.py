"""`headway evaluate` on a handful of coloured squares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Headway
from tests.fixtures_models import write_composition

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photos in folders by class; one green stands among the red."""
    path = tmp_path / "photos"
    for name, colours in {"red": ["red", "green", "red"], "green": ["green"], "blue": ["blue"]}.items():
        (path / name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            Image.new("RGB", (8, 8), COLOURS[colour]).save(path / name / f"{number}.png")
    return path


def test_evaluate_as_json(headway: Headway, folder: Path) -> None:
    done = headway("evaluate", "colour", folder, "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert (result["n"], result["top1"], result["top5"], result["unreadable"]) == (5, 0.8, 1.0, [])
    assert result["macro_recall"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert result["confusions"] == [{"actual": "red", "predicted": "green", "count": 1}]
    assert set(result["latency_ms"]) == {"p50", "p95", "p99"}


def test_evaluate_as_table(headway: Headway, folder: Path) -> None:
    (folder / "red" / "[odd].png").write_bytes(b"no image")
    done = headway("evaluate", "colour@1.0.0", folder, COLUMNS="400")
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()]
    assert ["top-1", "accuracy", "80.0%"] in rows
    assert ["red", "green", "1"] in rows
    assert "1 images could not be read; the first: " in done.out
    assert "[odd].png" in done.out


def test_evaluate_table_of_labels(headway: Headway, folder: Path) -> None:
    (folder / "labels.csv").write_text("filename,class_index\nred/0.png,0\nblue/0.png,2\n")
    result = json.loads(headway("evaluate", "colour", folder, "--json").out)
    assert (result["n"], result["top1"]) == (2, 1.0)


def test_evaluate_against_steps(headway: Headway, root: Path, folder: Path) -> None:
    steps = [{"model": "colour", "confidence": 0.9}, "colour@1.0.0"]
    write_composition(root, "steps", "cascade", steps, kind="colour")
    result = json.loads(headway("evaluate", "steps", folder, "--against-steps", "--json").out)
    assert (result["model"], result["top1"]) == ("steps", 0.8)
    assert result["steps"] == [
        {"step": "colour", "ran": 1.0, "answered": 1.0},
        {"step": "colour@1.0.0", "ran": 0.0, "answered": 0.0},
    ]
    (alone,) = result["alone"]  # both steps are one version
    assert (alone["model"], alone["version"], alone["top1"]) == ("colour", "1.0.0", 0.8)
    rows = [
        line.split() for line in headway("evaluate", "steps", folder, "--against-steps", COLUMNS="200").out.splitlines()
    ]
    assert ["colour", "100.0%", "100.0%"] in rows
    assert [row[:2] for row in rows if row and row[0] in ("steps@1.0.0", "colour@1.0.0")][-2:] == [
        ["steps@1.0.0", "80.0%"],
        ["colour@1.0.0", "80.0%"],
    ]
    done = headway("evaluate", "colour", folder, "--against-steps")
    assert (done.code, done.out) == (1, "")
    assert "colour is no composition" in done.err


def test_evaluate_failures(headway: Headway, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("scores", folder), "scores is no classifier of images or texts: evaluate takes labelled ones"),
        (("colour", tmp_path / "empty"), "holds no labelled images"),
        (("colour", tmp_path / "nowhere"), "is not a folder of labelled images"),
        (("nothing", folder), "there is no model 'nothing'"),
    ):
        done = headway("evaluate", *arguments, COLUMNS="400")
        assert (done.code, done.out) == (1, "")
        assert message in done.err
        assert len(done.err.splitlines()) == 1
    assert headway("evaluate", "colour").code == 2
