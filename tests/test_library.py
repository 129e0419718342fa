"""A model without a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import Model, load
from app.errors import InvalidContent, InvalidImage, InvalidTensor, ModelNotFound, RegistryError, VersionNotFound
from app.processing.classification import Prediction
from tests.fixtures_models import edit_manifest, write_model, write_release
from tests.processing.conftest import encode
from tests.running import MODELS, ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """scores 1.0.0 (stable), 1.1.0 (canary) and 2.0.0 (not released); sum, colour, two_inputs, echo, double."""
    for kind in ("scores", "sum", "colour", "two_inputs", "echo", "double"):
        write_model(tmp_path, kind, kind=kind)
    for version in ("1.1.0", "2.0.0"):
        write_model(tmp_path, "scores", version)
    write_release(tmp_path, "scores", "1.0.0", aliases={"canary": {"version": "1.1.0", "weight": 5}})
    return tmp_path


def _load(root: Path, ref: str) -> Model:
    return load(ref, models=root)


def test_predict_one_row_and_rows(root: Path) -> None:
    model = _load(root, "scores")
    best_of_row = [Prediction("high", 2, 0.5), Prediction("low", 0, 0.25)]
    assert model.predict([0.25, 0, 0.5], top_k=2) == best_of_row
    assert model.predict([[0.25, 0, 0.5]], top_k=2) == [best_of_row]
    rows = np.array([[0.25, 0, 0.5], [1, 0, 0]])
    assert model.predict(rows, top_k=1) == [best_of_row[:1], [Prediction("low", 0, 1.0)]]
    assert model.predict(rows[0], top_k=2) == best_of_row
    assert model.predict({"x": rows}, top_k=1) == model.predict(rows, top_k=1)
    assert not model.takes_images


def test_predict_regression(root: Path) -> None:
    model = _load(root, "sum")
    assert model.predict([1, 2, 3]) == 6.0
    assert model.predict([[1, 2, 3], [0, 0, 1]]) == [6.0, 1.0]


def test_predict_photo_by_path_and_bytes(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (9, 9), (0, 255, 51)).save(path)
    model = _load(root, "colour")
    assert model.takes_images
    first = model.predict(path, top_k=1)
    assert first == [Prediction("green", 1, 1.0)]
    assert model.predict(str(path), top_k=1) == first
    assert model.predict(path.read_bytes(), top_k=1) == first
    assert model.predict([path, path.read_bytes()], top_k=1) == [first, first]
    assert model.predict([], top_k=1) == []


def test_predict_plain_tensors(root: Path) -> None:
    total = _load(root, "two_inputs").predict({"a": [[1, 2]], "b": [[3, 4]]})
    assert isinstance(total, dict)
    assert total["total"].tolist() == [[4, 6]]
    echoed = _load(root, "echo").predict(["a", "grün"])
    assert isinstance(echoed, dict)
    assert echoed["echoed"].tolist() == [b"a", "grün".encode()] * 2
    twice = _load(root, "double").predict(21)
    assert isinstance(twice, dict)
    assert twice["twice"].tolist() == 42


def test_predict_photos_of_a_model_that_answers_with_tensors(root: Path) -> None:
    directory = write_model(root, "embedding", kind="colour", answer=None)
    edit_manifest(directory, task="tensor", answer={"type": "tensor"})
    model = _load(root, "embedding")
    red, blue = (encode(Image.new("RGB", (8, 8), colour), "PNG") for colour in ("red", "blue"))
    alone = model.predict(red)
    assert isinstance(alone, dict)
    assert alone["scores"].tolist() == [[1, 0, 0]]
    both = model.predict([red, blue])
    assert isinstance(both, list)
    assert [row["scores"].tolist() for row in both if isinstance(row, dict)] == [[[1, 0, 0]], [[0, 0, 1]]]


def test_load_by_alias_and_version(root: Path) -> None:
    assert _load(root, "scores").version == "1.0.0"
    assert _load(root, "scores@canary").version == "1.1.0"
    assert _load(root, "scores@2.0.0").version == "2.0.0"
    assert repr(_load(root, "scores@2.0.0")) == "<Model scores@2.0.0>"


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        ("nothing", ModelNotFound, "there is no model 'nothing' in .*; it has colour, "),
        ("scores@9.0.0", VersionNotFound, r"has no version 9\.0\.0"),
        ("scores@beta", VersionNotFound, "has no alias 'beta'"),
        ("Scores", InvalidContent, "'Scores': write the model as name, name@version or name@alias"),
        ("../scores", InvalidContent, "write the model as"),
    ],
)
def test_load_errors(root: Path, ref: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _load(root, ref)


def test_load_of_a_damaged_version(root: Path) -> None:
    (root / "sum" / "1.0.0" / "model.onnx").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"model\.onnx: has 0 bytes"):
        _load(root, "sum")


@pytest.mark.parametrize(
    "content",
    [[[1, 2]], [[1], [1, 2]], [1, [2, 3]], [["a", "b", "c"]], [[1, None, 3]], [[1, 2, float("nan")]], "text", None,
     {"y": [[1, 2, 3]]}, [[10**400, 0, 0]], 5],
)  # fmt: skip
def test_predict_refuses_numbers(root: Path, content: object) -> None:
    with pytest.raises(InvalidTensor):
        _load(root, "scores").predict(content)


def test_predict_refuses_photos(root: Path, tmp_path: Path) -> None:
    model = _load(root, "colour")
    with pytest.raises(InvalidImage, match="not an image"):
        model.predict(b"no image")
    with pytest.raises(InvalidContent, match=r"nowhere\.png: cannot be read \(No such file"):
        model.predict(tmp_path / "nowhere.png")


def test_load_takes_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_MODELS", str(root))
    assert load("sum").predict([1, 1, 1]) == 3.0


def test_readme_line_works_on_the_shipped_model() -> None:
    code = f"from app import load; print(load('digits', models={str(MODELS)!r}).predict([0] * 64)[0].label)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().isdigit()
    assert done.stderr == ""
