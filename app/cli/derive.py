"""What commands share that make a version from another: its number, progress, publishing, the report."""

from __future__ import annotations

import errno
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app.cli.console import Misuse, err
from app.cli.draft_options import parse_version
from app.errors import Conflict, InvalidContent
from app.registry.store import Store
from app.registry.storing.archive import NO_LIMITS
from app.registry.versions import ModelRef
from app.settings import Settings

if TYPE_CHECKING:
    from app.optimize.before_after import BeforeAfter
    from app.registry.servables.servable import Servable
    from app.registry.storing.intake import Published

EvaluationOption = Annotated[
    Path | None,
    typer.Option("--evaluation", metavar="DIR", help="Labelled images; a CSV or .npz file of rows with class_index."),
]
MaxDropOption = Annotated[
    float, typer.Option("--max-drop", min=0, help="Points of top-1 that may be lost on --evaluation.")
]
VersionOption = Annotated[
    str | None, typer.Option("--version", help="Of the new version. [default: the next minor one]")
]


def open_parent(store: Store, model: str) -> Servable:
    """Raises InvalidContent, ModelNotFound, RegistryError."""
    from app.registry.servables.opening import Opener

    try:
        ref = ModelRef.parse(model)
    except ValueError as exc:
        raise Misuse(f"{model!r}: {exc}") from exc
    return Opener(store).open(ref).servable


def require(extra: str, *packages: str) -> None:
    """Before minutes of work. Raises InvalidContent, with what to install, where a package cannot be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as exc:
            raise InvalidContent(f"this needs the package {package} ({exc}): pip install 'headway[{extra}]'") from exc


def check_place(store: Store) -> None:
    """Before minutes of work: whether its result can be kept. Raises RegistryReadOnly, RegistryFull."""
    from app.registry.storing.staging import Staging

    Staging(store.root).discard()


def free_version(store: Store, parent: Servable, version: str | None) -> str:
    """Before minutes of work: whether the result can be kept, and under which number."""
    from app.optimize.derived import next_minor

    check_place(store)
    if version is None:
        return next_minor(store, parent.name, parent.version)
    number = parse_version(version)
    if number in {other.text for other in store.version_names(parent.name)}:
        raise Conflict(f"{parent.name}@{number} is there already; a published version never changes: name another")
    return number


@contextmanager
def workplace(parent: Servable, number: str) -> Iterator[Path]:
    """A directory `…/<name>/<number>` to make the version in; it goes in the end."""
    with temporary_directory() as folder:
        yield folder / parent.name / number


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Goes in the end. Raises Conflict where it, or another of the same place, is out of space."""
    try:
        with tempfile.TemporaryDirectory(prefix="headway-") as folder:
            yield Path(folder)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Conflict(
            f"{tempfile.gettempdir()}: has no space left ({exc.strerror}); free some, or name another place with TMPDIR"
        ) from exc


@contextmanager
def stdout_kept() -> Iterator[None]:
    """What a network's own code prints goes to stderr: stdout is for the command's answer."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """On stderr, and only of a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as bars:
        yield lambda name, total: partial(bars.advance, bars.add_task(name, total=total))


def publish(store: Store, settings: Settings, directory: Path) -> Published:
    """Through the door that every version comes in by."""
    from app.registry.storing.intake import Intake

    intake = Intake(store, bin_days=settings.bin_days)
    intake.sweep(time.time())
    return intake.publish(intake.copy_in(directory, NO_LIMITS))


def describe_version(parent: Servable, published: Published | None, number: str, same_as: str | None) -> dict[str, Any]:
    """The keys for JSON that these commands begin with. `published` is None where the file was there, as `same_as`."""
    return {
        "model": parent.name,
        "of": parent.version,
        "version": same_as or number,
        "new": published is not None and published.is_new,
        "verified": published.is_verified if published is not None else parent.manifest.golden is not None,
    }


def same_file_text(parent: Servable, same_as: str | None) -> Text:
    return Text(f"{parent.name}@{same_as} is this very file already; nothing was added")


def describe_measured(measured: BeforeAfter) -> dict[str, Any]:
    """For JSON."""
    ratios = {"times_smaller": round(measured.times_smaller, 3), "times_faster": round(measured.times_faster, 3)}
    return asdict(measured) | {"lost_points": measured.lost_points} | ratios


def before_after_table(parent: Servable, number: str, how: str, measured: BeforeAfter) -> Table:
    table = Table(
        title=f"{parent.name}@{number}: {escape(how)}; on {measured.n} inputs ({escape(measured.data)})",
        title_justify="left", box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for column in ("", parent.version, number, ""):
        table.add_column(column, justify="right" if column else "left")
    for row in measured.rows():
        table.add_row(*row)
    return table


def closing_lines(
    parent: Servable, published: Published, measured: BeforeAfter, settings: Settings, store: Store
) -> list[Text]:
    """What was left out, what is not known, where the version is, and what to do next."""
    label = f"{published.name}@{published.version}"
    lines = []
    if measured.skipped:
        lines.append(f"{len(measured.skipped)} inputs were left out; the first: {measured.skipped[0]}")
    if measured.lost_points is None and parent.classification is not None:
        lines.append("what it costs in accuracy is not known: say --evaluation with labelled data")
    if parent.manifest.baseline is not None:
        lines.append(f"the parent's baseline counts its own answers: headway baseline {label} DIR measures a new one")
    lines.append(f"added {label} to {settings.models}")
    if not published.is_verified:
        lines.append("it is unverified, as its parent: without golden requests nothing holds it to its answers")
    if store.release_path(published.name).exists():
        lines.append(f"no traffic goes to it yet: headway release canary {label} --weight 5")
    else:
        lines.append("the model has no release.yaml: of its versions the newest serves from the next start on")
    return [Text(line) for line in lines]
