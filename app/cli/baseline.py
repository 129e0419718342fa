"""`headway baseline`: what a version's inputs and answers look like on reference data, as a version that carries it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app.cli.console import JsonOption, Misuse, ModelsOption, emit, err, failing_cleanly, open_store, read_settings
from app.errors import Conflict
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.settings import Settings

if TYPE_CHECKING:
    from app.monitoring.binning import Bins, ClassBins
    from app.optimize.baseline import Measured
    from app.registry.servables.servable import Servable
    from app.registry.storing.intake import Published

_SHOWN = 5


def baseline(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias")],
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of images; for numbers a CSV, .npy or .npz file of rows.")
    ],
    data: Annotated[str | None, typer.Option("--data", help="Name of the data. [default: that of DIR]")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the baseline to this file only, and publish nothing.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")] = 1,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Histograms of inputs and answers, published as the next patch version: the same model with a baseline.json."""
    settings = read_settings(models=models)
    with failing_cleanly():
        try:
            ref = ModelRef.parse(model)
        except ValueError as exc:
            raise Misuse(f"{model!r}: {exc}") from exc
        store = open_store(settings)
        servable, measured = _measure(store, ref, source, data, threads, output)
        if output is not None:
            _write(output, measured.baseline.to_json())
            published = None
        else:
            published = _publish(store, settings, servable, measured)
    emit(
        as_json,
        _plain(servable, measured, published, output),
        lambda: _report(servable, measured, published, output, settings, store),
    )


def _measure(
    store: Store, ref: ModelRef, source: Path, data: str | None, threads: int, output: Path | None
) -> tuple[Servable, Measured]:
    from app.engine.inference import Inference
    from app.optimize.baseline import find_inputs, measure
    from app.registry.serving.lifecycle import Registry

    registry = Registry(store, threads=threads)
    resolved = registry.open(ref)
    servable = resolved.servable
    _check_target(store, servable, output)
    inputs = find_inputs(servable, source)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{servable.name}@{servable.version}", total=len(inputs))
        named = data if data is not None else source.resolve().name
        return servable, measure(Inference(registry), resolved, inputs, named, partial(progress.advance, task))


def _check_target(store: Store, servable: Servable, output: Path | None) -> None:
    """Before an hour of work: whether its result can be kept."""
    from app.optimize.baseline import next_patch
    from app.registry.storing.staging import Staging

    if output is None:
        next_patch(store, servable.name, servable.version)
        Staging(store.root).discard()
    elif output.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise Conflict(f"{output}: cannot be written there; name another file with --output")


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    try:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as staging:
            Path(staging, path.name).write_bytes(data)
            os.replace(Path(staging, path.name), path)
    except OSError as exc:
        raise Conflict(f"{path}: cannot be written ({exc.strerror}); name another file with --output") from exc


def _publish(store: Store, settings: Settings, servable: Servable, measured: Measured) -> Published:
    from app.optimize.baseline import find_carrier, next_patch, write_carrier
    from app.registry.storing.intake import Intake, Published, is_verified

    intake = Intake(store, bin_days=settings.bin_days)
    intake.sweep(time.time())
    manifest = servable.manifest
    carrier = find_carrier(store, manifest, measured.baseline)
    if carrier is not None:
        return Published(manifest.name, carrier, False, is_verified(manifest))
    version = next_patch(store, manifest.name, manifest.version)
    write = partial(write_carrier, source=servable.directory, manifest=manifest, baseline=measured.baseline)
    return intake.publish(intake.build(manifest.name, version, write))


def _plain(servable: Servable, measured: Measured, published: Published | None, output: Path | None) -> dict[str, Any]:
    return {
        "model": servable.name,
        "of": servable.version,
        "version": published.version if published is not None else None,
        "new": published.is_new if published is not None else None,
        "verified": published.is_verified if published is not None else None,
        "file": str(output) if output is not None else None,
        "columns": measured.columns,
        "skipped": list(measured.skipped),
        "baseline": measured.baseline.to_dict(),
    }


def _report(
    servable: Servable,
    measured: Measured,
    published: Published | None,
    output: Path | None,
    settings: Settings,
    store: Store,
) -> Group:
    taken = measured.baseline
    label = f"{servable.name}@{servable.version}"
    table = Table(
        title=f"{label} on {taken.n} inputs ({escape(taken.data)})",
        title_justify="left", box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for column in ("", "10 %", "median", "90 %", "missing"):
        table.add_column(column, justify="right" if column else "left")
    answers = {"confidence": taken.confidence, "entropy": taken.entropy, "value": taken.value}
    for name, bins in [*taken.features.items(), *answers.items()]:
        if bins is None:
            continue
        deciles = ("-" if value is None else f"{value:.4g}" for value in (_decile(bins, k) for k in (1, 5, 9)))
        table.add_row(escape(name), *deciles, f"{bins.missing_share:.1%}")
    parts: list[Table | Text] = [table, Text()]
    if taken.classes is not None and servable.classification is not None:
        parts.append(Text(_classes(taken.classes, servable.classification.labels)))
    if measured.columns > len(taken.features):
        kept = len(taken.features)
        parts.append(Text(f"the data has {measured.columns} features; the first {kept} are in the baseline"))
    if measured.skipped:
        parts.append(Text(f"{len(measured.skipped)} inputs were left out; the first: {measured.skipped[0]}"))
    parts.append(Text(f"written to {output}" if published is None else _sentence(label, published, settings, store)))
    return Group(*parts)


def _decile(bins: Bins, k: int) -> float | None:
    """The k-th decile of what was measured, which is an edge; None where all is missing or it is infinite."""
    below, rank = 0, -(-k * sum(bins.counts) // 10)
    for edge, count in zip(bins.edges, bins.counts, strict=False):
        below += count
        if below >= rank:
            return edge
    return None


def _classes(classes: ClassBins, labels: Sequence[str]) -> str:
    found = list(zip(classes.classes, classes.shares, strict=False))[:_SHOWN]
    shares = [f"{labels[index]} {share:.0%}" for index, share in found]
    rest = sum(classes.counts) - sum(classes.counts[: len(found)])
    return f"most frequent classes: {', '.join(shares) or 'none'}" + (f"; {rest} inputs of others" if rest else "")


def _sentence(of: str, published: Published, settings: Settings, store: Store) -> str:
    label = f"{published.name}@{published.version}"
    if not published.is_new:
        return f"{label} carries this very baseline already; nothing was added to {settings.models}"
    lines = [f"added {label} to {settings.models}: {of} with this baseline, the model and its files unchanged"]
    if not published.is_verified:
        lines.append("it is unverified, as the version before: it has no golden requests")
    if store.release_path(published.name).exists():
        unverified = "" if published.is_verified else " --unverified"
        lines.append(f"no traffic goes to it yet: headway release promote {label}{unverified}")
    else:
        lines.append("the model has no release.yaml: of its versions the newest serves from the next start on")
    return "\n".join(lines)
