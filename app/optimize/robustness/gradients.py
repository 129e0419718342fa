"""The gradients that FGSM and PGD go by: of the version's own network, of its float parent's, or by differences.

The loss is the logarithm of the odds against the label, log((1 - p) / p): an increasing function of the cross-entropy
-log p, so its gradient has the same signs, and these are all that either attack takes of it. It does not vanish where
p rounds to 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from app.errors import InvalidContent, ModelNotFound, RegistryError, RuntimeLoadError
from app.optimize.robustness.engine import Engine
from app.optimize.robustness.space import Pixels, Rows, space_of
from app.registry.manifest import ClassificationAnswer, Manifest
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.tensors import Array

_MOST_DIFFERENCES = 256
_MOST_ANCESTORS = 4
_NETWORK_ROWS = 8
_LEAST = 1e-30  # its reciprocal is an FP32 number, too
# What rounds has no slope but 0.
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


class Gradients(Protocol):
    """`source` says whose they are, `is_transfer` whether of another network than the one that is attacked."""

    source: str
    is_transfer: bool

    def of(self, values: Array, labels: Array) -> Array:
        """The slope of the loss of each sample by its values; [n] labels."""
        ...


def find_gradients(
    store: Store, engine: Engine, source: Servable | None, samples: Array
) -> tuple[Gradients | None, str]:
    """Of `source` where it is given, else of the version itself, its nearest float ancestor in the registry, or by
    differences over the engine, whose steps are measured on `samples`; else None and the reason.

    Raises InvalidContent where `source` has none.
    """
    own = engine.servable
    if source is not None:
        return _read(source, own, is_transfer=source.directory != own.directory), ""
    reasons = []
    for candidate in _lineage(store, own):
        try:
            return _read(candidate, own, is_transfer=candidate is not own), ""
        except InvalidContent as exc:
            reasons.append(str(exc))
        finally:
            if candidate is not own:
                candidate.close()
    space = engine.space
    if isinstance(space, Rows) and samples.shape[1] <= _MOST_DIFFERENCES:
        return Differences(engine, space, samples), ""
    return None, f"{'; '.join(reasons)}; lend it those of a float version with --gradients-from NAME@VERSION"


class NetworkGradients:
    """Of an ONNX network by back-propagation in torch."""

    def __init__(self, source: Servable, *, is_transfer: bool) -> None:
        """Raises InvalidContent where the file cannot be differentiated."""
        self.source = f"{source.name}@{source.version}"
        self.is_transfer = is_transfer
        answer = source.manifest.answer
        assert isinstance(answer, ClassificationAnswer)
        self._space = space_of(source)
        self._is_share = answer.activation == "none"
        self._module, outputs = _open_network(source.directory / source.manifest.model_file, self.source)
        self._place = outputs.index(answer.output) if len(outputs) > 1 else None

    def of(self, values: Array, labels: Array) -> Array:
        steps = range(0, len(values), _NETWORK_ROWS)
        parts = [self._some(values[at : at + _NETWORK_ROWS], labels[at : at + _NETWORK_ROWS]) for at in steps]
        return np.concatenate(parts)

    def _some(self, values: Array, labels: Array) -> Array:
        import torch

        given = torch.from_numpy(self._space.smooth(values)).requires_grad_()
        answered = self._module(given)
        scores = answered if self._place is None else answered[self._place]
        scores = scores.reshape(len(values), -1)
        if self._is_share:
            scores = scores.clamp_min(_LEAST).log()
        chosen = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), scores.shape[1]).bool()
        others = scores.masked_fill(chosen, -torch.inf).logsumexp(dim=1)
        (gradient,) = torch.autograd.grad((others - scores[chosen]).sum(), given)
        return self._space.slope(np.nan_to_num(gradient.numpy()))


class Differences:
    """Central differences over the engine: two runs for each input of a row."""

    is_transfer = False

    def __init__(self, engine: Engine, space: Rows, samples: Array) -> None:
        self.source = "the engine by central differences"
        self._engine = engine
        spread = np.std(samples.astype(np.float64), axis=0)
        usual = float(spread.mean()) or 1.0
        # A hundredth of what a column varies by: small for the network, and far above what FP32 rounds.
        self._steps = np.maximum(np.where(spread > 0, spread, usual) / 100, space.least_step)

    def of(self, values: Array, labels: Array) -> Array:
        return np.stack([self._one(row, int(label)) for row, label in zip(values, labels, strict=True)])

    def _one(self, row: Array, label: int) -> Array:
        moved = np.diag(self._steps)
        beside = np.concatenate([row + moved, row - moved]).astype(np.float32)
        losses = log_odds_against(self._engine.confidences(beside), label)
        slopes: Array = (losses[: len(row)] - losses[len(row) :]) / (2 * self._steps)
        return slopes.astype(np.float32)


def log_odds_against(confidences: Array, label: int) -> Array:
    """log(Σ of the others / p of `label`) of each row."""
    others = np.delete(confidences, label, axis=1).clip(0).sum(axis=1)
    odds: Array = np.log(np.maximum(others, _LEAST)) - np.log(np.maximum(confidences[:, label], _LEAST))
    return odds


def _lineage(store: Store, own: Servable) -> list[Servable]:
    """The version, and those that it was made from as far as they are registered and can be loaded."""
    found = [own]
    manifest: Manifest = own.manifest
    while manifest.parent is not None and len(found) <= _MOST_ANCESTORS:
        ref = ModelRef(manifest.parent.name or manifest.name, manifest.parent.version)
        try:
            found.append(Opener(store).open(ref).servable)
        except (ModelNotFound, RegistryError, RuntimeLoadError):
            break
        manifest = found[-1].manifest
    return found


def _read(source: Servable, own: Servable, *, is_transfer: bool) -> Gradients:
    label = f"{source.name}@{source.version}"
    if source.manifest.runtime != "onnx":
        raise InvalidContent(f"{label} is no ONNX file, and no other is differentiated")
    if not _is_alike(source, own):
        raise InvalidContent(f"{label} takes other inputs, or has other labels, than {own.name}@{own.version}")
    return NetworkGradients(source, is_transfer=is_transfer)


def _is_alike(source: Servable, own: Servable) -> bool:
    if source.classification is None or own.classification is None:
        return False
    theirs, ours = space_of(source), space_of(own)
    if isinstance(theirs, Pixels) and isinstance(ours, Pixels):
        same = theirs.form == ours.form
    else:
        same = type(theirs) is type(ours) and source.input_specs[0].shape == own.input_specs[0].shape
    return same and source.classification.labels == own.classification.labels


def _open_network(path: Path, label: str) -> tuple[Any, list[str]]:
    import onnx

    from app.optimize.networks.torch_network import read_network

    model = onnx.load(path)
    rounding = sorted({node.op_type for node in model.graph.node} & set(_ROUNDING))
    if rounding:
        raise InvalidContent(f"{label} is quantised ({rounding[0]}), so its slope is 0 nearly everywhere")
    try:
        module = read_network(model).module
    except InvalidContent as exc:
        raise InvalidContent(f"{label} cannot be differentiated: {exc}") from exc
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module, [output.name for output in model.graph.output]
