"""`headway compare`: versions side by side on labelled images, as a table and as pictures."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.cli.console import (
    MISUSE,
    JsonOption,
    Misuse,
    ModelsOption,
    emit,
    err,
    failing_cleanly,
    open_store,
    print_error,
    read_settings,
)
from app.errors import Conflict, InvalidContent
from app.registry.versions import ModelRef

if TYPE_CHECKING:
    from app.optimize.compare import Comparison, Figures
    from app.settings import Settings


def compare(
    versions: Annotated[list[str], typer.Argument(metavar="MODEL@A MODEL@B …", help="two or more versions or aliases")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="labels.csv (filename, class_index) with images, or a folder a class")
    ],
    models: ModelsOption = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for compare.json and the pictures (PNG and SVG).")
    ] = None,
    ratings: Annotated[
        Path | None,
        typer.Option("--ratings", help='Mean ratings as JSON: {"model@version": 4.2}; they give the colour.'),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, F1, latency, CPU time, size and memory of versions, and which differences are noise."""
    if len(versions) < 2:
        print_error(f"compare takes two or more versions, then the folder of images; {versions[0]} is one")
        raise typer.Exit(MISUSE)
    settings = read_settings(models=models)
    with failing_cleanly():
        refs = [_parse_ref(version) for version in versions]
        rated = _read_ratings(ratings) if ratings is not None else {}
        charts = _prepare_output(output) if output is not None else None
        comparison = _measure(settings, refs, folder, threads, rated)
        described = comparison.describe()
        if output is not None and charts is not None:
            text = json.dumps(described, ensure_ascii=False, indent=2) + "\n"
            _write_files(output, {"compare.json": text.encode(), **charts.draw_charts(comparison)})
        emit(as_json, described, lambda: _report(comparison))


def _measure(
    settings: Settings, refs: Sequence[ModelRef], folder: Path, threads: int, ratings: Mapping[str, float]
) -> Comparison:
    from app.optimize.compare import compare as compare_versions
    from app.optimize.compare import open_versions
    from app.optimize.evaluate import find_samples

    store = open_store(settings)
    opened = open_versions(store, refs, threads)
    classification = opened[0].servable.classification
    assert classification is not None
    samples = find_samples(folder, classification.labels)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{len(opened)} versions", total=len(samples))
        advance = partial(progress.advance, task)
        return compare_versions(store, opened, samples, threads=threads, ratings=ratings, progress=advance)


def _parse_ref(text: str) -> ModelRef:
    try:
        return ModelRef.parse(text)
    except ValueError as exc:
        raise Misuse(f"{text!r}: {exc}") from exc


def _read_ratings(path: Path) -> dict[str, float]:
    """Of name@version, of those that are compared and of any others. Raises InvalidContent."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidContent(f"{path}: is not JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise InvalidContent(f'{path}: must be an object of ratings, as {{"digits@1.1.0": 4.2}}')
    for name, value in content.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= 1e9:  # NaN is not, either
            raise InvalidContent(f"{path}: the rating of {name!r} must be a number, as 4.2; it is {value!r}")
    return {name: float(value) for name, value in content.items()}


def _prepare_output(folder: Path) -> ModuleType:
    """Before hours of work: what draws is there, and the folder. Returns app.optimize.charts."""
    try:
        from app.optimize import charts
    except ImportError as exc:
        raise InvalidContent(
            f"--output draws pictures with Matplotlib ({exc}): pip install 'headway[compare]'"
        ) from exc
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Conflict(f"{folder}: cannot be written to; name another folder with --output")
    return charts


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Each takes its place whole, and after all are written."""
    with _writing(folder), tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as staging:
        for name, data in files.items():
            Path(staging, name).write_bytes(data)
        for name in files:
            os.replace(Path(staging, name), folder / name)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        path = exc.filename2 or exc.filename or folder
        raise Conflict(f"{path}: cannot be written ({exc.strerror}); name another folder with --output") from exc


def _report(comparison: Comparison) -> Group:
    figures = Table(box=None, padding=(0, 2, 0, 0), title=f"{comparison.images} images", title_justify="left")
    figures.add_column()
    for version in comparison.versions:
        figures.add_column(version.name.replace("@", "\n@"), justify="right", overflow="fold")
    for row in zip(*map(_rows, comparison.versions), strict=True):
        if any(value for _, value in row):
            figures.add_row(row[0][0], *(value or "-" for _, value in row))
    parts: list[Table | str] = [figures, "", _differences(comparison)]
    if any(entry.is_noise for entry in comparison.differences):
        parts.append(
            "within noise: these images do not tell the two apart (exact McNemar test, p ≥ 0.05); more images might"
        )
    for version in comparison.versions:
        unreadable = version.evaluation.unreadable
        if unreadable:
            parts.append(
                f"{len(unreadable)} images could not be read by {version.name}; the first: {escape(unreadable[0])}"
            )
    return Group(*parts)


def _rows(version: Figures) -> list[tuple[str, str]]:
    """Names and values; an empty value where there is none."""
    from app.optimize.compare import format_bytes

    result, memory = version.evaluation, version.memory
    low, high = version.top1_interval
    return [
        ("images answered", str(result.n)),
        ("top-1 accuracy", f"{result.top1:.1%}"),
        ("  95 % interval", f"{low:.1%} … {high:.1%}"),
        ("top-5 accuracy", f"{result.top5:.1%}"),
        ("macro precision", f"{result.macro_precision:.1%}"),
        ("macro recall", f"{result.macro_recall:.1%}"),
        ("macro F1", f"{result.macro_f1:.1%}"),
        *((f"latency {name}", f"{milliseconds:.2f} ms") for name, milliseconds in result.latency_ms.items()),
        ("mean CPU time", f"{result.mean_cpu_ms:.2f} ms"),
        ("size of the files", format_bytes(version.size_bytes)),
        ("memory it adds", format_bytes(memory.rss_bytes) if memory is not None else ""),
        ("  at most", format_bytes(memory.peak_rss_bytes) if memory is not None else ""),
        ("mean rating", f"{version.rating:g}" if version.rating is not None else ""),
    ]


def _differences(comparison: Comparison) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.title = f"top-1 against {comparison.versions[0].name}, image by image"
    for column in ("", "difference", "only the\nformer right", "only this\nright", "p", ""):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for entry in comparison.differences:
        verdict = "within noise" if entry.is_noise else "better" if entry.top1 > 0 else "worse"
        counts = (str(entry.only_first_right), str(entry.only_other_right))
        p_value = "< 0.001" if entry.p_value < 0.001 else f"{entry.p_value:.3f}"
        name = entry.other.replace("@", "\n@")
        table.add_row(name, f"{entry.top1 * 100:+.1f} points", *counts, p_value, verdict)
    return table
