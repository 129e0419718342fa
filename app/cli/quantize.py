"""`headway quantize`: a version in 8, 16 or 4 bits beside its float parent, with what it gained and lost."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app.cli.console import JsonOption, ModelsOption, emit, err, failing_cleanly, open_store, read_settings
from app.errors import Conflict, InvalidContent
from app.registry.archive import Limits
from app.registry.store import Store
from app.registry.versions import ModelRef, Version
from app.settings import Settings

if TYPE_CHECKING:
    from app.optimize.quantize import Method
    from app.optimize.quantize_version import Outcome, Wishes
    from app.registry.intake import Published
    from app.registry.servable import Servable

# The directory is our own: the disk is limit enough.
_NO_LIMITS = Limits(max_bytes=1 << 62, max_files=1_000_000)
_SHOWN = 5


def quantize(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias of a float version")],
    to: Annotated[Literal["int8", "fp16", "int4"], typer.Option("--to", help="Numbers of the weights.")] = "int8",
    scheme: Annotated[
        Literal["static", "dynamic", "qat"] | None,
        typer.Option("--scheme", help="Of int8: where the ranges of activations come from. [default: static]"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="DIR", help="Inputs: a folder of images; a CSV, .npy or .npz file."),
    ] = None,
    size: Annotated[int, typer.Option("--calibration-size", min=1, help="How many of them are taken.")] = 200,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation", metavar="DIR", help="Labelled images; a CSV or .npz file of rows with class_index."
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, help="Points of top-1 that may be lost on --evaluation.")
    ] = 1.0,
    keep_float: Annotated[
        list[str] | None, typer.Option("--keep-float", metavar="LAYER", help="A layer to leave as it is; repeatable.")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Leave the noisiest layers in float until --max-drop holds.")
    ] = False,
    full_range: Annotated[
        bool, typer.Option("--full-range", help="int8 weights in 8 bits, not 7: answers differ on x86 without VNNI.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which calibration inputs are taken.")] = 0,
    version: Annotated[
        str | None, typer.Option("--version", help="Of the new version. [default: the next minor one]")
    ] = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """A smaller, faster version of an ONNX model, measured beside its parent; refused where it loses too much."""
    settings = read_settings(models=models)
    with failing_cleanly():
        _check_flags(to, scheme, auto=auto, evaluation=evaluation)
        _require_onnx()
        from app.optimize.examples import find_examples, find_labelled
        from app.optimize.quantize import Method
        from app.optimize.quantize_version import Wishes, quantize_version

        store = open_store(settings)
        parent = _open(store, model)
        number = _free_version(store, parent, version)
        labelled = find_labelled(parent, evaluation) if evaluation is not None else None
        inputs = find_examples(parent, calibration) if calibration is not None else labelled
        if inputs is None or (calibration is None and to == "int8" and scheme != "dynamic"):
            raise InvalidContent(
                "say --calibration: inputs that the ranges of activations, or the noise, are measured on"
            )
        method = Method(to, scheme or "static", not full_range, tuple(keep_float or ()))  # type: ignore[arg-type]
        rest = ["--calibration-size", str(size), "--seed", str(seed), *(["--auto"] if auto else [])]
        command = _command(parent, method, calibration, evaluation, *rest)
        wishes = Wishes(method, inputs, labelled, size, seed, max_drop, auto, command)
        with tempfile.TemporaryDirectory(prefix="headway-quantize-") as folder, _progress() as progress:
            directory = Path(folder, parent.name, number)
            outcome = quantize_version(store, parent, directory, wishes, progress)
            published = _publish(store, settings, directory, outcome)
        emit(
            as_json,
            _plain(parent, outcome, published, number),
            lambda: _report(parent, wishes, outcome, published, number, settings, store),
        )


def _check_flags(to: str, scheme: str | None, *, auto: bool, evaluation: Path | None) -> None:
    if scheme == "qat":
        raise InvalidContent(
            "--scheme qat trains the network with its rounding in the loop, which takes the torch program; an ONNX "
            "file has none. Train it there (torchao, or torch.ao.quantization), export it with its QuantizeLinear and "
            "DequantizeLinear, and add that file with headway models add; or say --scheme static"
        )
    if to != "int8" and scheme is not None:
        raise InvalidContent(f"--scheme is for --to int8; of {to} only the weights are quantised")
    if auto and evaluation is None:
        raise InvalidContent("--auto goes by the accuracy that is lost: say --evaluation")


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as exc:
        raise InvalidContent(f"quantize needs the package onnx ({exc}): pip install 'headway[optimize]'") from exc


def _open(store: Store, model: str) -> Servable:
    from app.registry.opening import Opener

    try:
        ref = ModelRef.parse(model)
    except ValueError as exc:
        raise InvalidContent(f"{model!r}: {exc}") from exc
    return Opener(store).open(ref).servable


def _free_version(store: Store, parent: Servable, version: str | None) -> str:
    """Before minutes of work: whether the result can be kept, and under which number."""
    from app.optimize.derived import next_minor
    from app.registry.staging import Staging

    Staging(store.root).discard()
    if version is None:
        return next_minor(store, parent.name, parent.version)
    try:
        number = Version.parse(version).text
    except ValueError as exc:
        raise InvalidContent(f"--version {exc}") from exc
    if number in {other.text for other in store.version_names(parent.name)}:
        raise Conflict(f"{parent.name}@{number} is there already; a published version never changes: name another")
    return number


def _command(parent: Servable, method: Method, calibration: Path | None, evaluation: Path | None, *rest: str) -> str:
    """What makes such a version again, for its card. Folders are named without where they lie on this machine."""
    words = ["headway", "quantize", f"{parent.name}@{parent.version}", "--to", method.to]
    words += ["--scheme", method.scheme] if method.to == "int8" else []
    for flag, path in (("--calibration", calibration), ("--evaluation", evaluation)):
        words += [flag, path.resolve().name] if path is not None else []
    for name in method.keep_float:
        words += ["--keep-float", name]
    return shlex.join([*words, *(() if method.reduce_range else ("--full-range",)), *rest])


@contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as bars:
        yield lambda name, total: partial(bars.advance, bars.add_task(name, total=total))


def _publish(store: Store, settings: Settings, directory: Path, outcome: Outcome) -> Published | None:
    from app.registry.intake import Intake

    if outcome.same_as is not None:
        return None
    intake = Intake(store, bin_days=settings.bin_days)
    intake.sweep(time.time())
    return intake.publish(intake.copy_in(directory, _NO_LIMITS))


def _plain(parent: Servable, outcome: Outcome, published: Published | None, number: str) -> dict[str, Any]:
    measured = outcome.measured
    return {
        "model": parent.name,
        "of": parent.version,
        "version": outcome.same_as or number,
        "new": published is not None and published.is_new,
        "verified": published.is_verified if published is not None else parent.manifest.golden is not None,
        "method": asdict(outcome.method) | {"text": str(outcome.method)},
        "calibrated_on": outcome.calibrated_on,
        "sha256": outcome.sha256,
        "measured": asdict(measured)
        | {
            "lost_points": measured.lost_points,
            "times_smaller": round(measured.times_smaller, 3),
            "times_faster": round(measured.times_faster, 3),
        }
        if measured is not None
        else None,
        "layers": [asdict(error) for error in outcome.errors],
        "proposal": list(outcome.proposal),
    }


def _report(
    parent: Servable,
    wishes: Wishes,
    outcome: Outcome,
    published: Published | None,
    number: str,
    settings: Settings,
    store: Store,
) -> Group:
    label = f"{parent.name}@{number}"
    measured = outcome.measured
    if published is None or measured is None:
        return Group(Text(f"{parent.name}@{outcome.same_as} is this very file already; nothing was added"))
    table = Table(
        title=f"{label}: {escape(str(outcome.method))}; on {measured.n} inputs ({escape(measured.data)})",
        title_justify="left", box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for column in ("", parent.version, number, ""):
        table.add_column(column, justify="right" if column else "left")
    for row in measured.rows():
        table.add_row(*row)
    parts: list[Table | Text] = [table, Text()]
    noisy = sorted((one.sqnr_db, one.name) for one in outcome.errors if one.sqnr_db is not None)[:_SHOWN]
    parts.append(Text("noisiest layers: " + ", ".join(f"{name} {decibels:.1f} dB" for decibels, name in noisy)))
    if outcome.proposal:
        parts.append(Text(f"to leave in float first: {' '.join(outcome.proposal)}"))
    if measured.skipped:
        parts.append(Text(f"{len(measured.skipped)} inputs were left out; the first: {measured.skipped[0]}"))
    if wishes.labelled is None:
        parts.append(Text("what it costs in accuracy is not known: say --evaluation with labelled data"))
    if parent.manifest.baseline is not None:
        parts.append(
            Text(f"the parent's baseline counts its own answers: headway baseline {label} DIR measures a new one")
        )
    parts.append(Text(_sentence(label, published, settings, store)))
    return Group(*parts)


def _sentence(label: str, published: Published, settings: Settings, store: Store) -> str:
    lines = [f"added {label} to {settings.models}"]
    if not published.is_verified:
        lines.append("it is unverified, as its parent: without golden requests nothing holds it to its answers")
    if store.release_path(published.name).exists():
        lines.append(f"no traffic goes to it yet: headway release canary {label} --weight 5")
    else:
        lines.append("the model has no release.yaml: of its versions the newest serves from the next start on")
    return "\n".join(lines)
