"""`headway evaluate`: a version on labelled images or texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.cli.console import JsonOption, Misuse, ModelsOption, emit, err, failing_cleanly, read_settings

if TYPE_CHECKING:
    from app.optimize.evaluate import Evaluation
    from app.registry.servables.servable import Resolved, Servable


def evaluate(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias")],
    folder: Annotated[
        Path,
        typer.Argument(
            help="labels.csv (filename, class_index) with images, or a folder a class; of texts a CSV file."
        ),
    ],
    models: ModelsOption = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")] = 1,
    against_steps: Annotated[
        bool, typer.Option("--against-steps", help="Also each step of a composition alone, on the same inputs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, top-5, macro precision, recall and F1, latency and the most confused classes."""
    from app.engine.inference import Inference
    from app.errors import InvalidContent
    from app.optimize.evaluate import evaluate_together, find_samples
    from app.optimize.texts import find_texts
    from app.registry.serving.lifecycle import Registry
    from app.registry.store import Store
    from app.registry.versions import ModelRef

    settings = read_settings(models=models)
    with failing_cleanly():
        try:
            ref = ModelRef.parse(model)
        except ValueError as exc:
            raise Misuse(f"{model!r}: {exc}") from exc
        registry = Registry(Store(settings.models, settings.releases), threads=threads)
        resolved = registry.open(ref)
        classification, kind = resolved.servable.classification, resolved.servable.kind
        if kind == "tensor" or classification is None:
            raise InvalidContent(f"{model} is no classifier of images or texts: evaluate takes labelled ones")
        samples = (find_texts if kind == "text" else find_samples)(folder, classification.labels)
        chosen = [resolved, *_steps(resolved.servable, model)] if against_steps else [resolved]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(f"{resolved.servable.name}@{resolved.servable.version}", total=len(samples))
            results = evaluate_together(Inference(registry), chosen, samples, partial(progress.advance, task))
        alone = [asdict(result) for result in results[1:]]
        emit(as_json, asdict(results[0]) | ({"alone": alone} if against_steps else {}), lambda: _report(kind, *results))


def _steps(servable: Servable, model: str) -> list[Resolved]:
    """The versions that answer for a composition's steps, each once."""
    from app.errors import InvalidContent
    from app.registry.servables.composed import Composed

    if not isinstance(servable, Composed):
        raise InvalidContent(f"{model} is no composition: --against-steps is for versions that have steps")
    return list({step.servable: step.resolved for step in servable.lease().steps}.values())


def _report(kind: str, result: Evaluation, *alone: Evaluation) -> Group:
    figures = Table(
        title=f"{result.model}@{result.version} on {result.n} {kind}s",
        title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    figures.add_column()
    figures.add_column(justify="right")
    for name, value in (
        ("top-1 accuracy", result.top1),
        ("top-5 accuracy", result.top5),
        ("macro precision", result.macro_precision),
        ("macro recall", result.macro_recall),
        ("macro F1", result.macro_f1),
    ):
        figures.add_row(name, f"{value:.1%}")
    for name, milliseconds in result.latency_ms.items():
        figures.add_row(f"latency {name}", f"{milliseconds:.1f} ms")
    figures.add_row("mean latency", f"{result.mean_ms:.1f} ms")
    figures.add_row("mean CPU time", f"{result.mean_cpu_ms:.1f} ms")
    parts: list[Table | str] = [figures]
    if result.steps:
        rows: list[tuple[str, ...]] = [(use.step, f"{use.ran:.1%}", f"{use.answered:.1%}") for use in result.steps]
        parts += ["", _table("steps", rows, "step", "run on", "answered")]
    if alone:
        rows = [
            (
                f"{one.model}@{one.version}",
                f"{one.top1:.1%}",
                f"{one.macro_f1:.1%}",
                f"{one.mean_ms:.1f} ms",
                f"{one.mean_cpu_ms:.1f} ms",
            )
            for one in (result, *alone)
        ]
        parts += [
            "",
            _table("against its steps", rows, "version", "top-1", "macro F1", "mean latency", "mean CPU time"),
        ]
    if result.confusions:
        rows = [(confusion.actual, confusion.predicted, str(confusion.count)) for confusion in result.confusions]
        parts += ["", _table("most confused", rows, "actual", "predicted", "times")]
    if result.unreadable:
        parts += ["", f"{len(result.unreadable)} {kind}s could not be read; the first: {escape(result.unreadable[0])}"]
    return Group(*parts)


def _table(title: str, rows: Sequence[Sequence[str]], *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
