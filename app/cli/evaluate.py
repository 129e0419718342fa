"""`headway evaluate`: a version on labelled images."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.cli.console import JsonOption, ModelsOption, emit, err, failing_cleanly, read_settings

if TYPE_CHECKING:
    from app.optimize.evaluate import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias")],
    folder: Annotated[Path, typer.Argument(help="labels.csv (filename, class_index) with images, or a folder a class")],
    models: ModelsOption = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, top-5, macro precision, recall and F1, latency and the most confused classes."""
    from app.engine.inference import Inference
    from app.errors import InvalidContent
    from app.optimize.evaluate import evaluate as run_evaluation
    from app.optimize.evaluate import find_samples
    from app.registry.lifecycle import Registry
    from app.registry.store import Store
    from app.registry.versions import ModelRef

    settings = read_settings(models=models)
    with failing_cleanly():
        try:
            ref = ModelRef.parse(model)
        except ValueError as exc:
            raise InvalidContent(f"{model!r}: {exc}") from exc
        registry = Registry(Store(settings.models, settings.releases), threads=threads)
        resolved = registry.open(ref)
        classification = resolved.servable.classification
        if resolved.servable.kind != "image" or classification is None:
            raise InvalidContent(f"{model} is no image classifier: evaluate takes labelled images")
        samples = find_samples(folder, classification.labels)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(f"{resolved.servable.name}@{resolved.servable.version}", total=len(samples))
            result = run_evaluation(Inference(registry), resolved, samples, lambda: progress.advance(task))
        emit(as_json, asdict(result), lambda: _report(result))


def _report(result: Evaluation) -> Group:
    figures = Table(
        title=f"{result.model}@{result.version} on {result.n} images",
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
    parts: list[Table | str] = [figures]
    if result.confusions:
        confused = Table(title="most confused", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("actual", "predicted", "times"):
            confused.add_column(column)
        for confusion in result.confusions:
            confused.add_row(escape(confusion.actual), escape(confusion.predicted), str(confusion.count))
        parts += ["", confused]
    if result.unreadable:
        parts += ["", f"{len(result.unreadable)} images could not be read; the first: {escape(result.unreadable[0])}"]
    return Group(*parts)
