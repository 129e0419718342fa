"""From a version to a smaller one that was taught by it, in a directory, measured beside it; refused where it loses
too much."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.errors import InvalidContent
from app.optimize import derived
from app.optimize.before_after import BeforeAfter, figure
from app.optimize.derived import Derivation, Progress
from app.optimize.distillation.data import select, split
from app.optimize.distillation.student import check_student, count_parameters, describe_student, export
from app.optimize.distillation.teacher import Lessons, gather
from app.optimize.distillation.training import Epoch, Plan, is_reached, least_loss, seeded, train
from app.optimize.examples import Examples
from app.optimize.networks.fine_tune import reproducible
from app.optimize.networks.torch_export import load_factory
from app.registry.servables.servable import Servable
from app.registry.store import Store

PICTURE = "distillation.svg"
# Floats on another CPU: sums in another order.
_TOLERANCE = 0.001
_SHOWN = 12
_TRIED = 2


@dataclass(frozen=True, slots=True)
class Wishes:
    """`student` is module:factory. `data` is what it learns from, with labels of some or all of it or of none;
    `evaluation`, all of it labelled, is what it is measured on and stops by. Without it a fifth of the labelled part of
    `data` is held out for that."""

    student: str
    data: Examples
    evaluation: Examples | None = None
    plan: Plan = field(default_factory=Plan)
    max_drop: float = 2.0
    command: str = "headway distill"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`directory` holds the new version, ready to be published; `same_as` is set instead where its file is there
    already, and then nothing was measured. `reached` is None where no accuracy was asked for. `least` is the smallest
    that the teacher's term of the loss can be."""

    epochs: tuple[Epoch, ...]
    reached: bool | None
    least: float
    parameters: int
    inputs: int
    labelled: int
    held_out: int
    skipped: tuple[str, ...]
    shared: int
    sha256: str
    same_as: str | None = None
    measured: BeforeAfter | None = None


def distill_version(
    store: Store,
    teacher: Servable,
    directory: Path,
    wishes: Wishes,
    progress: Progress,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Outcome:
    """Fill `directory` (`…/<name>/<version>`, not there yet).

    Raises InvalidContent for a student that does not fit, and where too much is lost.
    """
    plan = wishes.plan
    learnt, measured_on = _divide(wishes)
    with reproducible(plan.threads), seeded(plan.seed):
        student = load_factory(wishes.student)
        check_student(student, teacher, learnt)
        lessons, held_out = _gather(teacher, learnt, measured_on, progress)
        advance = progress("training, epochs", plan.max_epochs)

        def report(epoch: Epoch) -> None:
            advance()
            on_epoch(epoch)

        epochs = tuple(train(student, lessons, plan, held_out, report))
        model = export(student, teacher, lessons.inputs[:_TRIED])
    digest = hashlib.sha256(model).hexdigest()
    same = derived.find_same(store, teacher.name, digest)
    assert lessons.logits is not None
    reached = is_reached(plan, epochs[-1]) if plan.until_accuracy is not None else None
    least = least_loss(lessons.logits, plan.temperature)
    counts = count_parameters(student), len(lessons.inputs), lessons.labelled, len(held_out.inputs) if held_out else 0
    outcome = Outcome(epochs, reached, least, *counts, lessons.skipped, lessons.shared, digest, same)
    if same is not None:
        return outcome
    derivation = _derivation(teacher, student, lessons, wishes, outcome)
    examples = measured_on or replace(learnt, classes=None)
    measured = derived.derive(store, teacher, directory, model, derivation, examples, progress)
    loss = measured.loss(wishes.max_drop)
    if loss is not None:
        raise InvalidContent(
            f"{loss}. {describe_end(outcome, plan)} More data, epochs or parameters of the student may help; or allow "
            "more with --max-drop"
        )
    return replace(outcome, measured=measured)


def describe_end(outcome: Outcome, plan: Plan) -> str:
    """Why the training ended, as a sentence."""
    last = outcome.epochs[-1]
    if plan.until_accuracy is None or last.accuracy is None:
        return f"It was trained for {last.number} epochs."
    if outcome.reached:
        return (
            f"The accuracy that was asked for, {plan.until_accuracy:.1%}, was reached in epoch {last.number}: "
            f"{last.accuracy:.1%}."
        )
    best = max(outcome.epochs, key=lambda epoch: epoch.accuracy or 0.0)
    return (
        f"The accuracy that was asked for, {plan.until_accuracy:.1%}, was not reached in {last.number} epochs: it is "
        f"{last.accuracy:.1%} after the last, and was {best.accuracy:.1%} at best, in epoch {best.number}."
    )


def shown_epochs(epochs: Sequence[Epoch]) -> list[Epoch]:
    """The first, the last, and some between them."""
    places = np.unique(np.linspace(0, len(epochs) - 1, min(_SHOWN, len(epochs))).round().astype(int))
    return [epochs[place] for place in places]


def epoch_cells(epoch: Epoch) -> tuple[str, str, str, str, str]:
    """Its number, both terms, the loss, the accuracy."""
    labels = f"{epoch.from_labels:.4f}" if epoch.from_labels is not None else "–"
    accuracy = f"{epoch.accuracy:.1%}" if epoch.accuracy is not None else "–"
    return str(epoch.number), f"{epoch.from_teacher:.4f}", labels, f"{epoch.loss:.4f}", accuracy


def _divide(wishes: Wishes) -> tuple[Examples, Examples | None]:
    """What is learnt from, and what is measured on."""
    if wishes.evaluation is not None:
        return wishes.data, wishes.evaluation
    parts = split(wishes.data.classes or (), wishes.plan.seed)
    if parts.held_out:
        name = wishes.data.data
        return select(wishes.data, parts.learnt, name), select(wishes.data, parts.held_out, f"{name}, held out")
    if wishes.plan.until_accuracy is not None:
        raise InvalidContent(
            f"--until-accuracy: {wishes.data.data} has too few labels to hold some out for it (five of a class); say "
            "--evaluation with labelled data"
        )
    return wishes.data, None


def _gather(
    teacher: Servable, learnt: Examples, measured_on: Examples | None, progress: Progress
) -> tuple[Lessons, Lessons | None]:
    """What it is measured on is not learnt from, wherever it stands."""
    held_out = None
    if measured_on is not None:
        held_out = gather(measured_on, teacher, progress("reading", measured_on.count), is_asked=False)
    without = held_out.keys() if held_out is not None else frozenset()
    return gather(learnt, teacher, progress("asking the teacher", learnt.count), without=without), held_out


def _derivation(
    teacher: Servable, student: torch.nn.Module, lessons: Lessons, wishes: Wishes, outcome: Outcome
) -> Derivation:
    plan, last = wishes.plan, outcome.epochs[-1]
    label = f"{teacher.name} {teacher.version}"
    kind = f"{type(student).__name__}, {outcome.parameters:,} parameters"
    losses = [figure("loss_from_teacher", None, last.from_teacher)]
    losses += [figure("loss_from_labels", None, last.from_labels)] if last.from_labels is not None else []
    return Derivation(
        method="distill",
        how=f"taught to {wishes.student} ({kind}) on {wishes.data.data}, {last.number} epochs, seed {plan.seed}",
        parameters=_parameters(wishes, outcome),
        summary=f"{label}, distilled into a network of {outcome.parameters:,} parameters ({wishes.student}).",
        command=wishes.command,
        least_tolerance=_TOLERANCE,
        sections=[("Distillation", _section(wishes, outcome))],
        figures=[figure("epochs", None, last.number), *losses, figure("parameters", None, outcome.parameters)],
        attachments=_pictures(outcome, plan),
        content=describe_student(teacher, kind, lessons, wishes.data.data),
    )


def _parameters(wishes: Wishes, outcome: Outcome) -> dict[str, str]:
    plan = wishes.plan
    parameters: dict[str, Any] = {
        "student": wishes.student,
        "data": wishes.data.data,
        "inputs": outcome.inputs,
        "labelled": outcome.labelled,
        "alpha": f"{plan.alpha:g}",
        "temperature": f"{plan.temperature:g}",
        "max_epochs": plan.max_epochs,
        "batch_size": plan.batch_size,
        "learning_rate": f"{plan.learning_rate:g}",
        "seed": plan.seed,
        "threads": plan.threads,
    }
    if plan.until_accuracy is not None:
        parameters["until_accuracy"] = f"{plan.until_accuracy:g}"
    if wishes.evaluation is not None:
        parameters["evaluation"] = wishes.evaluation.data
    return {name: str(value) for name, value in parameters.items()}


def _section(wishes: Wishes, outcome: Outcome) -> str:
    plan = wishes.plan
    lines = [
        f"`{wishes.student}` learnt from {outcome.inputs:,} inputs of {wishes.data.data}, {outcome.labelled:,} of them "
        f"labelled. Loss: H(q, p)·T² + alpha·H(q, y): q what the student says, p what the teacher says, y the label; "
        f"T = {plan.temperature:g} in the first term, alpha = {plan.alpha:g}. The first can be no less than "
        f"{outcome.least:.4f}, the teacher's own entropy times T². {describe_end(outcome, plan)}",
        "",
        *derived.table(
            ("epoch", "H(q, p)·T²", "H(q, y)", "loss", "top-1, held out"),
            [epoch_cells(epoch) for epoch in shown_epochs(outcome.epochs)],
        ),
    ]
    if _can_draw():
        lines += ["", f"![Loss and accuracy by epoch]({PICTURE})"]
    return "\n".join(lines)


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _pictures(outcome: Outcome, plan: Plan) -> dict[str, bytes]:
    if not _can_draw():
        return {}
    from app.optimize.distillation.chart import draw_epochs

    return {PICTURE: draw_epochs(outcome.epochs, least=outcome.least, until_accuracy=plan.until_accuracy)}
