"""From a float version to a quantised one in a directory, measured beside it; refused where it loses too much."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from app.errors import InvalidContent
from app.optimize import derived
from app.optimize.before_after import BeforeAfter
from app.optimize.derived import Derivation, Progress
from app.optimize.examples import Examples, pick
from app.optimize.quantization.method import Method
from app.optimize.quantization.noise import LayerError, propose_float
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.tensors import Tensors

if TYPE_CHECKING:
    from app.optimize.networks.fine_tune import Recipe
    from app.optimize.quantization.training import Trained

# An answer in 8 bits may step by so much where another CPU rounds a sum the other way.
_TOLERANCE = {"int8": 0.05, "fp16": 0.01, "int4": 0.01}
_ERROR_INPUTS = 32
_SHOWN = 10
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Wishes:
    """`calibration` gives the ranges of activations and the noise of each layer; `size` of its inputs are taken, by
    `seed`. `labelled` is what accuracy is measured on: a version that loses more than `max_drop` points is refused.
    `auto`: leave more and more layers in float until it loses no more than that. `training` and `recipe` are for
    scheme qat: what is learnt from, and how."""

    method: Method
    calibration: Examples
    labelled: Examples | None = None
    size: int = 200
    seed: int = 0
    max_drop: float = 1.0
    auto: bool = False
    command: str = "headway quantize"
    training: Examples | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`directory` holds the new version, ready to be published; `same_as` is set instead where its file is there
    already, and then nothing was measured. `proposal`: layers that had better stay in float."""

    method: Method
    calibrated_on: int
    sha256: str
    errors: tuple[LayerError, ...]
    proposal: tuple[str, ...]
    same_as: str | None = None
    measured: BeforeAfter | None = None


def quantize_version(store: Store, parent: Servable, directory: Path, wishes: Wishes, progress: Progress) -> Outcome:
    """Fill `directory` (`…/<name>/<version>`, not there yet). Raises InvalidContent where there is nothing to quantise,
    or too much is lost; the message names the layers that hurt."""
    wishes = replace(wishes, method=replace(wishes.method, runtime=_check_runtime(parent)))
    rows = _Rows(wishes, progress)
    quantizer, trained = _open(parent, wishes, rows, progress)
    try:
        outcome = _attempt(store, parent, directory, quantizer, trained, rows, wishes, progress)
        candidates = _by_noise(outcome.errors)
        count = len(outcome.proposal)
        while wishes.auto and _is_lossy(outcome, wishes) and 0 < count <= len(candidates) // 2:
            kept = (*wishes.method.keep_float, *candidates[:count])
            retry = replace(wishes, method=replace(wishes.method, keep_float=kept))
            outcome = _attempt(store, parent, directory, quantizer, trained, rows, retry, progress)
            count *= 2
    finally:
        quantizer.close()
    if _is_lossy(outcome, wishes):
        raise InvalidContent(_refusal(outcome, wishes))
    return outcome


class _Rows:
    """The inputs that are calibrated with, read anew each time; what cannot be read is left out."""

    def __init__(self, wishes: Wishes, progress: Progress) -> None:
        self._examples = wishes.calibration
        self._numbers = pick(wishes.calibration.count, wishes.size, wishes.seed)
        self._progress = progress
        self.count = len(self._numbers)

    def __call__(self) -> Iterator[Tensors]:
        advance = self._progress("calibrating", len(self._numbers))
        taken = 0
        for tensors in self._read(self._numbers):
            taken += 1
            advance()
            yield tensors
        self.count = taken

    def first(self, count: int) -> Iterator[Tensors]:
        return self._read(self._numbers[:count])

    def _read(self, numbers: list[int]) -> Iterator[Tensors]:
        failed: list[str] = []
        for number in numbers:
            try:
                tensors = self._examples.read(number)
            except (InvalidContent, OSError) as exc:
                failed.append(f"{self._examples.where(number)}: {exc}")
            else:
                yield tensors
        if len(failed) == len(numbers):
            first = failed[0] if failed else "there are none"
            raise InvalidContent(f"{self._examples.data}: no input can be used to calibrate with; the first: {first}")


class _Quantizer(Protocol):
    """Of ONNX or of TFLite files."""

    def quantize(self, method: Method, name: str) -> bytes: ...

    def errors(self, method: Method, model: bytes, rows: Iterable[Tensors]) -> list[LayerError]: ...

    def close(self) -> None: ...


def _check_runtime(parent: Servable) -> Literal["onnx", "tflite"]:
    runtime = parent.manifest.runtime
    if runtime not in ("onnx", "tflite"):
        label = f"{parent.name}@{parent.version}"
        raise InvalidContent(f"{label} is a composition of other versions: quantise these, and name them in a new one")
    return "tflite" if runtime == "tflite" else "onnx"


def _open(parent: Servable, wishes: Wishes, rows: _Rows, progress: Progress) -> tuple[_Quantizer, Trained | None]:
    source = parent.directory / parent.manifest.model_file
    if wishes.method.runtime == "tflite":
        from app.optimize.quantization.tflite import TfliteQuantizer

        return TfliteQuantizer(source, rows), None
    from app.optimize.quantization.quantizer import Quantizer

    quantizer = Quantizer(source, rows)
    if wishes.method.scheme != "qat":
        return quantizer, None
    from app.optimize.quantization.training import Lesson, train

    quantizer.close()
    assert wishes.training is not None
    assert wishes.recipe is not None
    lesson = Lesson(wishes.training, wishes.calibration, wishes.size, wishes.recipe)
    trained = train(quantizer.float_model, parent.manifest.answer, wishes.method, lesson, progress)
    return Quantizer(trained.model, rows), trained


def _attempt(
    store: Store,
    parent: Servable,
    directory: Path,
    quantizer: _Quantizer,
    trained: Trained | None,
    rows: _Rows,
    wishes: Wishes,
    progress: Progress,
) -> Outcome:
    method = wishes.method
    model = quantizer.quantize(method, parent.name)
    digest = hashlib.sha256(model).hexdigest()
    errors = tuple(quantizer.errors(method, model, rows.first(_ERROR_INPUTS)))
    proposal = tuple(propose_float(errors))
    same = derived.find_same(store, parent.name, digest)
    if same is not None:
        return Outcome(method, rows.count, digest, errors, proposal, same)
    derivation = _derivation(parent, wishes, rows.count, errors, proposal, trained)
    examples = wishes.labelled or wishes.calibration
    measured = derived.derive(store, parent, directory, model, derivation, examples, progress)
    return Outcome(method, rows.count, digest, errors, proposal, None, measured)


def _derivation(
    parent: Servable,
    wishes: Wishes,
    calibrated_on: int,
    errors: tuple[LayerError, ...],
    proposal: tuple[str, ...],
    trained: Trained | None,
) -> Derivation:
    method = wishes.method
    used = f"{calibrated_on} inputs of {wishes.calibration.data}, seed {wishes.seed}"
    sections = [("Layers", _layer_section(errors, proposal))]
    if trained is not None:
        used = f"{used}; learnt from {trained.trained_on} inputs of {wishes.training.data if wishes.training else ''}"
        sections.append(("Training", _loss_section(trained)))
    return Derivation(
        method="quantize",
        how=f"{method}, {used}" if method.has_fixed_ranges else str(method),
        parameters=_parameters(wishes, calibrated_on, trained),
        summary=f"{parent.name} {parent.version}, quantised: {method}.",
        command=wishes.command,
        least_tolerance=_TOLERANCE[method.to],
        mixes_rows=method.mixes_rows,
        sections=sections,
    )


def _parameters(wishes: Wishes, calibrated_on: int, trained: Trained | None) -> dict[str, str]:
    method, recipe = wishes.method, wishes.recipe
    parameters = {"to": method.to, "seed": str(wishes.seed)}
    if method.to == "int8":
        parameters["scheme"] = method.scheme
    if method.to == "int8" and method.runtime == "onnx":
        parameters["reduce_range"] = str(method.reduce_range).lower()
    if method.has_fixed_ranges:
        parameters |= {"calibration": wishes.calibration.data, "calibration_size": str(calibrated_on)}
    if trained is not None and wishes.training is not None and recipe is not None:
        parameters |= {
            "fine_tune": wishes.training.data,
            "fine_tune_size": str(trained.trained_on),
            "epochs": str(recipe.epochs),
            "learning_rate": f"{recipe.learning_rate:g}",
            "batch_size": str(recipe.batch_size),
            "alpha": f"{recipe.alpha:g}",
            "temperature": f"{recipe.temperature:g}",
        }
    if method.keep_float:
        parameters["keep_float"] = " ".join(method.keep_float)
    return parameters


def _loss_section(trained: Trained) -> str:
    """Of each epoch; the parent's term has a least value above 0, the entropy of its answers."""
    rows = [
        (str(epoch), f"{loss.parent:.4f}", "" if loss.labels is None else f"{loss.labels:.4f}")
        for epoch, loss in enumerate(trained.losses, 1)
    ]
    return "\n".join(derived.table(("epoch", "against the parent's answers", "against the labels"), rows))


def _layer_section(errors: tuple[LayerError, ...], proposal: tuple[str, ...]) -> str:
    noisy = sorted((error for error in errors if error.sqnr_db is not None), key=lambda error: error.sqnr_db or 0.0)
    rows = [(f"`{one.name}`", one.operator, f"{one.weights:,}", f"{one.sqnr_db:.1f}") for one in noisy[:_SHOWN]]
    lines = [
        f"Noise that rounding adds in each layer, its inputs being exact; the {len(rows)} noisiest of {len(errors)}, "
        f"{len(errors) - len(noisy)} of which are in float.",
        "",
        *derived.table(("layer", "operator", "weights", "SQNR, dB"), rows),
    ]
    if proposal:
        lines += ["", f"To leave in float first: {', '.join(f'`{name}`' for name in proposal)}."]
    return "\n".join(lines)


def _by_noise(errors: tuple[LayerError, ...]) -> list[str]:
    noisy = [(error.sqnr_db, error.name) for error in errors if error.sqnr_db is not None]
    return [name for _, name in sorted(noisy)]


def _is_lossy(outcome: Outcome, wishes: Wishes) -> bool:
    return outcome.measured is not None and outcome.measured.loss(wishes.max_drop) is not None


def _refusal(outcome: Outcome, wishes: Wishes) -> str:
    measured = outcome.measured
    assert measured is not None
    decibels = {error.name: error.sqnr_db for error in outcome.errors}
    worst = _by_noise(outcome.errors)[:_NAMED]
    shown = ", ".join(f"{name} ({decibels[name]:.1f} dB)" for name in worst)
    text = f"{measured.loss(wishes.max_drop)}; the layers that hurt most are {shown}"
    if wishes.auto:
        return f"{text}; --auto has left {len(outcome.method.keep_float)} layers in float, and that was not enough"
    if not outcome.proposal:
        return f"{text}; allow more, or another --to"
    options = " ".join(f"--keep-float {shlex.quote(name)}" for name in outcome.proposal)
    return f"{text}; leave layers in float with {options}, or --auto, or allow more"
