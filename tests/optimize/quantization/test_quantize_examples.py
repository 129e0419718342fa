"""Labelled and unlabelled inputs: photos, CSV and .npz files, and what is refused with its file and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import InvalidContent
from app.optimize.examples import find_examples, find_labelled
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import write_model

ROWS = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in ("scores", "sum", "colour", "two_inputs"):
        write_model(tmp_path, kind, kind=kind)
    return tmp_path


def _open(root: Path, kind: str) -> Servable:
    return Opener(Store(root)).open(ModelRef.parse(f"{kind}@1.0.0")).servable


def test_rows_of_csv_and_npz_are_the_same(root: Path, tmp_path: Path) -> None:
    table, arrays = tmp_path / "rows.csv", tmp_path / "rows.npz"
    lines = [f"{row[0]},{number},{row[1]},{row[2]}" for number, row in enumerate(ROWS.tolist())]
    table.write_text("\n".join(["a, class_index,b,c", *lines, ""]))
    np.savez(arrays, x=ROWS, class_index=np.array([0, 1]))
    for path in (table, arrays):
        found = find_labelled(_open(root, "scores"), path)
        assert (found.data, found.count, found.classes) == (path.name, 2, [0, 1])
        read = [found.read(number)["x"] for number in range(2)]
        assert np.array_equal(np.concatenate(read), ROWS)
        assert read[0].dtype == np.float32
        assert found.where(1) == f"{path}, row 1"
    plain = find_examples(_open(root, "sum"), arrays)
    assert (plain.count, plain.classes) == (2, None)
    assert np.array_equal(plain.read(1)["x"], ROWS[1:])


def test_photos_become_tensors(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for label, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0))):
        (folder / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(folder / label / "one.png")
    model = _open(root, "colour")
    found = find_labelled(model, folder)
    assert (found.count, found.classes) == (2, [1, 0])
    assert found.read(0)["image"].shape == (1, 4, 4, 3)
    assert np.array_equal(found.read(1)["image"][0, 0, 0], [255, 0, 0])
    assert np.array_equal(find_examples(model, folder).read(1)["image"], found.read(1)["image"])


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("scores", "a,b,c\n1,2,3\n", "must name the columns, one of them class_index"),
        ("scores", "a,b,class_index\n1,2,0\n", "holds 1 × 2 of float64, but the model takes x: FP32 [n, 3]"),
        ("scores", "a,b,c,class_index\n1,2,3\n", "must have 4 numbers"),
        ("scores", "a,b,c,class_index\n1,2,three,0\n", "must have 4 numbers"),
        ("scores", "a,b,c,class_index\n1,2,3,3\n", "must be a whole number in 0…2"),
        ("scores", "a,b,c,class_index\n1,2,3,0.5\n", "must be a whole number in 0…2"),
        ("scores", "a,b,c,class_index\n1,2,3,inf\n", "must be a whole number in 0…2"),
        ("scores", "a,b,c,class_index\n1,2,nan,0\n", "has values that FP32 cannot hold, or that are missing"),
        ("scores", "a,b,c,class_index\n1,2,1e40,0\n", "has values that FP32 cannot hold"),
        ("scores", "a,b,c,class_index\n", "must have rows"),
        ("scores", "", "must name the columns"),
        ("sum", "a,b,c,class_index\n1,2,3,0\n", "sum is no classifier"),
        ("two_inputs", "a,class_index\n1,0\n", "this is for models of photos, or of one input of numbers"),
    ],
)
def test_labelled_rows_that_cannot_be_used(root: Path, tmp_path: Path, kind: str, text: str, says: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InvalidContent) as caught:
        find_labelled(_open(root, kind), path)
    assert says in str(caught.value)


def test_labelled_arrays_that_cannot_be_used(root: Path, tmp_path: Path) -> None:
    path, damaged = tmp_path / "rows.npz", tmp_path / "damaged.npz"
    np.savez(path, x=ROWS)
    np.save(tmp_path / "rows.npy", ROWS)
    damaged.write_bytes(path.read_bytes()[:200])
    model = _open(root, "scores")
    cases = [
        (path, "has no array 'class_index'; it needs 'x' and 'class_index'"),
        (damaged, "is no .npz file or CSV of labelled rows"),
        (tmp_path / "rows.npy", "has no array 'x'; it needs 'x' and 'class_index'"),
        (tmp_path / "gone.npz", "cannot be read"),
        (tmp_path / "gone.csv", "cannot be read"),
    ]
    for source, says in cases:
        with pytest.raises(InvalidContent) as caught:
            find_labelled(model, source)
        assert says in str(caught.value)


def test_rows_with_missing_numbers_are_refused_one_by_one(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.array([[0.1, np.nan, 0.7], [0.5, 0.3, 0.2]], np.float32))
    found = find_examples(_open(root, "sum"), path)
    with pytest.raises(InvalidContent, match="has a value that is missing or not finite"):
        found.read(0)
    assert np.array_equal(found.read(1)["x"], ROWS[1:])
