"""`headway quantize`: a version in 8, 16 or 4 bits beside its float parent, with what it gained and lost."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.text import Text

from app.cli.console import JsonOption, ModelsOption, emit, failing_cleanly, open_store, read_settings
from app.cli.derive import (
    EvaluationOption,
    MaxDropOption,
    VersionOption,
    before_after_table,
    closing_lines,
    describe_measured,
    free_version,
    open_parent,
    progress_bars,
    publish,
    workplace,
)
from app.errors import InvalidContent
from app.registry.store import Store
from app.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

    from app.optimize.quantize import Method
    from app.optimize.quantize_version import Outcome
    from app.registry.intake import Published
    from app.registry.servable import Servable

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
    evaluation: EvaluationOption = None,
    max_drop: MaxDropOption = 1.0,
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
    version: VersionOption = None,
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
        parent = open_parent(store, model)
        number = free_version(store, parent, version)
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
        with workplace(parent, number) as directory, progress_bars() as progress:
            outcome = quantize_version(store, parent, directory, wishes, progress)
            published = publish(store, settings, directory) if outcome.same_as is None else None
        emit(
            as_json,
            _plain(parent, outcome, published, number),
            lambda: _report(parent, outcome, published, number, settings, store),
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


def _command(parent: Servable, method: Method, calibration: Path | None, evaluation: Path | None, *rest: str) -> str:
    """What makes such a version again, for its card. Folders are named without where they lie on this machine."""
    words = ["headway", "quantize", f"{parent.name}@{parent.version}", "--to", method.to]
    words += ["--scheme", method.scheme] if method.to == "int8" else []
    for flag, path in (("--calibration", calibration), ("--evaluation", evaluation)):
        words += [flag, path.resolve().name] if path is not None else []
    for name in method.keep_float:
        words += ["--keep-float", name]
    return shlex.join([*words, *(() if method.reduce_range else ("--full-range",)), *rest])


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
        "measured": describe_measured(measured) if measured is not None else None,
        "layers": [asdict(error) for error in outcome.errors],
        "proposal": list(outcome.proposal),
    }


def _report(
    parent: Servable, outcome: Outcome, published: Published | None, number: str, settings: Settings, store: Store
) -> Group:
    measured = outcome.measured
    if published is None or measured is None:
        return Group(Text(f"{parent.name}@{outcome.same_as} is this very file already; nothing was added"))
    parts: list[Table | Text] = [before_after_table(parent, number, str(outcome.method), measured), Text()]
    noisy = sorted((one.sqnr_db, one.name) for one in outcome.errors if one.sqnr_db is not None)[:_SHOWN]
    parts.append(Text("noisiest layers: " + ", ".join(f"{name} {decibels:.1f} dB" for decibels, name in noisy)))
    if outcome.proposal:
        parts.append(Text(f"to leave in float first: {' '.join(outcome.proposal)}"))
    return Group(*parts, *closing_lines(parent, published, measured, settings, store))
