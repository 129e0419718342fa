"""The loss against NumPy and SciPy, and students against twins that learn from labels alone."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy, ttest_rel

from app.errors import InvalidContent
from app.optimize.distillation.data import UNKNOWN
from app.optimize.distillation.teacher import Lessons, gather
from app.optimize.distillation.training import Plan, label_loss, least_loss, loss_terms, measure_accuracy, seeded, train
from app.optimize.examples import find_labelled
from app.optimize.networks.fine_tune import reproducible
from app.registry.servables.opening import Opener
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.tensors import Array
from recipes.digits import split_digits
from tests.fixtures_distill import Linear, Small
from tests.running import ROOT

SEEDS = range(5)
LABELLED = 135  # a tenth
PLAN = Plan(max_epochs=15, learning_rate=0.01)


def _cross_entropy(said: Array, true: Array) -> Array:
    """H(q, p) = -Σ p log q of each row of logits and of probabilities."""
    return -(true * log_softmax(said, axis=1)).sum(axis=1)


def _logits(seed: int, rows: int = 7, classes: int = 5) -> tuple[Array, Array, Array]:
    """Of a student and a teacher, and the right classes, some of which are not known."""
    generator = np.random.default_rng(seed)
    known = generator.integers(0, classes, rows)
    return generator.normal(0, 3, (rows, classes)), generator.normal(0, 6, (rows, classes)), known


@pytest.mark.parametrize("temperature", [1.0, 2.5, 8.0])
@pytest.mark.parametrize("unknown", [[], [0, 3, 4]])
def test_each_term_and_its_gradient_equal_an_independent_computation(temperature: float, unknown: list[int]) -> None:
    said, taught, classes = _logits(int(temperature * 2))
    classes[unknown] = UNKNOWN
    known = classes != UNKNOWN
    student = torch.tensor(said, requires_grad=True)
    from_teacher, from_labels = loss_terms(student, torch.tensor(taught), torch.tensor(classes), temperature)

    p = softmax(taught / temperature, axis=1)
    expected = temperature**2 * _cross_entropy(said / temperature, p).mean()
    assert from_teacher.item() == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(from_teacher, student)
    by_hand = temperature * (softmax(said / temperature, axis=1) - p) / len(said)
    np.testing.assert_allclose(gradient.numpy(), by_hand, atol=1e-6)

    y = np.eye(said.shape[1])[classes]
    assert from_labels.item() == pytest.approx(_cross_entropy(said, y)[known].mean(), abs=1e-6)
    (gradient,) = torch.autograd.grad(from_labels, student)
    by_hand = np.where(known[:, None], softmax(said, axis=1) - y, 0) / known.sum()
    np.testing.assert_allclose(gradient.numpy(), by_hand, atol=1e-6)


def test_no_label_adds_nothing() -> None:
    said, *_ = _logits(0)
    student = torch.tensor(said, requires_grad=True)
    loss = label_loss(student, torch.full((len(said),), UNKNOWN))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_least_loss_is_the_entropy_of_the_teacher() -> None:
    _, taught, _ = _logits(1)
    p = softmax(taught / 3, axis=1)
    least = least_loss(taught.astype(np.float32), 3)
    assert least == pytest.approx(9 * entropy(p, axis=1).mean(), rel=1e-5)
    student = torch.tensor(taught)
    assert loss_terms(student, student, torch.zeros(len(taught)).long(), 3)[0].item() == pytest.approx(least, rel=1e-5)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    """What digits 1.1.0 says of the training rows, all of them labelled."""
    return _gathered("train")


@pytest.fixture(scope="module")
def held_out() -> Lessons:
    return _gathered("test")


def _gathered(part: str) -> Lessons:
    digits, teacher = split_digits(), Opener(Store(ROOT / "models")).open(ModelRef.parse("digits@1.1.0")).servable
    pixels, classes = getattr(digits, f"{part}_pixels"), getattr(digits, f"{part}_digits")
    logits = np.log(teacher.run({"pixels": pixels})["probabilities"])
    return Lessons(pixels, classes.astype(np.int64), logits)


def _partly_labelled(lessons: Lessons, seed: int) -> tuple[Lessons, Lessons]:
    """With the labels of a tenth, and that tenth alone, without the teacher."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(lessons.classes))[:LABELLED])
    classes = np.full_like(lessons.classes, UNKNOWN)
    classes[chosen] = lessons.classes[chosen]
    return replace(lessons, classes=classes), Lessons(lessons.inputs[chosen], lessons.classes[chosen])


def _train(lessons: Lessons, plan: Plan, held_out: Lessons) -> float:
    with reproducible(), seeded(plan.seed):
        student = Small()
        train(student, lessons, plan)
        return measure_accuracy(student, held_out)


@pytest.mark.parametrize(("epochs", "points"), [(10, 6), pytest.param(40, 2, marks=pytest.mark.slow)])
def test_student_beats_its_label_only_twin(lessons: Lessons, held_out: Lessons, epochs: int, points: float) -> None:
    """The twin has the same start, the same labels, and as many steps; the student is near its teacher."""
    students, twins = [], []
    for seed in SEEDS:
        partly, labelled = _partly_labelled(lessons, seed)
        plan = replace(PLAN, seed=seed, max_epochs=epochs)
        students.append(_train(partly, plan, held_out))
        steps = epochs * -(-len(partly.inputs) // plan.batch_size)
        twin = replace(plan, max_epochs=steps // -(-LABELLED // plan.batch_size), alpha=1.0)
        twins.append(_train(labelled, twin, held_out))
    assert ttest_rel(students, twins, alternative="greater").pvalue < 0.05
    assert min(np.subtract(students, twins)) > 0
    assert held_out.logits is not None
    teacher = float(np.mean(held_out.logits.argmax(axis=1) == held_out.classes))
    assert min(students) >= teacher - points / 100


def test_epoch_says_both_terms_of_all_inputs(lessons: Lessons, held_out: Lessons) -> None:
    """Nothing is learnt at a rate of 0, so the terms are those of the network as it was."""
    partly, _ = _partly_labelled(lessons, 0)
    student = Linear()
    before = copy.deepcopy(student.state_dict())
    plan = Plan(alpha=0.7, temperature=2, max_epochs=1, batch_size=100, learning_rate=0)
    with reproducible():
        (epoch,) = train(student, partly, plan, held_out)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    said = student(torch.from_numpy(partly.inputs)).detach().numpy().astype(np.float64)
    assert partly.logits is not None
    from_teacher = 4 * _cross_entropy(said / 2, softmax(partly.logits.astype(np.float64) / 2, axis=1)).mean()
    known = partly.classes != UNKNOWN
    from_labels = _cross_entropy(said, np.eye(10)[partly.classes])[known].mean()
    assert epoch.from_teacher == pytest.approx(from_teacher, rel=1e-5)
    assert epoch.from_labels == pytest.approx(from_labels, rel=1e-5)
    assert epoch.loss == pytest.approx(from_teacher + 0.7 * from_labels, rel=1e-5)
    best = student(torch.from_numpy(held_out.inputs)).argmax(dim=1).numpy()
    assert epoch.accuracy == np.mean(best == held_out.classes)


def test_training_ends_when_the_accuracy_is_reached(lessons: Lessons, held_out: Lessons) -> None:
    plan = replace(PLAN, until_accuracy=0.9)
    with reproducible(), seeded(0):
        epochs = train(Small(), lessons, plan, held_out)
    accuracies = [epoch.accuracy or 0 for epoch in epochs]
    assert len(epochs) < plan.max_epochs
    assert [accuracy >= 0.9 for accuracy in accuracies] == [False] * (len(epochs) - 1) + [True]


def test_same_seed_gives_the_same_weights_and_leaves_no_trace(lessons: Lessons) -> None:
    def weights(seed: int) -> bytes:
        with reproducible(), seeded(seed):
            student = Small()
            train(student, lessons, Plan(max_epochs=1, seed=seed))
            return b"".join(value.numpy().tobytes() for value in student.state_dict().values())

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, again, other = (weights(seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_loss_that_runs_away_is_refused(lessons: Lessons) -> None:
    with reproducible(), pytest.raises(InvalidContent, match=r"no longer finite in epoch \d+: lower --learning-rate"):
        train(Small(), lessons, Plan(max_epochs=5, learning_rate=1e30))


def test_inputs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """And those of other data are left out."""
    teacher = Opener(Store(ROOT / "models")).open(ModelRef.parse("digits@1.1.0")).servable
    digits = split_digits()
    np.savez(tmp_path / "few.npz", pixels=digits.test_pixels[:4], class_index=digits.test_digits[:4])
    examples = find_labelled(teacher, tmp_path / "few.npz")
    broken = replace(
        examples, read=lambda number: {"pixels": digits.test_pixels[number : number + 1] * (1, np.nan)[number == 1]}
    )
    found = gather(broken, teacher, without=frozenset([digits.test_pixels[3:4][0].tobytes()]))
    assert np.array_equal(found.inputs, digits.test_pixels[[0, 2]])
    assert found.classes.tolist() == digits.test_digits[[0, 2]].tolist()
    assert (len(found.skipped), found.shared, found.labelled) == (1, 1, 2)
    assert "row 1: has values that are missing or not finite" in found.skipped[0]
    with pytest.raises(InvalidContent, match="none of its 4 inputs can be used; 4 are in the other data"):
        gather(examples, teacher, without=gather(examples, teacher, is_asked=False).keys())
