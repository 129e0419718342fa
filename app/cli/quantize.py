"""`headway quantize`: a version in 8, 16 or 4 bits beside its float parent, with what it gained and lost."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.text import Text

from app.cli.console import JsonOption, Misuse, ModelsOption, emit, failing_cleanly, open_store, read_settings
from app.cli.derive import (
    EvaluationOption,
    MaxDropOption,
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
    workplace,
)
from app.registry.store import Store
from app.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

    from app.optimize.examples import Examples
    from app.optimize.networks.fine_tune import Recipe
    from app.optimize.quantization.method import Method
    from app.optimize.quantization.version import Outcome
    from app.registry.servables.servable import Servable
    from app.registry.storing.intake import Published

_SHOWN = 5
_EPOCHS, _LEARNING_RATE = 5, 1e-4


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
    fine_tune: Annotated[
        Path | None, typer.Option("--fine-tune", metavar="DIR", help="Of qat: what is learnt from; as --evaluation.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of qat. [default: 5]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", min=0, help="Of qat, at the start. [default: 0.0001]")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", min=0, help="Of qat: weight of the labels; 0: none are needed. [default: 1]"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Which inputs are taken, and in which order.")
    ] = 0,
    version: VersionOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """A smaller, faster version of an ONNX or TFLite model, measured beside its parent; refused where it loses much."""
    settings = read_settings(models=models)
    with failing_cleanly():
        _check_flags(to, scheme, auto=auto, evaluation=evaluation)
        given = _Training(fine_tune, epochs, learning_rate, alpha)
        _check_training(scheme, given)
        from app.optimize.examples import find_examples, find_labelled
        from app.optimize.quantization.method import Method
        from app.optimize.quantization.version import Wishes, quantize_version

        store = open_store(settings)
        parent = open_parent(store, model)
        runtime: Literal["onnx", "tflite"] = "tflite" if parent.manifest.runtime == "tflite" else "onnx"
        _check_runtime(runtime, scheme, full_range=full_range)
        number = free_version(store, parent, version)
        labelled = find_labelled(parent, evaluation) if evaluation is not None else None
        training = given.examples(parent) if scheme == "qat" else None
        inputs = find_examples(parent, calibration) if calibration is not None else training or labelled
        if inputs is None or (calibration is None and to == "int8" and scheme not in ("dynamic", "qat")):
            raise Misuse("say --calibration: inputs that the ranges of activations, or the noise, are measured on")
        method = Method(to, scheme or "static", runtime == "onnx" and not full_range, tuple(keep_float or ()), runtime)
        rest = ["--calibration-size", str(size), "--seed", str(seed), *(["--auto"] if auto else [])]
        command = _command(parent, method, calibration, evaluation, *(given.words() if training else ()), *rest)
        recipe = given.recipe(seed) if training is not None else None
        wishes = Wishes(method, inputs, labelled, size, seed, max_drop, auto, command, training, recipe)
        with workplace(parent, number) as directory, progress_bars() as progress:
            outcome = quantize_version(store, parent, directory, wishes, progress)
            published = publish(store, settings, directory) if outcome.same_as is None else None
        emit(
            as_json,
            _plain(parent, outcome, published, number),
            lambda: _report(parent, outcome, published, number, settings, store),
        )


@dataclass(frozen=True, slots=True)
class _Training:
    """What --scheme qat was given; None is not given."""

    fine_tune: Path | None
    epochs: int | None
    learning_rate: float | None
    alpha: float | None

    def examples(self, parent: Servable) -> Examples:
        from app.optimize.examples import find_examples, find_labelled

        assert self.fine_tune is not None
        return find_examples(parent, self.fine_tune) if self.alpha == 0 else find_labelled(parent, self.fine_tune)

    def recipe(self, seed: int) -> Recipe:
        from app.optimize.networks.fine_tune import Recipe

        epochs, rate, alpha = self._chosen()
        return Recipe(epochs=epochs, learning_rate=rate, alpha=alpha, seed=seed)

    def words(self) -> list[str]:
        assert self.fine_tune is not None
        epochs, rate, alpha = self._chosen()
        words = ["--fine-tune", self.fine_tune.resolve().name, "--epochs", str(epochs)]
        return [*words, "--learning-rate", f"{rate:g}", "--alpha", f"{alpha:g}"]

    def _chosen(self) -> tuple[int, float, float]:
        return (
            _EPOCHS if self.epochs is None else self.epochs,
            _LEARNING_RATE if self.learning_rate is None else self.learning_rate,
            1.0 if self.alpha is None else self.alpha,
        )


def _check_flags(to: str, scheme: str | None, *, auto: bool, evaluation: Path | None) -> None:
    if to != "int8" and scheme is not None:
        raise Misuse(f"--scheme is for --to int8; of {to} only the weights are quantised")
    if auto and evaluation is None:
        raise Misuse("--auto goes by the accuracy that is lost: say --evaluation")


def _check_training(scheme: str | None, given: _Training) -> None:
    if scheme != "qat":
        if given != _Training(None, None, None, None):
            raise Misuse("--fine-tune, --epochs, --learning-rate and --alpha are for --scheme qat")
    elif given.fine_tune is None:
        raise Misuse(
            "--scheme qat trains the network with its rounding in the loop: say --fine-tune, labelled inputs to learn "
            "from, or any inputs with --alpha 0"
        )


def _check_runtime(runtime: str, scheme: str | None, *, full_range: bool) -> None:
    if runtime == "tflite":
        if scheme == "qat":
            raise Misuse(
                "--scheme qat trains ONNX networks: quantise the ONNX version that this TFLite file was converted from"
            )
        if full_range:
            raise Misuse("--full-range is for ONNX: of TFLite files int8 weights have 8 bits, on every CPU")
        return
    require("optimize", "onnx")
    if scheme == "qat":
        require("training", "torch")


def _command(parent: Servable, method: Method, calibration: Path | None, evaluation: Path | None, *rest: str) -> str:
    """What makes such a version again, for its card. Folders are named without where they lie on this machine."""
    words = ["headway", "quantize", f"{parent.name}@{parent.version}", "--to", method.to]
    words += ["--scheme", method.scheme] if method.to == "int8" else []
    for flag, path in (("--calibration", calibration), ("--evaluation", evaluation)):
        words += [flag, path.resolve().name] if path is not None else []
    for name in method.keep_float:
        words += ["--keep-float", name]
    is_full = method.runtime == "onnx" and not method.reduce_range
    return shlex.join([*words, *(["--full-range"] if is_full else []), *rest])


def _plain(parent: Servable, outcome: Outcome, published: Published | None, number: str) -> dict[str, Any]:
    measured = outcome.measured
    return describe_version(parent, published, number, outcome.same_as) | {
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
        return Group(same_file_text(parent, outcome.same_as))
    parts: list[Table | Text] = [before_after_table(parent, number, str(outcome.method), measured), Text()]
    noisy = sorted((one.sqnr_db, one.name) for one in outcome.errors if one.sqnr_db is not None)[:_SHOWN]
    parts.append(Text("noisiest layers: " + ", ".join(f"{name} {decibels:.1f} dB" for decibels, name in noisy)))
    if outcome.proposal:
        parts.append(Text(f"to leave in float first: {' '.join(outcome.proposal)}"))
    return Group(*parts, *closing_lines(parent, published, measured, settings, store))
