"""baseline.json: what is written is read back, damage is named; and the figures of photos and answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.errors import RegistryError
from app.monitoring.binning import Bins, ClassBins
from app.processing.image import ImageProcessing, ImageProcessor
from app.registry.baseline import (
    PHOTO_FEATURES,
    Baseline,
    answer_features,
    is_name,
    load_baseline,
    megapixels,
    photo_features,
    photo_pixels,
    read_baseline,
)
from app.registry.manifest import read_manifest
from app.registry.servables.loading import load_servable
from tests.fixtures_models import edit_manifest, file_entry, write_model

_PARAMETERS = {
    "type": "image", "resize": 12, "crop": 10, "filter": "bilinear",
    "colour": "RGB", "layout": "NHWC", "normalise": "in_graph",
}  # fmt: skip
_Edit = Callable[[dict[str, Any]], Any]


def _baseline(**changes: Any) -> Baseline:
    """Of `scores`, whose answer is its input."""
    random = np.random.default_rng(4)
    rows = random.dirichlet([1, 1, 1], 60)
    parts: dict[str, Any] = {
        "data": "rows",
        "n": 60,
        "features": {f"x[{number}]": Bins.of(rows[:, number]) for number in (2, 0, 1)},
        "classes": ClassBins.of(rows.argmax(axis=1)),
        "confidence": Bins.of(rows.max(axis=1)),
        "entropy": Bins.of(random.random(60)),
    }
    return Baseline(**parts | changes)


def _document(edit: _Edit) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_baseline().to_json())
    edit(document)
    return document


def _photo(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    random = np.random.default_rng(3)
    buffer = io.BytesIO()
    pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_baseline_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(_baseline().to_json())
    found = read_baseline(path)
    assert found == _baseline()
    assert list(found.features) == ["x[2]", "x[0]", "x[1]"]  # the order of the columns, not of the alphabet
    assert found.to_json() == path.read_bytes()


def test_baseline_of_a_regression_is_read_back() -> None:
    value = Bins.of(np.array([0.1, np.nan, 1e300, *range(57)]))
    baseline = _baseline(classes=None, confidence=None, entropy=None, value=value)
    assert Baseline.from_dict(json.loads(baseline.to_json()), "x") == baseline
    assert list(baseline.answers) == ["value"]


def test_bytes_are_the_same_for_the_same_figures_in_sorted_keys() -> None:
    data = _baseline().to_json()
    assert data == _baseline().to_json()
    assert list(json.loads(data)) == sorted(json.loads(data))
    assert data.endswith(b"}\n")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d: d.pop("n"), "n: is missing"),
        (lambda d: d.update(more=1), "more: unknown key"),
        (lambda d: d.update(schema=2), "schema: this Headway reads 1, not 2"),
        (lambda d: d.update(schema=True), "schema: this Headway reads 1, not True"),
        (lambda d: d.update(data=" "), "data: must be the name of the data"),
        (lambda d: d.update(n=0), "n: must be the number of inputs"),
        (lambda d: d.update(n=61), "features.x[2]: counts 60 inputs, but n is 61"),
        (lambda d: d.update(features={}), "features: must be an object with 1 to 64"),
        (lambda d: d.update(features=[]), "features: must be an object with 1 to 64"),
        (lambda d: d["features"].update({"a\nb": d["features"]["x[0]"]}), r"features: 'a\nb' is no name"),
        (lambda d: d.update(order=["x[0]", "x[1]"]), "order: must name each of the features once"),
        (lambda d: d.update(order=["x[0]", "x[1]", "x[1]"]), "order: must name each of the features once"),
        (lambda d: d.update(order=[1, 2, 3]), "order: must be the list"),
        (lambda d: d["features"]["x[1]"].pop("edges"), "features.x[1]: lacks the key 'edges'"),
        (lambda d: d["features"]["x[1]"].update(edges=[2, 1]), "features.x[1].edges: must be at most 9 numbers"),
        (lambda d: d["classes"].update(classes=[0, 0, 1]), "classes.classes: must be at most 20 class indices"),
        (lambda d: d.update(entropy=d["classes"]), "entropy: lacks the key 'edges'"),
        (lambda d: d.update(confidence=None), "confidence: must be an object"),
    ],
)
def test_damaged_document_is_refused_with_the_field(edit: _Edit, says: str) -> None:
    with pytest.raises(RegistryError) as refusal:
        Baseline.from_dict(_document(edit), "there/baseline.json")
    assert str(refusal.value).startswith("there/baseline.json: ")
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b"[1]", "must be an object"),
        (b" " * 1_000_001, "is larger than 1000000 bytes"),
    ],
)
def test_damaged_file_is_refused_by_name(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(data)
    with pytest.raises(RegistryError, match=r"baseline\.json: ") as refusal:
        read_baseline(path)
    assert says in str(refusal.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="No such file"):
        read_baseline(tmp_path / "baseline.json")


def _scores_with(root: Path, data: bytes, **overrides: Any) -> Path:
    return write_model(root, files={"baseline.json": data}, baseline="baseline.json", **overrides)


def test_version_with_a_baseline_is_loaded(tmp_path: Path) -> None:
    directory = _scores_with(tmp_path, _baseline().to_json())
    servable = load_servable(directory, 1)
    assert load_baseline(directory, servable.manifest) == _baseline()
    servable.close()
    plain = write_model(tmp_path, "plain")
    assert load_baseline(plain, read_manifest(plain)) is None


def test_version_with_a_damaged_baseline_is_refused_at_load(tmp_path: Path) -> None:
    directory = _scores_with(tmp_path, b"{}")
    with pytest.raises(RegistryError, match=r"scores/1.0.0/baseline.json: schema: is missing"):
        load_servable(directory, 1)
    (directory / "baseline.json").write_bytes(b"[]")
    with pytest.raises(RegistryError, match="has SHA-256"):
        load_servable(directory, 1)


def test_baseline_must_be_listed_in_files(tmp_path: Path) -> None:
    directory = write_model(tmp_path, baseline="baseline.json")
    with pytest.raises(RegistryError, match=r"files lacks 'baseline\.json'"):
        read_manifest(directory)


def test_baseline_of_a_composition_is_held_too(tmp_path: Path) -> None:
    directory = _scores_with(tmp_path, b"{}", runtime="composition", composition={"type": "vote", "steps": [
        {"model": "a"}, {"model": "b"}]}, batch=None)  # fmt: skip
    edit_manifest(directory, files={"labels.txt": file_entry((directory / "labels.txt").read_bytes())})
    with pytest.raises(RegistryError, match=r"baseline.json: schema: is missing"):
        load_servable(directory, 1)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("scores", {"features": {"a": Bins.of(np.arange(60))}}, "features: has 1, but the version takes 3 numbers"),
        ("scores", {"classes": ClassBins.of(np.full(60, 3))}, "classes: names the class 3, but the version has 3"),
        ("scores", {"entropy": None}, "entropy: is missing, and the version answers with classes"),
        ("sum", {}, "classes: stands there, and the version answers with a value"),
        ("colour", {}, "features: of photos they are brightness"),
        ("two_inputs", {}, "features: has 3, but the version takes 0 numbers"),
    ],
)
def test_baseline_of_another_model_is_refused(tmp_path: Path, kind: str, changes: Any, says: str) -> None:
    files = {"baseline.json": _baseline(**changes).to_json()}
    directory = write_model(tmp_path, "one", kind=kind, files=files, baseline="baseline.json")
    with pytest.raises(RegistryError) as refusal:
        load_servable(directory, 1)
    assert says in str(refusal.value)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("colour", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize(
    "normalise",
    [
        "in_graph",
        {"mean": [127], "scale": [128]},
        {"mean": [0], "scale": [255]},
        {"mean": [123.675, 116.28, 103.53], "scale": [58.395, 57.12, 57.375]},
    ],
    ids=["in_graph", "127/128", "0/255", "per channel"],
)
def test_pixels_are_those_before_normalisation(layout: str, colour: str, normalise: Any) -> None:
    if colour == "GRAY" and normalise != "in_graph":
        normalise = {key: values[:1] for key, values in normalise.items()}
    photo = _photo()
    processing = ImageProcessing.model_validate(
        _PARAMETERS | {"layout": layout, "colour": colour, "normalise": normalise}
    )
    found = photo_pixels(ImageProcessor(processing).prepare(photo), processing)
    as_rgb = _PARAMETERS | ({"colour": "GRAY"} if colour == "GRAY" else {})
    expected = ImageProcessor(ImageProcessing.model_validate(as_rgb)).prepare(photo)[0]
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.broadcast_to(expected, (10, 10, 3)))


def test_features_of_a_photo() -> None:
    processing = ImageProcessing.model_validate(_PARAMETERS)
    tensor = np.full((1, 10, 10, 3), 100, np.uint8)
    features = photo_features(tensor, processing, megapixels(_photo((400, 300))))
    assert features == {"brightness": 100, "contrast": 0, "sharpness": 0, "colour": 0, "size": 0.12}
    assert tuple(features) == PHOTO_FEATURES
    assert np.isnan(photo_features(tensor, processing)["size"])


def test_normalisation_that_cannot_be_undone_is_no_crash() -> None:
    processing = ImageProcessing.model_validate(_PARAMETERS | {"normalise": {"mean": [0], "scale": [0]}})
    tensor = np.full((1, 10, 10, 3), np.inf, np.float32)
    assert photo_features(tensor, processing)["brightness"] == 0


def test_features_of_answers(tmp_path: Path) -> None:
    servable = load_servable(write_model(tmp_path), 1)
    scores = np.array([[0.5, 0.5, 0], [0, 0.25, 0.75], [np.nan, 0.1, 0.2], [np.nan] * 3], np.float32)
    found = answer_features(servable.manifest, servable.classification, {"scores": scores})
    ranked = servable.answer({"scores": scores}, 1)
    assert ranked is not None
    served = [item.predictions[0] for item in ranked]
    assert found["classes"].tolist() == [*(one.index for one in served[:3]), -1] == [0, 2, 2, -1]
    assert served[3].confidence is None
    assert found["confidence"].tolist()[:2] == [0.5, 0.75]
    assert found["entropy"].tolist()[0] == pytest.approx(1)
    assert np.isnan([found[key][2:] for key in ("confidence", "entropy")]).all()
    servable.close()


def test_features_of_values_and_tensors(tmp_path: Path) -> None:
    total = load_servable(write_model(tmp_path, "sum", kind="sum"), 1)
    found = answer_features(total.manifest, None, {"total": np.array([[1.5], [2]], np.float32)})
    assert {key: values.tolist() for key, values in found.items()} == {"value": [1.5, 2]}
    positive = load_servable(write_model(tmp_path, "positive", kind="positive"), 1)
    assert answer_features(positive.manifest, None, {"is_positive": np.array([[True]])}) == {}
    total.close()
    positive.close()


@pytest.mark.parametrize(
    ("text", "is_good"),
    [("Größe (cm)", True), ("", False), (" ", False), ("a\tb", False), ("a" * 129, False), (3, False)],
)
def test_is_name(text: object, is_good: bool) -> None:
    assert is_name(text) is is_good
    assert not is_name("\udc80")
