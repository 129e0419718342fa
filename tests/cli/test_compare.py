"""`headway compare` on a handful of coloured squares: the table, the JSON, the folder of pictures, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Headway
from tests.fixtures_models import write_model
from tests.running import ROOT

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
VERSIONS = ("colour@1.0.0", "colour@1.1.0")


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """Twelve photos by class. colour 1.0.0 has them right, 1.1.0 takes red for blue and blue for red."""
    write_model(root, "colour", "1.1.0", kind="colour", processing={"colour": "BGR"})
    path = tmp_path / "photos"
    for name, colour in COLOURS.items():
        (path / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), colour).save(path / name / f"{number}.png")
    return path


def test_compare_as_table(headway: Headway, folder: Path) -> None:
    (folder / "red" / "[odd].png").write_bytes(b"no image")
    done = headway("compare", *VERSIONS, folder, COLUMNS="400")
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()]
    assert ["colour", "colour"] in rows
    assert ["@1.0.0", "@1.1.0"] in rows
    assert ["top-1", "accuracy", "100.0%", "33.3%"] in rows
    assert ["95", "%", "interval", "75.8%", "…", "100.0%", "13.8%", "…", "60.9%"] in rows
    assert ["colour", "-66.7", "points", "8", "0", "0.008", "worse"] in rows
    assert "within noise" not in done.out
    assert "mean rating" not in done.out
    assert "1 images could not be read by colour@1.1.0; the first: " in done.out


def test_compare_says_what_is_noise(headway: Headway, folder: Path) -> None:
    (folder / "labels.csv").write_text("filename,class_index\nred/0.png,0\ngreen/0.png,1\n")
    done = headway("compare", *VERSIONS, folder, COLUMNS="400")
    assert "-50.0 points" in done.out
    assert "within noise: these images do not tell the two apart" in done.out


def test_compare_as_json(headway: Headway, folder: Path) -> None:
    done = headway("compare", *VERSIONS, folder, "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    first, other = result["versions"]
    assert (result["images"], first["top1"], other["top1"], other["rating"]) == (12, 1.0, pytest.approx(1 / 3), None)
    assert other["matrix"][0] == {"actual": "red", "predicted": "blue", "count": 4}
    assert [score["f1"] for score in other["classes"]] == [0, 1, 0]
    assert set(first["latency_ms"]) == {"p50", "p95", "p99"}
    (difference,) = result["differences"]
    assert (difference["only_first_right"], difference["only_other_right"]) == (8, 0)
    assert (difference["p_value"], difference["is_noise"]) == (2 / 2**8, False)


def test_compare_writes_a_folder(headway: Headway, folder: Path, tmp_path: Path) -> None:
    ratings = tmp_path / "ratings.json"
    ratings.write_text('{"colour@1.0.0": 4.2, "another@1.0.0": 1}')
    output = tmp_path / "new" / "comparison"
    for _ in range(2):  # into a new folder, then over what is there
        done = headway("compare", *VERSIONS, folder, "--output", output, "--ratings", ratings, COLUMNS="400")
        assert done.code == 0, done.err
        assert ["mean", "rating", "4.2", "-"] in [line.split() for line in done.out.splitlines()]
    names = ["accuracy-latency", "confusion-colour@1.0.0", "confusion-colour@1.1.0", "f1"]
    pictures = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in output.iterdir()} == {"compare.json", *pictures}
    assert json.loads((output / "compare.json").read_text())["versions"][0]["rating"] == 4.2
    with Image.open(output / "f1.png") as image:
        image.load()


def test_compare_needs_matplotlib_for_pictures_only(headway_process: Headway, folder: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked" / "matplotlib"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('it is not here')")
    path = f"{blocked.parent}:{ROOT}"
    assert headway_process("compare", *VERSIONS, folder, PYTHONPATH=path).code == 0
    done = headway_process("compare", *VERSIONS, folder, "--output", tmp_path / "new", PYTHONPATH=path, COLUMNS="400")
    assert (done.code, done.out) == (1, "")
    assert "--output draws pictures with Matplotlib (it is not here): pip install 'headway[compare]'" in done.err
    assert not (tmp_path / "new").exists()


def test_compare_refuses_what_is_in_the_way(headway: Headway, folder: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    done = headway("compare", *VERSIONS, folder, "--output", taken, COLUMNS="400")
    assert (done.code, done.out) == (1, "")
    assert f"{taken}: cannot be written (File exists); name another folder with --output" in done.err
    assert taken.read_text() == "a file"
    (tmp_path / "new" / "f1.png").mkdir(parents=True)
    done = headway("compare", *VERSIONS, folder, "--output", tmp_path / "new", COLUMNS="400")
    assert (done.code, done.out) == (1, "")
    assert f"{tmp_path / 'new' / 'f1.png'}: cannot be written" in done.err
    assert not list((tmp_path / "new").glob(".*"))


RATINGS = {
    "not json": ("{", "is not JSON"),
    "not an object": ("[1]", "must be an object of ratings"),
    "a word": ('{"colour@1.0.0": "good"}', "the rating of 'colour@1.0.0' must be a number, as 4.2; it is 'good'"),
    "not finite": ('{"colour@1.0.0": NaN}', "must be a number, as 4.2; it is nan"),
    "a claim": ('{"colour@1.0.0": true}', "must be a number, as 4.2; it is True"),
    "much too large": (f'{{"colour@1.0.0": {"9" * 400}}}', "must be a number, as 4.2"),
}


@pytest.mark.parametrize("name", RATINGS)
def test_compare_refuses_ratings(headway: Headway, folder: Path, tmp_path: Path, name: str) -> None:
    text, message = RATINGS[name]
    (tmp_path / "ratings.json").write_text(text)
    done = headway("compare", *VERSIONS, folder, "--ratings", tmp_path / "ratings.json", COLUMNS="800")
    assert (done.code, done.out) == (1, "")
    assert message in done.err


def test_compare_failures(headway: Headway, folder: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((*VERSIONS, tmp_path / "nowhere"), "is not a folder of labelled images"),
        (("colour@1.0.0", "scores", folder), "scores is no image classifier: compare takes labelled images"),
        (("colour@1.0.0", "colour@1.0.0", folder), "are one version, colour@1.0.0; name another"),
        (("colour@1.0.0", "colour@9.0.0", folder), "model 'colour' has no version 9.0.0"),
        (("colour@1.0.0", "Colour@", folder), "'Colour@': write the model as name, name@version or name@alias"),
        ((*VERSIONS, folder, "--ratings", tmp_path / "nowhere"), "nowhere: cannot be read (No such file or directory)"),
        ((*VERSIONS, folder, "--models", tmp_path / "nowhere"), "there is no such registry directory"),
    ):
        done = headway("compare", *arguments, COLUMNS="400")
        assert (done.code, done.out) == (2 if "write the model" in message else 1, "")
        assert message in done.err
        assert len(done.err.splitlines()) == 1
    done = headway("compare", "colour@1.0.0", folder, COLUMNS="400")
    assert (done.code, done.out) == (2, "")
    assert "compare takes two or more versions, then the folder of images; colour@1.0.0 is one" in done.err
