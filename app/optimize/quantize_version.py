"""From a float version to a quantised one in a directory, measured beside it; refused where it loses too much."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from app.errors import InvalidContent
from app.optimize import derived
from app.optimize.before_after import BeforeAfter
from app.optimize.derived import Derivation, Progress
from app.optimize.examples import Examples
from app.optimize.quantize import Method, Quantizer, pick
from app.optimize.quantize_error import LayerError, layer_errors, propose_float
from app.registry.servable import Servable
from app.registry.store import Store
from app.tensors import Tensors

# An answer in 8 bits may step by so much where another CPU rounds a sum the other way.
_TOLERANCE = {"int8": 0.05, "fp16": 0.01, "int4": 0.01}
_ERROR_INPUTS = 32
_SHOWN = 10
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Wishes:
    """`calibration` gives the ranges of activations and the noise of each layer; `size` of its inputs are taken, by
    `seed`. `labelled` is what accuracy is measured on: a version that loses more than `max_drop` points is refused.
    `auto`: leave more and more layers in float until it loses no more than that."""

    method: Method
    calibration: Examples
    labelled: Examples | None = None
    size: int = 200
    seed: int = 0
    max_drop: float = 1.0
    auto: bool = False
    command: str = "headway quantize"


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
    _check_runtime(parent)
    rows = _Rows(wishes, progress)
    quantizer = Quantizer(parent.directory / parent.manifest.model_file, rows)
    try:
        outcome = _attempt(store, parent, directory, quantizer, rows, wishes, progress)
        candidates = _by_noise(outcome.errors)
        count = len(outcome.proposal)
        while wishes.auto and _is_lossy(outcome, wishes) and 0 < count <= len(candidates) // 2:
            kept = (*wishes.method.keep_float, *candidates[:count])
            retry = replace(wishes, method=replace(wishes.method, keep_float=kept))
            outcome = _attempt(store, parent, directory, quantizer, rows, retry, progress)
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


def _check_runtime(parent: Servable) -> None:
    label = f"{parent.name}@{parent.version}"
    runtime = parent.manifest.runtime
    if runtime == "tflite":
        raise InvalidContent(
            f"{label} is a TFLite file, and quantize takes ONNX: quantise it with ai-edge-quantizer in an environment "
            "of its own, as recipes/tflite_conversion.py does, and add the result with headway models add"
        )
    if runtime != "onnx":
        raise InvalidContent(f"{label} is a composition of other versions: quantise these, and name them in a new one")


def _attempt(
    store: Store,
    parent: Servable,
    directory: Path,
    quantizer: Quantizer,
    rows: _Rows,
    wishes: Wishes,
    progress: Progress,
) -> Outcome:
    method = wishes.method
    model = quantizer.quantize(method, parent.name)
    digest = hashlib.sha256(model).hexdigest()
    errors = tuple(layer_errors(quantizer.prepare(method), model, rows.first(_ERROR_INPUTS)))
    proposal = tuple(propose_float(errors))
    same = derived.find_same(store, parent.name, digest)
    if same is not None:
        return Outcome(method, rows.count, digest, errors, proposal, same)
    derivation = _derivation(parent, wishes, rows.count, errors, proposal)
    examples = wishes.labelled or wishes.calibration
    measured = derived.derive(store, parent, directory, model, derivation, examples, progress)
    return Outcome(method, rows.count, digest, errors, proposal, None, measured)


def _derivation(
    parent: Servable, wishes: Wishes, calibrated_on: int, errors: tuple[LayerError, ...], proposal: tuple[str, ...]
) -> Derivation:
    method = wishes.method
    used = f"{calibrated_on} inputs of {wishes.calibration.data}, seed {wishes.seed}"
    how = f"{method}, {used}" if (method.to, method.scheme) == ("int8", "static") else str(method)
    parameters = {"to": method.to, "seed": str(wishes.seed)}
    if method.to == "int8":
        parameters |= {"scheme": method.scheme, "reduce_range": str(method.reduce_range).lower()}
    if (method.to, method.scheme) == ("int8", "static"):
        parameters |= {"calibration": wishes.calibration.data, "calibration_size": str(calibrated_on)}
    if method.keep_float:
        parameters["keep_float"] = " ".join(method.keep_float)
    return Derivation(
        method="quantize",
        how=how,
        parameters=parameters,
        summary=f"{parent.name} {parent.version}, quantised: {method}.",
        command=wishes.command,
        least_tolerance=_TOLERANCE[method.to],
        mixes_rows=method.scheme == "dynamic",  # the range is one of all rows
        sections=[("Layers", _layer_section(errors, proposal))],
    )


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
    options = " ".join(f"--keep-float {name}" for name in outcome.proposal)
    return f"{text}; leave layers in float with {options}, or --auto, or allow more"
