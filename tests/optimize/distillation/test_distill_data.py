"""Inputs of which some have a label: photos, CSV, .npy and .npz files; what is held out; the logits of a teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.special import log_softmax

from app.errors import InvalidContent
from app.optimize.distillation.data import UNKNOWN, find_partly_labelled, select, split
from app.optimize.distillation.teacher import read_logits
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import write_model

ROWS = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.0, 1.0, 0.0]], np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in ("scores", "sum", "colour"):
        write_model(tmp_path, kind, kind=kind)
    return tmp_path


def _open(root: Path, kind: str) -> Servable:
    return Opener(Store(root)).open(ModelRef.parse(f"{kind}@1.0.0")).servable


def test_rows_with_some_labels(root: Path) -> None:
    teacher = _open(root, "scores")
    (root / "rows.csv").write_text("a,class_index,b,c\n0.1,2,0.2,0.7\n0.5,,0.3,0.2\n\n0,-1,1,0\n")
    np.savez(root / "rows.npz", x=ROWS, class_index=np.array([2, UNKNOWN, UNKNOWN]))
    for name in ("rows.csv", "rows.npz"):
        found = find_partly_labelled(teacher, root / name)
        assert (found.data, found.count, found.classes) == (name, 3, [2, UNKNOWN, UNKNOWN])
        assert np.array_equal(np.concatenate([found.read(number)["x"] for number in range(3)]), ROWS)
    assert find_partly_labelled(teacher, root / "rows.csv").where(2) == f"{root / 'rows.csv'}, line 5"


@pytest.mark.parametrize("name", ["plain.csv", "plain.npy", "plain.npz"])
def test_rows_without_labels(root: Path, name: str) -> None:
    (root / "plain.csv").write_text("\n".join(",".join(map(str, row)) for row in ROWS.tolist()))
    np.save(root / "plain.npy", ROWS)
    np.savez(root / "plain.npz", x=ROWS)
    found = find_partly_labelled(_open(root, "scores"), root / name)
    assert found.classes == [UNKNOWN] * 3
    assert np.allclose(found.read(2)["x"], ROWS[2:])


def test_photos_with_some_labels(root: Path) -> None:
    teacher, folder = _open(root, "colour"), root / "photos"
    for place in ("a.png", "b.png", "deep/c.png", "green/d.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (0, 200, 0)).save(folder / place)
    found = find_partly_labelled(teacher, folder)
    assert [Path(found.where(number)).name for number in range(4)] == ["a.png", "b.png", "c.png", "d.png"]
    assert found.classes == [UNKNOWN, UNKNOWN, UNKNOWN, 1]
    (folder / "labels.csv").write_text("filename,class_index\n./deep/c.png,1\nb.png,\n")
    found = find_partly_labelled(teacher, folder)
    assert found.classes == [UNKNOWN, UNKNOWN, 1, UNKNOWN]
    assert np.array_equal(found.read(2)["image"][0, 0, 0], [0, 200, 0])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.csv", "a,b,c,class_index\n1,2,3,3\n", r"line 2: class_index '3' is not in 0…2; leave it empty if"),
        ("rows.csv", "a,b,c,class_index\n1,2,3,0\n1,2,3,low\n", r"line 3: class_index 'low' is not in 0…2"),
        ("rows.csv", "a,b,c,class_index\n1,2,,0\n", r"line 2: could not convert string to float: ''; each cell must"),
        ("rows.csv", "a,b,c,class_index\n1,2,1e99,0\n", r"line 2: has a value that FP32 cannot hold"),
        ("rows.csv", "a,b,c,class_index\n1,2,0\n", r"line 2: has 3 cells, not 4 as the first line"),
        ("rows.csv", "a,b,class_index\n1,2,0\n", r"holds 1 rows of 2 numbers, but the model takes x: FP32"),
        ("rows.csv", "a,b,c,class_index\n", r"holds 0 rows"),
        ("gone.csv", None, r"gone.csv: cannot be read"),
    ],
)
def test_rows_that_cannot_be_used(root: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (root / name).write_text(text)
    with pytest.raises(InvalidContent, match=says):
        find_partly_labelled(_open(root, "scores"), root / name)


def test_other_sources_that_cannot_be_used(root: Path) -> None:
    scores, colour = _open(root, "scores"), _open(root, "colour")
    np.savez(root / "short.npz", x=ROWS, class_index=np.array([0, 1]))
    np.savez(root / "wrong.npz", x=ROWS, class_index=np.array([0, 1, -2]))
    (root / "empty").mkdir()
    (root / "gone").mkdir()
    Image.new("RGB", (8, 8)).save(root / "gone" / "a.png")
    (root / "gone" / "labels.csv").write_text("filename,class_index\nb.png,1\n")
    for teacher, name, says in (
        (scores, "short.npz", "has 3 rows that can be used, and 2 of class_index"),
        (scores, "wrong.npz", "must be in 0…2, or -1 where not known"),
        (colour, "nowhere", "is not a folder of images"),
        (colour, "empty", "holds no images"),
        (colour, "gone", "line 2: there is no image "),
        (_open(root, "sum"), "short.npz", "sum is no classifier: it has no classes that a student could be taught"),
    ):
        with pytest.raises(InvalidContent, match=says):
            find_partly_labelled(teacher, root / name)


def test_a_fifth_of_each_class_is_held_out() -> None:
    classes = [0] * 10 + [1] * 4 + [2] * 5 + [UNKNOWN] * 6
    parts = split(classes, seed=3)
    assert sorted(parts.learnt + parts.held_out) == list(range(25))
    assert [classes[number] for number in parts.held_out] == [0, 0, 2]
    assert split(classes, seed=3) == parts
    assert split(classes, seed=4) != parts


def test_selected_examples_keep_their_names(root: Path) -> None:
    np.savez(root / "rows.npz", x=ROWS, class_index=np.array([2, 0, 1]))
    some = select(find_partly_labelled(_open(root, "scores"), root / "rows.npz"), [2, 0], "some")
    assert (some.data, some.count, some.classes) == ("some", 2, [1, 2])
    assert np.array_equal(some.read(0)["x"], ROWS[2:])
    assert some.where(1).endswith("row 0")


@pytest.mark.parametrize("temperature", [1, 4])
def test_logits_of_probabilities_are_those_of_any_temperature(root: Path, temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 4, (6, 3))
    shares = np.exp(log_softmax(logits, axis=1)).astype(np.float32)
    found = read_logits(_open(root, "scores"), {"scores": shares})
    expected = log_softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(log_softmax(found / temperature, axis=1), expected, atol=1e-5)
    certain = read_logits(_open(root, "scores"), {"scores": np.array([[0, 1, 0]], np.float32)})
    assert np.exp(log_softmax(certain / temperature, axis=1)).round(6).tolist() == [[0, 1, 0]]


def test_logits_that_the_model_gives_are_taken_as_they_are(root: Path) -> None:
    path = root / "scores" / "1.0.0" / "model.yaml"
    content = yaml.safe_load(path.read_text())
    content["answer"]["activation"] = "softmax"
    path.write_text(yaml.safe_dump(content))
    logits = np.array([[3, -4, 0.5]], np.float32)
    assert np.array_equal(read_logits(_open(root, "scores"), {"scores": logits}), logits)
    with pytest.raises(InvalidContent, match="scores are not finite"):
        read_logits(_open(root, "scores"), {"scores": logits * np.inf})
