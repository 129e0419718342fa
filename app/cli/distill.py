"""`headway distill`: a small network taught by a served version, beside it, with what that gained and lost."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from app.cli.console import JsonOption, ModelsOption, emit, err, failing_cleanly, open_store, read_settings
from app.cli.derive import (
    EvaluationOption,
    VersionOption,
    before_after_table,
    closing_lines,
    describe_measured,
    describe_version,
    free_version,
    open_parent,
    progress_bars,
    publish,
    require,
    same_file_text,
    stdout_kept,
    workplace,
)
from app.registry.store import Store
from app.settings import Settings

if TYPE_CHECKING:
    from app.optimize.distillation.training import Epoch, Plan
    from app.optimize.distillation.version import Outcome, Wishes
    from app.registry.servables.servable import Servable
    from app.registry.storing.intake import Published


def distill(
    teacher: Annotated[
        str, typer.Option("--teacher", metavar="MODEL", help="name, name@version or name@alias of a classifier.")
    ],
    student: Annotated[
        str,
        typer.Option("--student", metavar="MODULE:FACTORY", help="A function of yours that returns a torch module."),
    ],
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="Inputs, labelled or not: images; a CSV, .npy or .npz file."),
    ],
    alpha: Annotated[float, typer.Option("--alpha", min=0, help="Weight of the labels beside the teacher.")] = 0.5,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.01, help="Of the teacher's and the student's softmax.")
    ] = 4.0,
    until_accuracy: Annotated[
        float | None, typer.Option("--until-accuracy", min=0, max=1, help="End when top-1 is that, from 0 to 1.")
    ] = None,
    max_epochs: Annotated[int, typer.Option("--max-epochs", min=1)] = 100,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    learning_rate: Annotated[float, typer.Option("--learning-rate", min=0, help="At the start.")] = 3e-3,
    evaluation: EvaluationOption = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, help="Points of top-1 that the student may be under the teacher.")
    ] = 2.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1)] = 0,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="More are faster; the file depends on how many.")
    ] = 1,
    version: VersionOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """A small network of yours, taught by a version, in its place; refused where it is too far under it."""
    settings = read_settings(models=models)
    with failing_cleanly():
        require("training", "onnx", "torch", "onnxscript")
        from app.optimize.distillation.data import find_partly_labelled
        from app.optimize.distillation.training import Plan
        from app.optimize.distillation.version import Wishes, distill_version
        from app.optimize.examples import find_labelled

        store = open_store(settings)
        parent = open_parent(store, teacher)
        number = free_version(store, parent, version)
        inputs = find_partly_labelled(parent, data)
        labelled = find_labelled(parent, evaluation) if evaluation is not None else None
        plan = Plan(alpha, temperature, max_epochs, until_accuracy, batch_size, learning_rate, seed, threads)
        command = _command(parent, student, data, evaluation, plan)
        wishes = Wishes(student, inputs, labelled, plan, max_drop, command)
        with workplace(parent, number) as directory, stdout_kept(), progress_bars() as progress:
            outcome = distill_version(store, parent, directory, wishes, progress, _epoch_printer(plan))
            published = publish(store, settings, directory) if outcome.same_as is None else None
        emit(
            as_json,
            _plain(parent, outcome, published, number, wishes),
            lambda: _report(parent, outcome, published, number, wishes, settings, store),
        )


def _epoch_printer(plan: Plan) -> Callable[[Epoch], None]:
    """A line on stderr for each epoch, above the progress bar, or into a log."""

    def show(epoch: Epoch) -> None:
        labels = f" + {plan.alpha:g} · {epoch.from_labels:.4f} (labels)" if epoch.from_labels is not None else ""
        accuracy = f"; top-1 {epoch.accuracy:.1%}" if epoch.accuracy is not None else ""
        err.print(
            f"epoch {epoch.number}: loss {epoch.loss:.4f} = {epoch.from_teacher:.4f} (teacher){labels}{accuracy}",
            markup=False,
        )

    return show


def _command(parent: Servable, student: str, data: Path, evaluation: Path | None, plan: Plan) -> str:
    """What makes such a version again, for its card. Folders are named without where they lie on this machine."""
    words = ["headway", "distill", "--teacher", f"{parent.name}@{parent.version}", "--student", student]
    words += ["--data", data.resolve().name]
    words += ["--evaluation", evaluation.resolve().name] if evaluation is not None else []
    words += ["--alpha", f"{plan.alpha:g}", "--temperature", f"{plan.temperature:g}"]
    words += ["--until-accuracy", f"{plan.until_accuracy:g}"] if plan.until_accuracy is not None else []
    words += ["--max-epochs", str(plan.max_epochs), "--batch-size", str(plan.batch_size)]
    words += ["--learning-rate", f"{plan.learning_rate:g}", "--seed", str(plan.seed)]
    return shlex.join([*words, *(("--threads", str(plan.threads)) if plan.threads > 1 else ())])


def _plain(
    parent: Servable, outcome: Outcome, published: Published | None, number: str, wishes: Wishes
) -> dict[str, Any]:
    measured = outcome.measured
    return describe_version(parent, published, number, outcome.same_as) | {
        "student": wishes.student,
        "parameters": outcome.parameters,
        "plan": asdict(wishes.plan),
        "inputs": outcome.inputs,
        "labelled": outcome.labelled,
        "held_out": outcome.held_out,
        "left_out": {"unusable": list(outcome.skipped), "also_in_evaluation": outcome.shared},
        "reached": outcome.reached,
        "least_from_teacher": outcome.least,
        "epochs": [asdict(epoch) for epoch in outcome.epochs],
        "sha256": outcome.sha256,
        "measured": describe_measured(measured) if measured is not None else None,
    }


def _report(
    parent: Servable,
    outcome: Outcome,
    published: Published | None,
    number: str,
    wishes: Wishes,
    settings: Settings,
    store: Store,
) -> Group:
    from app.optimize.distillation.version import describe_end

    measured = outcome.measured
    if published is None or measured is None:
        return Group(same_file_text(parent, outcome.same_as))
    how = f"{wishes.student} taught by {parent.version}"
    said = [
        f"learnt from {outcome.inputs} inputs, {outcome.labelled} of them labelled; the teacher's term can be no less "
        f"than {outcome.least:.4f}",
        describe_end(outcome, wishes.plan),
    ]
    if outcome.skipped:
        said.append(f"{len(outcome.skipped)} inputs could not be learnt from; the first: {outcome.skipped[0]}")
    if outcome.shared:
        said.append(f"{outcome.shared} inputs are in the evaluation, too, and were not learnt from")
    return Group(
        before_after_table(parent, number, how, measured),
        Text(),
        _epoch_table(outcome),
        Text(),
        *(Text(line) for line in said),
        *closing_lines(parent, published, measured, settings, store),
    )


def _epoch_table(outcome: Outcome) -> Table:
    from app.optimize.distillation.version import epoch_cells, shown_epochs

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("epoch", "H(q, p)·T²", "H(q, y)", "loss", "top-1, held out"):
        table.add_column(column, justify="right")
    for epoch in shown_epochs(outcome.epochs):
        table.add_row(*epoch_cells(epoch))
    return table
