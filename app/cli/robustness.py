"""`headway robustness`: how many labels attacks and corruptions change, kept with the version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.console import JsonOption, Misuse, ModelsOption, emit, failing_cleanly, open_store, read_settings
from app.cli.derive import check_place, open_parent, progress_bars
from app.errors import Conflict, InvalidContent, RegistryError
from app.registry.robustness import ROBUSTNESS_FILE, find_unmet, keep_measurements, model_files, render_record
from app.registry.storing.locking import writing

if TYPE_CHECKING:
    from app.optimize.robustness.measure import Outcome
    from app.registry.servables.servable import Servable

# Of the float32 that attacks compute in.
_LARGEST_STRENGTH = 3.4e38


def robustness(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias of a classifier")],
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Labelled images; a CSV or .npz file of rows with class_index.")
    ],
    attacks: Annotated[
        str | None,
        typer.Option(
            "--attacks",
            metavar="A,B",
            help="Of fgsm, pgd, square, hopskipjump, corruptions, or single ones of these. [default: all that go]",
        ),
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option("--strengths", help="Of attacks: levels of 255 of photos [default: 1,2,4,8], units of numbers."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many samples are taken.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which samples, and of what attacks draw.")] = 0,
    queries: Annotated[
        int | None,
        typer.Option("--queries", min=1, help="Of black-box attacks, a sample. [default: photos 200, rows 2000]"),
    ] = None,
    gradients_from: Annotated[
        str | None,
        typer.Option("--gradients-from", metavar="MODEL@V", help="A float version whose gradients fgsm and pgd take."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="A directory for the figures and pictures.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep the figures in the version's directory, for its release.")
    ] = True,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Labels changed and accuracy left under FGSM, PGD, a black-box attack and common corruptions."""
    settings = read_settings(models=models)
    with failing_cleanly():
        numbers = _numbers(strengths)
        names = tuple(name.strip() for name in attacks.split(",")) if attacks is not None else None
        _check_output(output)
        from app.optimize.robustness.art import require_art

        if names is None or not {*names}.isdisjoint(("fgsm", "pgd", "square", "hopskipjump")):
            require_art()
        from app.optimize.examples import find_labelled
        from app.optimize.robustness.measure import Wishes, measure

        store = open_store(settings)
        servable = open_parent(store, model)
        keeps = keep and servable.manifest.composition is None
        if keeps:
            check_place(store)
        lender = open_parent(store, gradients_from) if gradients_from is not None else None
        wishes = Wishes(names, numbers, limit, seed, queries, lender)
        with progress_bars() as progress:
            outcome = measure(store, servable, find_labelled(servable, source), wishes, progress)
        if keeps:
            with writing(servable.directory):
                keep_measurements(store, servable.manifest, outcome.measurements)
        if output is not None:
            _write(output, servable, outcome)
        emit(as_json, _plain(servable, outcome, keeps), lambda: _report(servable, outcome, keeps, output))


def _numbers(strengths: str | None) -> tuple[float, ...] | None:
    if strengths is None:
        return None
    try:
        found = tuple(float(word) for word in strengths.split(","))
    except ValueError as exc:
        raise Misuse(f"--strengths {strengths!r}: write numbers with commas between them, as 1,2,4,8") from exc
    if not all(0 < number < _LARGEST_STRENGTH for number in found):
        raise Misuse(f"--strengths {strengths!r}: a strength is above 0, and a number that 32 bits can hold")
    return tuple(dict.fromkeys(found))


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    there = next(place for place in (output.absolute(), *output.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise Conflict(f"{output}: is no directory that can be written to; name another with --output")
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise InvalidContent(f"pictures need Matplotlib ({exc}): pip install 'headway[compare]'") from exc


def _write(output: Path, servable: Servable, outcome: Outcome) -> None:
    from app.optimize.robustness.pictures import draw_pictures

    record = render_record(model_files(servable.manifest), outcome.measurements)
    files = {ROBUSTNESS_FILE: record, **draw_pictures(f"{servable.name}@{servable.version}", outcome)}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (output / name).write_bytes(data)
    except OSError as exc:
        raise Conflict(f"{output}: cannot be written ({exc.strerror}); name another with --output") from exc


def _plain(servable: Servable, outcome: Outcome, keeps: bool) -> dict[str, Any]:
    return {
        "model": servable.name,
        "version": servable.version,
        "data": outcome.data,
        "n": outcome.n,
        "accuracy": outcome.accuracy,
        "unit": outcome.unit,
        "measurements": [one.model_dump(mode="json", exclude_none=True) for one in outcome.measurements],
        "skipped": list(outcome.skipped),
        "notes": list(outcome.notes),
        "kept": keeps,
        "unmet": _find_unmet(servable),
    }


def _find_unmet(servable: Servable) -> str | None:
    """Also of a record that is damaged: what was measured is told all the same."""
    try:
        return find_unmet(servable.directory, servable.manifest)
    except RegistryError as exc:
        return str(exc)


def _report(servable: Servable, outcome: Outcome, keeps: bool, output: Path | None) -> Group:
    label = f"{servable.name}@{servable.version}"
    table = Table(
        title=f"{label} on {outcome.n} samples ({escape(outcome.data)}), {outcome.accuracy:.1%} right",
        title_justify="left", box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for column in ("attack", "strength", "label changed", "still right"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for one in outcome.measurements:
        table.add_row(one.attack, f"{one.strength:g}", f"{one.changed:.1%}", f"{one.robust_accuracy:.1%}")
    lines = [*_list_ways(outcome), *outcome.notes]
    if outcome.skipped:
        lines.append(f"{len(outcome.skipped)} samples were left out; the first: {outcome.skipped[0]}")
    if keeps:
        lines.append(f"kept in {servable.directory / ROBUSTNESS_FILE}")
    elif servable.manifest.composition is not None:
        lines.append("not kept: what a composition answers changes with its steps")
    if output is not None:
        lines.append(f"figures and pictures are in {output}")
    unmet = _find_unmet(servable)
    if unmet is not None:
        lines.append(f"it may not be released: {unmet}")
    elif servable.manifest.min_robust_accuracy:
        lines.append("it meets its min_robust_accuracy")
    return Group(table, Text(), *map(Text, lines))


def _list_ways(outcome: Outcome) -> list[str]:
    """How the attacks went, those that went alike together."""
    attacks: dict[str, list[str]] = {}
    for one in outcome.measurements:
        way = one.how if one.gradients is None else f"{one.how}; gradients of {one.gradients}"
        attacks.setdefault(way, []).append(one.attack)
    return [f"{', '.join(dict.fromkeys(names))}: {way}" for way, names in attacks.items()]
