"""What the photo recipes share, on a tiny network: the command quantises it, the recipe adds the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from app import load
from app.optimize.before_after import BeforeAfter
from app.registry.manifest import Manifest, Parent, read_manifest
from recipes import photo_classifier
from recipes.cards import write_card
from recipes.graph import CLASSES, INPUT, OUTPUT, SIDE, attach_pixels
from recipes.measure import Figures, evaluate_version, measure
from tests.recipes.foolbox_photos import foolbox_photos

SERVED_WITH = ("numpy", "onnxruntime")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    lines = ["filename,class_index"]
    for path in foolbox_photos():
        shutil.copyfile(path, folder / path.name)
        lines.append(f"{path.name},{path.stem.split('_')[-1]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The float version 1.0.0 of `colours`: the mean colour of a photo, times a matrix."""
    models = tmp_path_factory.mktemp("models")
    directory = models / "colours" / "1.0.0"
    directory.mkdir(parents=True)
    weights = np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", [INPUT, "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], [OUTPUT]),
        ],
        "colours",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.array([2, 3]), "axes"), numpy_helper.from_array(weights, "weights")],
    )
    attach_pixels(graph)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), directory / "model.onnx"
    )
    photo_classifier.write_float_version(directory, "onnx", -1, photo_classifier.training({"onnx": "1"}, opset="21"))
    facts = photo_classifier.float_card(evaluate_version(models, "colours@1.0.0", photos))
    write_card(
        directory / "README.md",
        **facts,
        **dict.fromkeys(("name", "version", "summary", "input", "output", "recipe", "origin"), "x"),
        bytes=1,
    )
    return models


@pytest.fixture(scope="module")
def measured(models: Path, photos: Path) -> BeforeAfter:
    return photo_classifier.quantize(models, "colours@1.0.0", "1.1.0", photos, photos)


@pytest.fixture(scope="module")
def figures(models: Path, photos: Path, measured: BeforeAfter) -> Figures:
    assert measured.n == 20
    return measure(models, "colours@1.1.0", photos, 0)


@pytest.fixture(scope="module")
def completed(models: Path, figures: Figures) -> Manifest:
    directory = models / "colours" / "1.1.0"
    photo_classifier.complete(directory, figures, "2026-11-21", "so it is", served_with=SERVED_WITH)
    return read_manifest(directory)


def test_float_version_is_complete(models: Path) -> None:
    manifest = read_manifest(models / "colours" / "1.0.0")
    assert manifest.golden is not None
    assert set(manifest.files) == {"model.onnx", "labels.txt", "golden/golden.json"} | {
        f"golden/{name}.jpg" for name in ("cat", "coffee", "camera")
    }
    assert load("colours@1.0.0", models=models).version == "1.0.0"


def test_model_yaml_has_what_the_command_writes_and_what_the_recipe_measures(
    models: Path, measured: BeforeAfter, completed: Manifest
) -> None:
    parent = completed.parent
    assert parent is not None
    assert (parent.version, parent.method, parent.parameters["scheme"]) == ("1.0.0", "quantize", "static")
    assert {figure.name: figure.version for figure in parent.figures}["model_bytes"] == measured.after.size_bytes
    (evaluation,) = completed.evaluation
    assert (evaluation.n, evaluation.top1) == (20, measured.after.top1)
    assert set(evaluation.latency_ms) == {"p50", "p95", "run_p50", "run_p95"}
    assert set(evaluation.libraries) == {"python", *SERVED_WITH}
    assert "plain image processing" in (evaluation.note or "")
    assert (evaluation.note or "").endswith("so it is")
    assert load("colours@1.1.0", models=models).version == "1.1.0"


@pytest.mark.usefixtures("completed")
def test_card_keeps_that_of_the_parent(models: Path) -> None:
    card = (models / "colours" / "1.1.0" / "README.md").read_text(encoding="utf-8")
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [
        "# colours 1.1.0",
        "## Before and after",
        "## Layers",
        "## As it is served",
        "## Card of the parent, 1.0.0",
        "#### Measured",
        "#### Made from",
        "#### Intended use and limits",
    ]
    assert "| Beside ONNX | so it is |" in card
    assert photo_classifier.LIMITS in card


def test_version_of_a_converted_parent_names_what_it_was_converted_from(
    models: Path, completed: Manifest, figures: Figures, tmp_path: Path
) -> None:
    own = completed.parent
    assert own is not None
    directory = tmp_path / "colours" / "1.1.0"
    shutil.copytree(models / "colours" / "1.1.0", directory)
    photo_classifier.complete(
        directory, figures, "2026-11-21", served_with=SERVED_WITH, converted_from=("other", "3.0.0", "by hand, ")
    )
    changed = {"name": "other", "version": "3.0.0", "how": f"by hand, {own.how}"}
    assert read_manifest(directory).parent == Parent(**own.model_dump() | changed)


def test_too_great_a_loss_ends_the_recipe(models: Path, tmp_path: Path) -> None:
    """Labels are the float version's own answers; after a black photo the range of a mean is next to nothing."""
    folder, black = tmp_path / "photos", tmp_path / "black"
    folder.mkdir()
    black.mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(black / "one.jpg")
    float_version = load("colours@1.0.0", models=models)
    lines = ["filename,class_index"]
    for path in foolbox_photos():
        shutil.copyfile(path, folder / path.name)
        (answer,) = float_version.predict([path], top_k=1)
        lines.append(f"{path.name},{answer[0].index}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    alone = tmp_path / "models"
    shutil.copytree(models / "colours" / "1.0.0", alone / "colours" / "1.0.0")
    with pytest.raises(SystemExit, match="not registered: it loses"):
        photo_classifier.quantize(alone, "colours@1.0.0", "1.1.0", black, folder)
