"""A taught version in a directory: its files, its figures, other kinds of teachers, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score
from torch import nn

from app import load
from app.errors import InvalidContent
from app.optimize.distillation.data import find_partly_labelled
from app.optimize.distillation.training import Epoch, Plan
from app.optimize.distillation.version import PICTURE, Outcome, Wishes, distill_version
from app.optimize.examples import find_labelled
from app.registry.manifest import read_manifest
from app.registry.servables.golden import run_golden_tests
from app.registry.servables.loading import load_servable
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.registry.versions import ModelRef
from recipes.digits import split_digits
from tests.fixtures_distill import write_tflite_teacher
from tests.fixtures_models import write_model
from tests.running import ROOT

SMALL, LINEAR = "tests.fixtures_distill:Small", "tests.fixtures_distill:Linear"
SHORT = Plan(max_epochs=2, learning_rate=0.01)


def _nothing(_: str, __: int) -> Callable[[], None]:
    return lambda: None


def _fill(root: Path) -> Store:
    """digits, its cascade and a TFLite teacher; beside them train.npz, a tenth of it labelled, and test.npz."""
    for name in ("digits", "digits-cascade"):
        shutil.copytree(ROOT / "models" / name, root / "models" / name)
    digits = split_digits()
    write_tflite_teacher(root / "models", digits)
    classes = np.where(np.arange(len(digits.train_digits)) % 10 == 0, digits.train_digits, -1)
    np.savez(root / "train.npz", pixels=digits.train_pixels, class_index=classes)
    np.savez(root / "test.npz", pixels=digits.test_pixels, class_index=digits.test_digits)
    return Store(root / "models")


def _open(store: Store, ref: str) -> Servable:
    return Opener(store).open(ModelRef.parse(ref)).servable


def _wishes(teacher: Servable, store: Store, student: str, plan: Plan, **changes: object) -> Wishes:
    beside = store.root.parent
    data = find_partly_labelled(teacher, beside / "train.npz")
    wishes = Wishes(student, data, find_labelled(teacher, beside / "test.npz"), plan)
    return replace(wishes, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return _fill(tmp_path)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, Outcome, list[Epoch]]:
    """digits 1.2.0, with a tenth of the labels."""
    store = _fill(tmp_path_factory.mktemp("taught"))
    teacher, told = _open(store, "digits@1.1.0"), []
    directory = store.root.parent / "work" / "digits" / "1.2.0"
    plan = Plan(max_epochs=20, learning_rate=0.01, until_accuracy=1.0)
    outcome = distill_version(store, teacher, directory, _wishes(teacher, store, SMALL, plan), _nothing, told.append)
    return store, directory, outcome, told


def test_version_takes_its_teachers_place(taught: tuple[Store, Path, Outcome, list[Epoch]]) -> None:
    store, directory, outcome, told = taught
    teacher, manifest = read_manifest(store.root / "digits" / "1.1.0"), read_manifest(directory)
    for key in ("task", "inputs", "outputs", "answer", "processing", "batch", "golden", "licence"):
        assert getattr(manifest, key) == getattr(teacher, key), key
    made = load_servable(directory, 1)
    assert run_golden_tests(made) == 10
    made.close()
    assert manifest.training is not None
    assert manifest.training.algorithm == "Small, 1,446 parameters, distilled from digits 1.1.0"
    assert manifest.training.data == "1347 inputs of train.npz, 135 of them labelled"
    assert manifest.parent is not None
    assert (manifest.parent.version, manifest.parent.method) == ("1.1.0", "distill")
    assert manifest.parent.parameters == {
        "student": SMALL, "data": "train.npz", "inputs": "1347", "labelled": "135", "alpha": "0.5", "temperature": "4",
        "max_epochs": "20", "batch_size": "64", "learning_rate": "0.01", "seed": "0", "threads": "1",
        "until_accuracy": "1", "evaluation": "test.npz",
    }  # fmt: skip
    assert tuple(told) == outcome.epochs
    assert sorted(manifest.files) == [PICTURE, "golden/golden.json", "labels.txt", "model.onnx"]


def test_student_is_a_quarter_of_its_teacher_and_near_it(taught: tuple[Store, Path, Outcome, list[Epoch]]) -> None:
    """Counted anew, through the path that serves them."""
    store, directory, outcome, _ = taught
    digits, measured = split_digits(), outcome.measured
    assert measured is not None
    loaded = load("digits@1.1.0", models=store.root), load("digits@1.2.0", models=directory.parent.parent)
    answers = [[row[0].index for row in model.predict(digits.test_pixels, top_k=1)] for model in loaded]
    before, after = (accuracy_score(digits.test_digits, each) for each in answers)
    assert (measured.before.top1, measured.after.top1) == (before, after)
    assert measured.agreement == accuracy_score(*answers)
    assert after >= before - 0.02
    sizes = [path.stat().st_size for path in (store.root / "digits/1.1.0/model.onnx", directory / "model.onnx")]
    assert sizes[0] >= 4 * sizes[1]
    assert (measured.before.size_bytes, measured.after.size_bytes) == tuple(sizes)


def test_figures_and_card_say_how_it_went(taught: tuple[Store, Path, Outcome, list[Epoch]]) -> None:
    _, directory, outcome, _ = taught
    manifest, last = read_manifest(directory), outcome.epochs[-1]
    assert manifest.parent is not None
    figures = {one.name: one.version for one in manifest.parent.figures}
    assert {"top1", "agreement", "model_bytes", "run_p50_ms"} < set(figures)
    assert (figures["epochs"], figures["parameters"]) == (20, 1446)
    assert figures["loss_from_teacher"] == pytest.approx(last.from_teacher, rel=1e-5)
    assert figures["loss_from_labels"] == pytest.approx(last.from_labels, rel=1e-5)
    assert outcome.least < last.from_teacher < outcome.epochs[0].from_teacher
    assert outcome.reached is False
    card = (directory / "README.md").read_text()
    assert card.startswith("# digits 1.2.0\n\ndigits 1.1.0, distilled into a network of 1,446 parameters")
    assert "The accuracy that was asked for, 100.0%, was not reached in 20 epochs: it is 9" in card
    row = f"| 20 | {last.from_teacher:.4f} | {last.from_labels:.4f} | {last.loss:.4f} | {last.accuracy:.1%} |"
    assert row in card
    assert f"![Loss and accuracy by epoch]({PICTURE})" in card
    picture = (directory / PICTURE).read_text()
    assert picture.startswith("<?xml")
    assert "Top-1 accuracy on what is held out" in picture
    assert len(picture) < 40_000


def test_teacher_that_is_a_tflite_file_in_8_bits(store: Store) -> None:
    """Most of its probabilities are 0 or 1; the version that it teaches is an ONNX file."""
    teacher = _open(store, "digits-tflite@1.0.0")
    directory = store.root.parent / "work" / "digits-tflite" / "1.1.0"
    plan = Plan(max_epochs=12, learning_rate=0.02, temperature=2, alpha=0)
    outcome = distill_version(store, teacher, directory, _wishes(teacher, store, LINEAR, plan, max_drop=5), _nothing)
    manifest = read_manifest(directory)
    assert manifest.runtime == "onnx"
    assert "model.tflite" not in manifest.files
    digits = split_digits()
    model = load("digits-tflite@1.1.0", models=directory.parent.parent)
    answers = [row[0].index for row in model.predict(digits.test_pixels, top_k=1)]
    assert accuracy_score(digits.test_digits, answers) > 0.9
    assert outcome.measured is not None
    assert outcome.measured.agreement is not None
    assert outcome.measured.agreement > 0.93
    assert outcome.measured.before.size_bytes == (teacher.directory / "model.tflite").stat().st_size


@pytest.mark.slow
def test_teacher_that_is_a_composition(store: Store) -> None:
    teacher = _open(store, "digits-cascade@1.0.0")
    directory = store.root.parent / "work" / "digits-cascade" / "1.1.0"
    outcome = distill_version(store, teacher, directory, _wishes(teacher, store, LINEAR, SHORT, max_drop=100), _nothing)
    manifest = read_manifest(directory)
    assert (manifest.runtime, manifest.composition) == ("onnx", None)
    made = load_servable(directory, 1)
    assert run_golden_tests(made) == 10
    made.close()
    assert outcome.measured is not None
    assert outcome.measured.before.size_bytes == sum(
        (store.root / "digits" / version / "model.onnx").stat().st_size for version in ("1.0.0", "1.1.0")
    )


@pytest.mark.slow
def test_photos_some_with_a_label(tmp_path: Path) -> None:
    """The student gets the bytes that its teacher gets, and a file for one row becomes one for any number."""
    write_model(tmp_path / "models", "colour", kind="colour")
    store = Store(tmp_path / "models")
    teacher = _open(store, "colour@1.0.0")
    generator, folder = np.random.default_rng(0), tmp_path / "photos"
    for number in range(24):
        place = folder / ("red", "green", "blue", "others")[number % 4]
        place.mkdir(parents=True, exist_ok=True)
        colour = np.roll((200, 20, 35), number % 4) + generator.integers(-9, 9, 3)
        Image.new("RGB", (8, 8), tuple(colour.tolist())).save(place / f"{number}.png")
    wishes = Wishes("tests.fixtures_distill:Photo", find_partly_labelled(teacher, folder), None, SHORT, 100)
    directory = tmp_path / "work" / "colour" / "1.1.0"
    outcome = distill_version(store, teacher, directory, wishes, _nothing)
    assert (outcome.inputs, outcome.labelled, outcome.held_out) == (21, 15, 3)
    assert outcome.measured is not None
    assert (outcome.measured.data, outcome.measured.n) == ("photos, held out", 3)
    assert read_manifest(directory).inputs == teacher.manifest.inputs


@pytest.mark.slow
def test_without_any_label_the_teacher_alone_is_learnt_from(store: Store) -> None:
    teacher = _open(store, "digits@1.1.0")
    np.save(store.root.parent / "plain.npy", split_digits().train_pixels[:200])
    data = find_partly_labelled(teacher, store.root.parent / "plain.npy")
    directory = store.root.parent / "work" / "digits" / "1.2.0"
    wishes = Wishes(LINEAR, data, None, SHORT)
    outcome = distill_version(store, teacher, directory, wishes, _nothing)
    assert [epoch.from_labels for epoch in outcome.epochs] == [None, None]
    assert outcome.measured is not None
    assert outcome.measured.lost_points is None
    with pytest.raises(InvalidContent, match=r"--until-accuracy: plain.npy has too few labels"):
        distill_version(store, teacher, directory, replace(wishes, plan=replace(SHORT, until_accuracy=0.9)), _nothing)


def test_student_that_is_far_under_its_teacher_is_refused(store: Store) -> None:
    teacher = _open(store, "digits@1.1.0")
    plan = Plan(max_epochs=1, learning_rate=1e-4, until_accuracy=0.9)
    with pytest.raises(InvalidContent) as caught:
        distill_version(
            store, teacher, store.root.parent / "work/digits/1.2.0", _wishes(teacher, store, LINEAR, plan), _nothing
        )
    text = str(caught.value)
    assert re.match(r"not registered: it loses [5-9]\d\.\d\d points of top-1 on 450 inputs, and --max-drop is 2 ", text)
    assert "90.0%, was not reached in 1 epochs" in text
    assert text.endswith("or allow more with --max-drop")


class Wrong:
    """Students that do not fit, each by its factory."""

    class FewClasses(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 9)

    class OtherInput(nn.Linear):
        def __init__(self) -> None:
            super().__init__(63, 10)

    @staticmethod
    def untrainable() -> nn.Module:
        return nn.Linear(64, 10).requires_grad_(False)

    class Pair(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)

        def forward(self, pixels: object) -> tuple[object, object]:  # type: ignore[override]
            return pixels, pixels


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (
            "FewClasses",
            r"the student gives torch.float32 \[2, 9\] for 2 inputs; it must give logits, float32 \[2, 10\]",
        ),
        ("OtherInput", r"the student does not take the teacher's input, float32 \[2, 64\]: RuntimeError: "),
        ("untrainable", "the student has no parameters that could be trained"),
        ("Pair", "the student gives a tuple for 2 inputs"),
        ("Gone", "Gone"),
    ],
)
def test_students_that_do_not_fit_are_refused_before_the_training(store: Store, factory: str, says: str) -> None:
    teacher = _open(store, "digits@1.1.0")
    wishes = _wishes(teacher, store, f"{__name__}:Wrong.{factory}", SHORT)
    directory = store.root.parent / "work" / "digits" / "1.2.0"
    with pytest.raises(InvalidContent, match=says):
        distill_version(store, teacher, directory, wishes, _nothing)
    assert not directory.exists()


def test_teachers_that_choose_no_class_are_refused(store: Store, tmp_path: Path) -> None:
    write_model(store.root, "scores")  # it answers with its input
    teacher = _open(store, "scores@1.0.0")
    np.savez(tmp_path / "rows.npz", x=np.array([[0.9, 0.8, 0.7]] * 3, np.float32))
    wishes = Wishes(LINEAR, find_partly_labelled(teacher, tmp_path / "rows.npz"), None, SHORT)
    with pytest.raises(InvalidContent, match=r"scores@1\.0\.0: its scores do not add up to 1 over the classes"):
        distill_version(store, teacher, tmp_path / "scores" / "1.1.0", wishes, _nothing)
    assert (
        json.dumps(sorted(path.name for path in tmp_path.iterdir()))
        == '["models", "rows.npz", "test.npz", "train.npz"]'
    )
