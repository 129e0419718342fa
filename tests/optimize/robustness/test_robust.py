"""Attacks on models whose answers can be worked out by hand, and on digits; predictions always by the real engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from app.errors import InvalidContent
from app.optimize.examples import find_labelled
from app.optimize.robustness.art import require_art
from app.optimize.robustness.engine import Engine
from app.optimize.robustness.gradients import Differences, NetworkGradients, log_odds_against
from app.optimize.robustness.measure import Outcome, Wishes, measure
from app.optimize.robustness.space import Pixels, Rows, space_of
from app.processing.image import ImageProcessing, ImageProcessor
from app.registry.servables.loading import load_servable
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.registry.versions import ModelRef
from recipes.digits import split_digits
from tests.fixtures_models import edit_manifest, write_composition, write_model, write_release
from tests.fixtures_robust import (
    no_progress,
    rows_as_examples,
    write_colour,
    write_colour_tflite,
    write_linear,
    write_photos,
)
from tests.fixtures_tflite import Network, Node, tflite_file
from tests.running import ROOT


@pytest.fixture(scope="module", autouse=True)
def _art() -> None:
    require_art()


def _open(root: Path, ref: str) -> Servable:
    return Opener(Store(root)).open(ModelRef.parse(ref)).servable


def _measure(root: Path, servable: Servable, source: Path, *attacks: str, **wishes: object) -> Outcome:
    asked = Wishes(attacks or None, **wishes)  # type: ignore[arg-type]
    return measure(Store(root), servable, find_labelled(servable, source), asked, no_progress)


def _changed(outcome: Outcome, attack: str) -> list[float]:
    return [one.changed for one in outcome.measurements if one.attack == attack]


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_fgsm_on_a_linear_model_flips_exactly_the_samples_within_the_margin(tmp_path: Path, attack: str) -> None:
    features, classes = load_breast_cancer(return_X_y=True)
    values = ((features - features.mean(axis=0)) / features.std(axis=0)).astype(np.float32)
    fitted = LogisticRegression(C=0.1).fit(values, classes)
    weights, bias = fitted.coef_[0], float(fitted.intercept_[0])
    servable = load_servable(write_linear(tmp_path, weights, bias), 1)
    margins = np.abs(values.astype(np.float64) @ weights + bias)
    strengths = (0.05, 0.2, 0.6)
    reach = np.outer(strengths, [np.abs(weights).sum()])
    assert np.abs(margins - reach).min() > 1e-4  # no sample stands where FP32 decides
    asked = Wishes((attack,), strengths, limit=1000)
    outcome = measure(Store(tmp_path), servable, rows_as_examples(values, classes), asked, no_progress)
    within = margins <= reach
    assert _changed(outcome, attack) == [round(float(share), 6) for share in within.mean(axis=1)]
    is_right = fitted.predict(values) == classes
    robust = [one.robust_accuracy for one in outcome.measurements]
    assert robust == [round(float(share), 6) for share in (~within & is_right).mean(axis=1)]
    assert outcome.accuracy == pytest.approx(fitted.score(values, classes))
    assert {one.gradients for one in outcome.measurements} == {"linear@1.0.0"}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 6), strength=st.sampled_from([0.1, 0.5, 2.0]))
def test_fgsm_flips_row_by_row_what_the_margin_says(
    tmp_path_factory: pytest.TempPathFactory, seed: int, columns: int, strength: float
) -> None:
    from app.optimize.robustness import attacks

    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=columns).astype(np.float32), float(np.float32(rng.normal()))
    values = rng.normal(size=(20, columns)).astype(np.float32)
    margins = values.astype(np.float64) @ weights + bias
    clear = np.abs(np.abs(margins) - strength * np.abs(weights).sum()) > 1e-4
    servable = load_servable(write_linear(tmp_path_factory.mktemp("linear"), weights, bias), 1)
    engine = Engine(servable, space_of(servable))
    for gradients in (NetworkGradients(servable, is_transfer=False), Differences(engine, Rows(servable), values)):
        labels = engine.labels(values)
        moved = attacks.fgsm(engine, gradients, values, labels, strength)
        assert np.abs(moved - values).max() <= strength * (1 + 1e-6)
        flips = engine.labels(moved) != labels
        assert (flips == (np.abs(margins) <= strength * np.abs(weights).sum()))[clear].all()
    servable.close()


def test_fgsm_on_photos_moves_whole_levels_by_hand(tmp_path: Path) -> None:
    """The label's channel goes down by ε and the others go up by ε, so a lead of less than 2 ε is lost."""
    write_colour(tmp_path / "models")
    colours = write_photos(tmp_path / "photos", 40).astype(int)
    servable = _open(tmp_path / "models", "colour@1.0.0")
    outcome = _measure(tmp_path / "models", servable, tmp_path / "photos", "fgsm", "pgd", strengths=(1, 3, 7))
    first = colours.argmax(axis=1)
    expected = []
    for strength in (1, 3, 7):
        moved = colours + strength
        moved[np.arange(40), first] -= 2 * strength
        expected.append(float((moved.argmax(axis=1) != first).mean()))
    assert 0 < expected[0] < expected[1] < expected[2]
    assert _changed(outcome, "fgsm") == expected
    assert _changed(outcome, "pgd") == expected
    assert outcome.unit == "levels of 255"
    example = outcome.examples[0]
    assert (example.after == np.rint(example.after)).all()
    assert np.abs(example.after - example.before).max() <= example.strength


def test_tflite_takes_gradients_of_a_float_version_and_says_so(tmp_path: Path) -> None:
    root, photos = tmp_path / "models", tmp_path / "photos"
    write_colour(root, "0.9.0")
    write_colour_tflite(root, "1.0.0")
    write_photos(photos, 40)
    lender, servable = _open(root, "colour@0.9.0"), _open(root, "colour@1.0.0")
    lent = _measure(root, servable, photos, "fgsm", strengths=(1, 3, 7), gradients_from=lender)
    own = _measure(root, lender, photos, "fgsm", strengths=(1, 3, 7))
    assert _changed(lent, "fgsm") == _changed(own, "fgsm")
    assert lent.measurements[0].gradients == "colour@0.9.0, a transfer attack"


def test_tflite_without_a_float_version_gets_the_black_box_attack_and_corruptions(tmp_path: Path) -> None:
    root, photos = tmp_path / "models", tmp_path / "photos"
    write_colour_tflite(root)
    write_photos(photos, 12)
    servable = _open(root, "colour")
    outcome = _measure(root, servable, photos, strengths=(4, 40), queries=30)
    attacks = {one.attack for one in outcome.measurements}
    assert {"square", "corruptions", "gaussian_noise", "fog"} <= attacks
    assert not {"fgsm", "pgd"} & attacks
    assert outcome.notes[0].startswith("not attacked by fgsm and pgd: colour@1.0.0 is no ONNX file")
    weak, strong = _changed(outcome, "square")
    assert weak <= strong > 0.5
    means = [one for one in outcome.measurements if one.attack == "corruptions"]
    worst = [one.changed for one in outcome.measurements if one.strength == 5 and "corruptions" not in one.how][-9:]
    assert means[-1].changed == pytest.approx(np.mean(worst), abs=1e-6)
    with pytest.raises(InvalidContent, match=r"go by gradients, and there are none: colour@1\.0\.0 is no ONNX file"):
        _measure(root, servable, photos, "pgd")


def test_tflite_of_rows_is_attacked_by_differences_and_by_labels_alone(tmp_path: Path) -> None:
    """Three scores of which the highest wins: the lead over the second is lost within ε where it is below 2 ε."""
    network = Network(
        {"x": ("FP32", [-1, 3]), "scores": ("FP32", [-1, 3])},
        ["x"], ["scores"], [Node("ADD", ["x", "zero"], ["scores"])], {"zero": np.array([0], np.float32)},
    )  # fmt: skip
    directory = write_model(
        tmp_path, runtime="tflite", files={"model.tflite": tflite_file(network)}, answer={"activation": "softmax"}
    )
    servable = load_servable(directory, 1)
    values = np.random.default_rng(3).normal(size=(30, 3)).astype(np.float32)
    classes = values.argmax(axis=1).tolist()
    ranked = np.sort(values, axis=1)
    lead = ranked[:, 2] - ranked[:, 1]
    asked = Wishes(None, (0.2, 0.5), queries=1500)
    outcome = measure(Store(tmp_path), servable, rows_as_examples(values, classes), asked, no_progress)
    exact = [round(float((lead < 2 * strength).mean()), 6) for strength in (0.2, 0.5)]
    assert _changed(outcome, "fgsm") == exact
    assert outcome.measurements[0].gradients == "the engine by central differences"
    found = _changed(outcome, "hopskipjump")
    assert all(share <= limit for share, limit in zip(found, exact, strict=True))
    assert found[1] >= 0.8 * exact[1]


def test_quantised_digits_take_the_gradients_of_their_registered_parent(tmp_path: Path) -> None:
    from app.optimize.quantization.method import Method
    from app.optimize.quantization.quantizer import Quantizer

    shutil.copytree(ROOT / "models" / "digits" / "1.1.0", tmp_path / "digits" / "1.1.0")
    data = split_digits()
    np.savez(tmp_path / "test.npz", pixels=data.test_pixels, class_index=data.test_digits)
    parent = _open(tmp_path, "digits@1.1.0")
    examples = find_labelled(parent, tmp_path / "test.npz")
    quantizer = Quantizer(parent.directory / "model.onnx", lambda: map(examples.read, range(50)))
    small = quantizer.quantize(Method("int8"), "digits")
    quantizer.close()
    labels = (parent.directory / "labels.txt").read_bytes()
    own = {"inputs": [entry.model_dump(exclude_none=True) for entry in parent.manifest.inputs]}
    write_model(
        tmp_path, "digits", "1.2.0", files={"model.onnx": small, "labels.txt": labels},
        outputs=[entry.model_dump(exclude_none=True) for entry in parent.manifest.outputs],
        answer={"output": "probabilities"}, parent={"version": "1.1.0", "how": "static INT8"}, **own,
    )  # fmt: skip
    child = _open(tmp_path, "digits@1.2.0")
    outcome = _measure(tmp_path, child, tmp_path / "test.npz", "fgsm", "pgd", strengths=(0.5, 2.0), limit=60)
    assert {one.gradients for one in outcome.measurements} == {"digits@1.1.0, a transfer attack"}
    for attack in ("fgsm", "pgd"):
        weak, strong = _changed(outcome, attack)
        assert weak < strong > 0.5


def test_differences_and_back_propagation_agree(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "digits" / "1.1.0", tmp_path / "digits" / "1.1.0")
    servable = _open(tmp_path, "digits")
    values = split_digits().test_pixels[:8].astype(np.float32)
    engine = Engine(servable, space_of(servable))
    labels = engine.labels(values)
    network = NetworkGradients(servable, is_transfer=False).of(values, labels)
    stepped = Differences(engine, Rows(servable), values).of(values, labels)
    large = np.abs(network) > 0.1 * np.abs(network).max(axis=1, keepdims=True)
    assert (np.sign(network) == np.sign(stepped))[large].mean() > 0.98
    np.testing.assert_allclose(stepped[large], network[large], rtol=0.2, atol=0.02)


def test_log_odds_are_those_of_the_confidence() -> None:
    confidences = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    odds = log_odds_against(confidences, 0)
    assert odds[0] == pytest.approx(np.log(0.3 / 0.7))
    assert np.isfinite(odds).all()


def test_answers_are_those_of_the_served_path(cat: bytes) -> None:
    servable = load_servable(ROOT / "models" / "efficientnet-lite0" / "1.1.0", 1)
    tensors = servable.prepare("image", cat)
    engine = Engine(servable, space_of(servable))
    values = engine.space.values(tensors)
    (item,) = servable.answer(servable.run(tensors), 1) or ()
    assert engine.labels(values)[0] == item.predictions[0].index
    assert engine.confidences(values).max() == pytest.approx(item.predictions[0].confidence)
    assert engine.queries == 1
    servable.close()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("colour", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("normalise", ["in_graph", {"mean": [123.7, 116.3, 103.5], "scale": [58.4, 57.1, 57.4]}])
def test_pixels_are_the_levels_that_the_model_was_given(
    cat: bytes, layout: str, colour: str, normalise: str | dict[str, list[float]]
) -> None:
    if colour == "GRAY" and isinstance(normalise, dict):
        normalise = {key: values[:1] for key, values in normalise.items()}
    processing = ImageProcessing(
        type="image", resize=40, crop=32, filter="bilinear", colour=colour, layout=layout, normalise=normalise
    )  # type: ignore[arg-type]
    tensor = ImageProcessor(processing).prepare(cat)
    space = Pixels(processing)
    values = space.values({"image": tensor})
    assert values.shape == (1, 32, 32, 1 if colour == "GRAY" else 3)
    assert (values == np.rint(values)).all()
    np.testing.assert_array_equal(space.tensor(values), tensor)
    # `slope` is the transpose of `smooth`, as of any linear step: <u, smooth(v) - smooth(0)> = <slope(u), v>.
    rng = np.random.default_rng(0)
    moved, slope = rng.normal(size=values.shape).astype(np.float32), rng.normal(size=tensor.shape).astype(np.float32)
    step = space.smooth(moved) - space.smooth(np.zeros_like(moved))
    assert float((slope * step).sum()) == pytest.approx(float((space.slope(slope) * moved).sum()), rel=1e-3, abs=1e-2)


def test_rows_stay_within_the_range_of_the_input(tmp_path: Path) -> None:
    bounds = {"range": {"action": "reject", "low": [0, None], "high": 1}}
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 2], "values": bounds}]
    directory = write_linear(tmp_path, np.array([1.0, 1.0]), -1.0)
    edit_manifest(directory, inputs=inputs)
    servable = load_servable(directory, 1)
    values = np.array([[0.1, 0.2], [0.9, 0.9]], np.float32)
    asked = Wishes(("fgsm", "pgd"), (5.0,))
    outcome = measure(Store(tmp_path), servable, rows_as_examples(values, [0, 1]), asked, no_progress)
    assert _changed(outcome, "fgsm") == [1.0]
    after = {example.where: example.after for example in outcome.examples}["row 0"]
    assert after.tolist() == [1.0, 1.0]


def test_whole_numbers_stay_whole_and_within_the_strength() -> None:
    space = Pixels(
        ImageProcessing(
            type="image", resize=4, crop=4, filter="bilinear", colour="RGB", layout="NHWC", normalise="in_graph"
        )
    )
    origin = np.array([[0, 100, 250]], np.float32)
    held = space.hold(origin + np.array([[-3, 2.9996, 9.4]], np.float32), origin, 3.0)
    assert held.tolist() == [[0, 103, 253]]


def test_same_seed_gives_the_same_figures_whatever_else_is_measured(tmp_path: Path) -> None:
    write_colour(tmp_path / "models")
    write_photos(tmp_path / "photos", 10)
    servable = _open(tmp_path / "models", "colour")
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    together = _measure(tmp_path / "models", servable, tmp_path / "photos", queries=20)
    assert (np.random.get_state()[1] == state).all()  # type: ignore[union-attr]
    for attack in ("pgd", "square", "shot_noise"):
        alone = _measure(tmp_path / "models", servable, tmp_path / "photos", attack, queries=20)
        assert [one for one in together.measurements if one.attack == attack] == list(alone.measurements)
    few = _measure(tmp_path / "models", servable, tmp_path / "photos", "fgsm", limit=4, seed=2)
    assert few.n == 4


def test_measure_refuses_what_does_not_go_with_the_model(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_colour(root)
    write_linear(root, np.array([1.0]), 0.0)
    write_photos(tmp_path / "photos", 3)
    photos, rows = _open(root, "colour"), _open(root, "linear")
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 1)), class_index=[0, 1, 0])
    cases = [
        (photos, "photos", ("deepfool",), {}, "there is no attack 'deepfool'; there are fgsm, pgd"),
        (photos, "photos", ("hopskipjump",), {}, "hopskipjump is of rows of numbers"),
        (photos, "photos", ("fgsm",), {"strengths": (0.5,)}, "--strengths 0.5: a photo has 255 levels"),
        (photos, "photos", ("fgsm",), {"gradients_from": rows}, "linear@1.0.0 takes other inputs, or has other labels"),
        (rows, "rows.npz", ("square",), {}, "square is of photos, and the model takes numbers"),
        (rows, "rows.npz", ("fog",), {}, "fog is of photos"),
    ]
    for servable, source, attacks, wishes, says in cases:
        with pytest.raises(InvalidContent, match=says.replace("(", r"\(")):
            _measure(root, servable, tmp_path / source, *attacks, **wishes)


def test_unreadable_photos_are_left_out(tmp_path: Path) -> None:
    write_colour(tmp_path / "models")
    write_photos(tmp_path / "photos", 4)
    (tmp_path / "photos" / "red" / "broken.png").write_bytes(b"\x89PNG, or not")
    servable = _open(tmp_path / "models", "colour")
    outcome = _measure(tmp_path / "models", servable, tmp_path / "photos", "fgsm", "contrast")
    assert outcome.n == 4
    assert "broken.png" in outcome.skipped[0]


def test_composition_is_attacked_through_its_steps(tmp_path: Path) -> None:
    write_linear(tmp_path, np.array([1.0, -2.0]), 0.1)
    write_release(tmp_path, "linear", "1.0.0")
    shape = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}
    write_composition(
        tmp_path, "both", "average", ["linear@1.0.0", "linear@stable"], labels=["no", "yes"],
        outputs=[{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}], **shape,
    )  # fmt: skip
    values = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    classes = (values @ [1.0, -2.0] + 0.1 > 0).astype(int).tolist()
    asked = Wishes(("fgsm",), (0.3,))
    servable = _open(tmp_path, "both")
    outcome = measure(Store(tmp_path), servable, rows_as_examples(values, classes), asked, no_progress)
    within = np.abs(values @ [1.0, -2.0] + 0.1) <= 0.3 * 3
    assert _changed(outcome, "fgsm") == [float(within.mean())]
