"""What models/ holds is what its manifests say, and what a server would accept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from app import load
from app.registry.manifest import Manifest, read_manifest
from app.registry.store import Store
from tests.recipes.foolbox_photos import foolbox_photos

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
VERSIONS = sorted(path.parent for path in MODELS.glob("*/*/model.yaml"))
MAX_GOLDEN_BYTES = 60_000

CLASSIFIERS = [path for path in VERSIONS if (path / "labels.txt").exists()]

each_version, each_classifier = (
    pytest.mark.parametrize("directory", directories, ids=lambda path: f"{path.parent.name}-{path.name}")
    for directories in (VERSIONS, CLASSIFIERS)
)


def golden_requests(directory: Path) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = json.loads((directory / "golden/golden.json").read_bytes())["requests"]
    return requests


def read_labels(directory: Path) -> list[str]:
    return (directory / "labels.txt").read_text(encoding="utf-8").splitlines()


def test_versions_shipped() -> None:
    names = {f"{path.parent.name}@{path.name}" for path in VERSIONS}
    assert names == {
        "digits@1.0.0",
        "digits@1.1.0",
        "digits-cascade@1.0.0",
        "efficientnet-lite0@1.1.0",
        "efficientnet-lite0-tflite@1.0.0",
        "sentiment@1.0.0",
        "recommender@1.0.0",
    }


@each_version
def test_files_match_digest_and_size(directory: Path) -> None:
    for name, entry in read_manifest(directory).files.items():
        content = (directory / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry.sha256, entry.bytes), name


@each_version
def test_every_file_is_listed_or_for_people(directory: Path) -> None:
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert found - set(read_manifest(directory).files) == {"model.yaml", "README.md"}


@each_classifier
def test_labels_unique_without_regard_to_case(directory: Path) -> None:
    labels = read_labels(directory)
    assert len(labels) == read_manifest(directory).outputs[0].shape[-1]
    assert len({label.casefold() for label in labels}) == len(labels)
    assert all(label == label.strip() and label and "_" not in label for label in labels)


@each_classifier
def test_golden_requests_shaped_right(directory: Path) -> None:
    manifest, classes = read_manifest(directory), len(read_labels(directory))
    for request in golden_requests(directory):
        assert len(request["top"]) == min(5, classes)
        confidences = [entry["confidence"] for entry in request["top"]]
        assert confidences == sorted(confidences, reverse=True)
        assert all(0 <= entry["index"] < classes for entry in request["top"])
        check_golden_content(request, manifest, directory)


def check_golden_content(request: dict[str, Any], manifest: Manifest, directory: Path) -> None:
    if manifest.content_kind == "image":
        assert f"golden/{request['image']}" in manifest.files
        assert (directory / "golden" / request["image"]).stat().st_size < MAX_GOLDEN_BYTES
    elif manifest.content_kind == "text":
        assert request["text"].strip()
    else:
        assert [len(row) for row in request["inputs"]] == [manifest.inputs[0].shape[1]]


@each_version
def test_loads_and_gives_golden_answers(directory: Path) -> None:
    """`load` checks digests, the file's signature and the golden answers on this CPU."""
    assert load(f"{directory.parent.name}@{directory.name}", models=MODELS).version == directory.name


@each_version
def test_evaluation_says_on_what(directory: Path) -> None:
    manifest = read_manifest(directory)
    (evaluation,) = manifest.evaluation
    assert (evaluation.top1 is not None) == (directory in CLASSIFIERS)
    assert manifest.golden is not None
    assert evaluation.threads == 1
    assert {"p50", "p95"} <= set(evaluation.latency_ms)
    assert evaluation.rss_mb
    assert evaluation.cpu
    assert evaluation.cpu_features
    libraries = {"onnx": "onnxruntime", "tflite": "ai-edge-litert", "composition": "onnxruntime"}
    assert libraries[manifest.runtime] in evaluation.libraries
    assert evaluation.date


@pytest.mark.parametrize("name", ["efficientnet-lite0/1.1.0", "efficientnet-lite0-tflite/1.0.0"])
def test_quantised_version_says_what_it_gained_and_lost(name: str) -> None:
    """As `headway quantize` wrote it down when the version was made; the bars are those it was made for."""
    manifest = read_manifest(MODELS / name)
    parent = manifest.parent
    assert parent is not None
    assert (parent.name or manifest.name, parent.version) == ("efficientnet-lite0", "1.0.0")
    assert (parent.method, parent.parameters["to"], parent.parameters["calibration_size"]) == (
        "quantize",
        "int8",
        "200",
    )
    figures = {figure.name: figure for figure in parent.figures}
    before = {name: figure.parent for name, figure in figures.items() if figure.parent is not None}
    assert before["model_bytes"] / manifest.files[manifest.model_file].bytes >= 3.5
    assert before["run_p50_ms"] / figures["run_p50_ms"].version >= 1.7
    assert before["top1"] - figures["top1"].version <= 0.01
    assert figures["agreement"].version >= 0.95


@each_version
def test_no_path_of_a_machine(directory: Path) -> None:
    model = (directory / read_manifest(directory).model_file).read_bytes()
    text = (directory / "model.yaml").read_bytes() + (directory / "README.md").read_bytes()
    for place in (b"/home/", b"/tmp/", b"/root/", b"site-packages", b"http://", b"https://"):
        assert place not in model
        assert place not in text


def test_releases_name_what_is_there() -> None:
    store = Store(MODELS)
    served = {name: release.versions for name in store.model_names() if (release := store.release(name)[0])}
    assert served == {
        "digits": ("1.1.0", "1.0.0"),
        "digits-cascade": ("1.0.0",),
        "efficientnet-lite0": ("1.1.0",),
        "efficientnet-lite0-tflite": ("1.0.0",),
        "sentiment": ("1.0.0",),
        "recommender": ("1.0.0",),
    }


def test_defaults_answer_photos_texts_and_numbers() -> None:
    defaults = Store(MODELS).defaults()
    assert (defaults.image, defaults.text, defaults.tensor) == ("efficientnet-lite0", "sentiment", "digits")


def test_imagenet_names_people_know() -> None:
    labels = read_labels(MODELS / "efficientnet-lite0" / "1.1.0")
    known = {0: "tench", 134: "crane (bird)", 281: "tabby cat", 517: "crane (machine)", 673: "computer mouse"}
    assert {index: labels[index] for index in known} == known


def test_example_is_the_golden_cat() -> None:
    golden = MODELS / "efficientnet-lite0" / "1.1.0" / "golden" / "cat.jpg"
    assert (ROOT / "examples" / "cat.jpg").read_bytes() == golden.read_bytes()


def test_photographs_of_foolbox_are_known() -> None:
    """20 labelled ImageNet photos that came with another package: all of the path, from the bytes of a file."""
    paths = foolbox_photos()
    answers = load("efficientnet-lite0", models=MODELS).predict(paths, top_k=1)
    right = [row[0].index == int(path.stem.split("_")[-1]) for row, path in zip(answers, paths, strict=True)]
    assert len(right) == 20
    assert sum(right) >= 17
