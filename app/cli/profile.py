"""`headway profile`: what a version costs on this machine, kept beside it; and the matrix of all that was kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from app.cli.console import (
    JsonOption,
    Misuse,
    ModelsOption,
    emit,
    failing_cleanly,
    model_not_found,
    open_store,
    read_settings,
)
from app.errors import InvalidContent, RegistryReadOnly
from app.registry.versions import ModelRef, Version

if TYPE_CHECKING:
    from app.optimize.profiling.matrix import Matrix
    from app.optimize.profiling.records import Profile, RuntimeName
    from app.optimize.profiling.stack import Opened
    from app.registry.servables.servable import Servable
    from app.registry.store import Store

_Labelled = list[tuple[str, "Profile"]]


class _ModelFirst(TyperGroup):
    """`headway profile MODEL` is `headway profile measure MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["measure", *args]
        return super().parse_args(ctx, args)


cli = typer.Typer(cls=_ModelFirst, help="What a version costs on this machine, kept beside it.", no_args_is_help=True)

DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Labelled images; a CSV or .npz file of rows with class_index."),
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, max=1024, help="Threads of the runtime.")]


@cli.command("measure")
def measure(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias")],
    data: DataOption = None,
    threads: ThreadsOption = 1,
    runtime: Annotated[
        Literal["onnx", "tflite", "openvino"] | None,
        typer.Option("--runtime", help="What runs it. [default: the version's own]"),
    ] = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Latency, rows/s, accuracy, memory, FLOPs and parameters here; the same as headway profile MODEL."""
    settings = read_settings(models=models)
    with failing_cleanly():
        from app.optimize.profiling.stack import runtimes_of

        store = open_store(settings)
        found = _open(store, model)
        wanted = runtime or runtimes_of(found.manifest)[0]
        ((label, profile),), refusal = _measure(store, [(found, wanted)], threads, data)
        plain = {
            "model": found.name,
            "version": found.version,
            "kept": refusal is None,
            **profile.model_dump(mode="json"),
        }
        emit(as_json, plain, lambda: _report(label, profile, refusal))


@cli.command("matrix")
def matrix(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]…", help="names or versions for one matrix. [default: one each]"),
    ] = None,
    runtimes: Annotated[
        str | None,
        typer.Option("--runtimes", metavar="A,B", help="Measure first: onnx, tflite, openvino; all in one run."),
    ] = None,
    data: DataOption = None,
    threads: ThreadsOption = 1,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """P(h, s): what was kept, hardware by software; its means, and the fastest stack."""
    settings = read_settings(models=models)
    with failing_cleanly():
        from app.optimize.profiling.matrix import make_matrix

        store = open_store(settings)
        refusal: str | None = None
        new: _Labelled = []
        if runtimes is not None:
            pairs = _pairs(store, names or [], runtimes)
            new, refusal = _measure(store, pairs, threads, data)
        elif data is not None:
            raise Misuse("--data goes with --runtimes: nothing is measured without")
        groups = [names] if names else [[name] for name in store.model_names()]
        kept = [[one for name in group for one in _kept(store, name)] for group in groups]
        found = [make_matrix([*profiles, *new], threads) for profiles in kept]
        shown = [one for one in found if one.cells]
        if not shown:
            raise InvalidContent(f"nothing was kept for {threads} thread(s); headway profile MODEL measures a version")
        note = [Text(f"not kept: {refusal}")] if refusal is not None else []
        emit(
            as_json,
            {"kept": refusal is None, "matrices": [one.describe() for one in shown]},
            lambda: Group(*(part for one in shown for part in _draw(one)), *note),
        )


def _open(store: Store, model: str) -> Servable:
    from app.registry.servables.opening import Opener

    return Opener(store).open(_parse(model)).servable


def _parse(model: str) -> ModelRef:
    try:
        return ModelRef.parse(model)
    except ValueError as exc:
        raise Misuse(f"{model!r}: {exc}") from exc


def _pairs(store: Store, names: Sequence[str], runtimes: str) -> list[tuple[Servable, RuntimeName]]:
    """Each named version with those of `runtimes` that read its file."""
    from app.optimize.profiling.records import RUNTIME_TITLES
    from app.optimize.profiling.stack import runtimes_of

    wanted = list(dict.fromkeys(name.strip() for name in runtimes.split(",")))
    for name in wanted:
        if name not in RUNTIME_TITLES:
            raise Misuse(f"--runtimes: there is no {name!r}; known are {', '.join(RUNTIME_TITLES)}")
    if not names:
        raise Misuse("--runtimes measures: name the models")
    found = [_open(store, name) for name in names]
    pairs = [(one, name) for one in found for name in runtimes_of(one.manifest) if name in wanted]
    for name in wanted:
        if name not in {runtime for _, runtime in pairs}:
            raise InvalidContent(
                f"--runtimes {name}: reads no file of {', '.join(names)}; name a version that it reads"
            )
    return pairs


def _measure(
    store: Store, pairs: Sequence[tuple[Servable, RuntimeName]], threads: int, data: Path | None
) -> tuple[_Labelled, str | None]:
    """The new profiles, and why they were not kept where the registry is read-only."""
    from app.cli.derive import progress_bars
    from app.optimize.profiling.measure import measure
    from app.optimize.profiling.records import keep_profiles, read_profiles
    from app.optimize.profiling.stack import open_with

    opened: list[Opened] = []
    for servable, runtime in pairs:
        read_profiles(servable.directory)  # what is damaged is told before minutes of work
        opened.append(open_with(store, servable.directory, runtime, threads))
    with progress_bars() as progress:
        profiles = measure(store, opened, threads, data, progress)
    refusal = None
    for one, profile in zip(opened, profiles, strict=True):
        try:
            keep_profiles(store, one.servable.name, one.servable.version, [profile])
        except RegistryReadOnly as exc:
            refusal = str(exc)
    return [(_label(one.servable), profile) for one, profile in zip(opened, profiles, strict=True)], refusal


def _kept(store: Store, model: str) -> _Labelled:
    """Of one version, or of all versions of a name without a tag."""
    from app.optimize.profiling.records import read_profiles

    ref = _parse(model)
    if ref.name not in store.model_names():
        raise model_not_found(store, ref.name)
    versions = store.version_names(ref.name) if ref.tag is None else [Version.parse(_open(store, model).version)]
    labelled = []
    for version in versions:
        profiles = read_profiles(store.root / ref.name / version.text)
        labelled += [(f"{ref.name}@{version}", profile) for profile in profiles]
    return labelled


def _label(servable: Servable) -> str:
    return f"{servable.name}@{servable.version}"


def _report(label: str, profile: Profile, refusal: str | None) -> Group:
    title = f"{label} with {profile.stack}, {profile.threads} thread(s), on {profile.hardware}"
    table = Table(title=escape(title), title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for label_text, text in _lines(profile):
        table.add_row(label_text, escape(text))
    kept = "kept in profiles.json of the version" if refusal is None else f"not kept: {refusal}"
    return Group(table, Text(kept))


def _lines(profile: Profile) -> list[tuple[str, str]]:
    from app.optimize.compare import format_bytes

    accuracy, memory, batch = profile.accuracy, profile.memory, profile.throughput.batch_size
    lines = [
        (title, f"p50 {found.p50:.3f} ms, p95 {found.p95:.3f} ms, p99 {found.p99:.3f} ms")
        for title, found in (("one row, model alone", profile.run_ms), ("one row, with processing", profile.whole_ms))
    ]
    lines.append(("  CPU time", f"{profile.run_cpu_ms:.3f} ms in the mean, model alone, of all threads"))
    lines.append(("throughput", f"{profile.throughput.rows_per_second:,.1f} rows/s, {batch} a run, model alone"))
    if accuracy is not None:
        source = "" if accuracy.is_measured else "; not measured now: the version's own evaluation says so"
        lines.append(("top-1 accuracy", f"{accuracy.top1:.1%} of {accuracy.n} ({accuracy.data}){source}"))
    if memory is not None:
        adds = f"{format_bytes(memory.peak_rss_bytes)} at most, {format_bytes(memory.rss_bytes)} in the end"
        lines.append(("memory that loading adds", adds))
    if profile.flops is not None:
        lines.append(("FLOPs of a row", f"{profile.flops:,} (twice the multiply-adds of convolutions and products)"))
    if profile.parameters is not None:
        lines.append(("parameters", f"{profile.parameters:,}"))
    if profile.golden is not None:
        lines.append(("golden requests", profile.golden or "as recorded"))
    lines += [(f"{what}: not known" if what != "skipped" else what, why) for what, why in profile.unknown.items()]
    return [*lines, ("timed with", profile.inputs)]


_TITLES = {
    "latency_ms": ("latency of one row, model alone, p50, ms", "{:.3f}"),
    "cpu_ms": ("CPU time of one row, model alone, mean, ms", "{:.3f}"),
    "rows_per_second": ("throughput, model alone, rows/s", "{:,.0f}"),
    "top1": ("top-1 accuracy", "{:.1%}"),
    "peak_memory_mb": ("memory that loading adds at most, MB", "{:.1f}"),
}


def _draw(found: Matrix) -> list[Table | Text]:
    parts: list[Table | Text] = []
    for figure, (title, form) in _TITLES.items():
        parts += [_figure_table(found, figure, f"{title}; {found.threads} thread(s)", form), Text()]
    for row in found.hardware:
        fastest = found.fastest_on(row)
        if fastest is not None:
            parts.append(Text(f"fastest on {row}: {fastest}"))
    if len(found.hardware) > 1 and len(found.stacks) > 1:
        overall = found.fastest
        said = overall or "cannot be told: no hardware has figures of all stacks"
        parts.append(Text(f"fastest in the mean over hardware: {said}"))
    return [*parts, Text()]


def _figure_table(found: Matrix, figure: str, title: str, form: str) -> Table:
    from app.optimize.profiling.matrix import mean

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for column in found.stacks:
        table.add_column(f"{column.version}\n{column.stack}", justify="right")
    table.add_column("mean", justify="right")
    values = found.values(figure)

    def shown(value: float | None) -> str:
        return form.format(value) if value is not None else "-"

    for hardware, row in zip(found.hardware, values, strict=True):
        table.add_row(escape(str(hardware)), *map(shown, [*row, mean(row)]))
    means = [mean(column) for column in zip(*values, strict=True)]
    table.add_row("mean", *map(shown, [*means, mean([value for row in values for value in row])]))
    return table
