"""From a float version to a pruned one in a directory, measured beside it; refused where it loses too much."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from app.errors import InvalidContent
from app.optimize import derived
from app.optimize.before_after import BeforeAfter, figure
from app.optimize.derived import Derivation, Progress
from app.optimize.examples import Examples
from app.optimize.networks.fine_tune import EpochLoss, Recipe
from app.optimize.networks.onnx_graph import read_onnx
from app.optimize.pruning.method import Method
from app.optimize.pruning.network import Pruned, Pruning
from app.optimize.pruning.sensitivity import LayerReport, Sensitivity
from app.registry.manifest import ClassificationAnswer
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.runtimes.packed import pack

PICTURE = "pruning.svg"
# Weights that were trained give another answer; a CPU that sums in another order gives nearly the same.
_TOLERANCE = 0.01
_MAX_BYTES = 2**31 - 2**20
_SHOWN = 15
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Wishes:
    """`training` is what scores are taken on and fine-tuned with, `size` of its inputs by the recipe's seed; None:
    neither. `labelled` is what accuracy is measured on: a version that loses more than `max_drop` points is refused.
    `sensitivity_size` of the labelled inputs are run for each layer."""

    method: Method
    labelled: Examples | None = None
    training: Examples | None = None
    recipe: Recipe = field(default_factory=Recipe)
    size: int = 2000
    sensitivity_size: int = 100
    max_drop: float = 1.0
    command: str = "headway prune"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`directory` holds the new version, ready to be published; `same_as` is set instead where its file is there
    already, and then nothing was measured."""

    sha256: str
    pruned: Pruned
    layers: tuple[LayerReport, ...] = ()
    sensitivity: Sensitivity | None = None
    same_as: str | None = None
    measured: BeforeAfter | None = None


def prune_version(store: Store, parent: Servable, directory: Path, wishes: Wishes, progress: Progress) -> Outcome:
    """Fill `directory` (`…/<name>/<version>`, not there yet). Raises InvalidContent where there is nothing to prune, or
    too much is lost; the message names the layers that hurt."""
    examples = wishes.labelled or wishes.training
    if examples is None:
        raise InvalidContent(
            "say --evaluation, or --fine-tune: inputs that the version is measured on beside its parent"
        )
    pruning = Pruning(_read_model(parent), parent, wishes.method, wishes.recipe, examples, progress)
    pruned = pruning.run(wishes.training, wishes.size)
    digest = hashlib.sha256(pruned.model).hexdigest()
    same = _find_same(store, parent, pruned.model)
    if same is not None:
        return Outcome(digest, pruned, same_as=same)
    judged = wishes.labelled or (wishes.training if wishes.training and wishes.training.classes is not None else None)
    sensitivity = pruning.weigh(judged, wishes.sensitivity_size) if judged is not None else None
    layers = pruning.reports(sensitivity)
    derivation = _derivation(parent, wishes, pruned, layers, sensitivity)
    measured = derived.derive(store, parent, directory, pruned.model, derivation, examples, progress)
    outcome = Outcome(digest, pruned, layers, sensitivity, None, measured)
    if measured.loss(wishes.max_drop) is not None:
        raise InvalidContent(_refusal(outcome, wishes))
    return outcome


def _read_model(parent: Servable) -> onnx.ModelProto:
    label = f"{parent.name}@{parent.version}"
    runtime = parent.manifest.runtime
    if runtime == "composition":
        raise InvalidContent(f"{label} is a composition of other versions: prune these, and name them in a new one")
    if runtime != "onnx":
        raise InvalidContent(f"{label} is a {runtime} file, and prune takes ONNX: prune before it is converted")
    answer = parent.manifest.answer
    if isinstance(answer, ClassificationAnswer) and answer.activation == "sigmoid":
        raise InvalidContent(f"{label} gives each class a probability of its own; prune takes a softmax, or its logits")
    path = parent.directory / parent.manifest.model_file
    if sum(entry.unpacked_bytes or entry.bytes for entry in parent.manifest.files.values()) > _MAX_BYTES:
        raise InvalidContent(f"{label} has more than 2 GB, and a file of ONNX holds no more")
    return read_onnx(path)


def _find_same(store: Store, parent: Servable, model: bytes) -> str | None:
    """Packed or not: the one who asks may have changed what is kept how."""
    for content in (model, pack(model)):
        same = derived.find_same(store, parent.name, hashlib.sha256(content).hexdigest())
        if same is not None:
            return same
    return None


def _derivation(
    parent: Servable,
    wishes: Wishes,
    pruned: Pruned,
    layers: tuple[LayerReport, ...],
    sensitivity: Sensitivity | None,
) -> Derivation:
    method, recipe = wishes.method, wishes.recipe
    how = str(method)
    if wishes.training is not None:
        how += f"; fine-tuned on {pruned.trained_on} inputs of {wishes.training.data}, {recipe.epochs} epochs"
    sections = [("Layers", _layer_section(method, layers, sensitivity))]
    if pruned.losses:
        sections.append(("Fine-tuning", _loss_section(pruned.losses, recipe)))
    picture = _draw(wishes, pruned, layers, sensitivity)
    if picture is not None:
        sections.insert(0, ("Accuracy against what goes", f"![accuracy against what goes]({PICTURE})"))
    before, after = pruned.multiply_adds
    return Derivation(
        method="prune",
        how=how,
        parameters=_parameters(wishes, pruned),
        summary=f"{parent.name} {parent.version}, pruned: {method}. {_plainly(method, pruned)}",
        command=wishes.command,
        least_tolerance=_TOLERANCE,
        sections=sections,
        figures=[
            figure("gone", None, round(pruned.gone, 6)),
            figure("weights", pruned.weights[0], pruned.weights[1]),
            figure("multiply_adds", before, after),
        ],
        is_packed=method.structure == "weight",
        attachments={PICTURE: picture} if picture is not None else {},
    )


def _parameters(wishes: Wishes, pruned: Pruned) -> dict[str, str]:
    """What makes the same file again."""
    method, recipe = wishes.method, wishes.recipe
    parameters = {"by": method.by, "structure": method.structure, method.amount.kind: f"{method.amount.value:g}"}
    if method.structure == "channel":
        parameters["multiple"] = str(method.multiple)
    else:
        parameters |= {"schedule": method.schedule, "depthwise": str(method.depthwise).lower()}
    if method.keep:
        parameters["keep"] = " ".join(method.keep)
    if wishes.training is not None:
        parameters |= {
            "fine_tune": wishes.training.data,
            "fine_tune_size": str(pruned.trained_on),
            "epochs": str(recipe.epochs),
            "learning_rate": f"{recipe.learning_rate:g}",
            "batch_size": str(recipe.batch_size),
            "alpha": f"{recipe.alpha:g}",
            "temperature": f"{recipe.temperature:g}",
            "threads": str(recipe.threads),
        }
    return parameters | {"seed": str(recipe.seed)}


def _plainly(method: Method, pruned: Pruned) -> str:
    if method.structure == "weight":
        return (
            f"{pruned.gone:.1%} of the prunable weights are 0: that shrinks what is stored and sent, compressed. "
            "The time of a run stays what it was."
        )
    before, after = pruned.multiply_adds
    return f"A run takes {1 - after / before:.1%} fewer multiply-adds."


def _layer_section(method: Method, layers: tuple[LayerReport, ...], sensitivity: Sensitivity | None) -> str:
    ranked = sorted(layers, key=lambda one: 2.0 if one.top1 is None else one.top1)[:_SHOWN]
    rows = [
        (
            f"`{one.name}`",
            f"{one.weights:,}",
            f"{one.zeros:.1%}",
            "" if one.channels is None else f"{one.channels[0]} of {one.channels[1]}",
            "" if one.top1 is None else f"{one.top1:.1%}",
        )
        for one in ranked
    ]
    said = "" if len(rows) == len(layers) else f"The {len(rows)} that hurt most of {len(layers)}. "
    if sensitivity is not None:
        said += (
            f"Sensitivity: top-1 on {sensitivity.n} inputs of {sensitivity.data} when this layer alone is pruned, "
            f"without fine-tuning; of the whole network it is {sensitivity.whole:.1%}."
        )
    columns = ("layer", "weights", "gone", "channels left", "sensitivity")
    wanted = [place for place in range(5) if place != 3 or method.structure == "channel"]
    wanted = [place for place in wanted if place != 4 or sensitivity is not None]
    table = derived.table([columns[place] for place in wanted], [[row[place] for place in wanted] for row in rows])
    return "\n".join([*((said.strip(), "") if said else ()), *table])


def _loss_section(losses: tuple[EpochLoss, ...], recipe: Recipe) -> str:
    rows = [
        (str(number), f"{one.parent:.4f}", "" if one.labels is None else f"{one.labels:.4f}")
        for number, one in enumerate(losses, 1)
    ]
    said = (
        f"Mean of each epoch, in nats: T²·H(q, p) to the parent's answers (T = {recipe.temperature:g}), "
        f"and H(y, p) to the labels (weight {recipe.alpha:g})."
    )
    return "\n".join([said, "", *derived.table(("epoch", "parent", "labels"), rows)])


def _draw(
    wishes: Wishes, pruned: Pruned, layers: tuple[LayerReport, ...], sensitivity: Sensitivity | None
) -> bytes | None:
    """None without labelled data or without Matplotlib."""
    if sensitivity is None:
        return None
    try:
        from app.optimize.pruning.chart import draw_pruning
    except ImportError:
        return None
    return draw_pruning(sensitivity, layers, pruned.gone, wishes.method.structure)


def _refusal(outcome: Outcome, wishes: Wishes) -> str:
    measured = outcome.measured
    assert measured is not None
    text = measured.loss(wishes.max_drop) or ""
    hurting = [one for one in outcome.layers if one.top1 is not None and one.zeros > 0]
    worst = sorted(hurting, key=lambda one: one.top1 or 0.0)[:_NAMED]
    if worst:
        shown = ", ".join(f"{one.name} ({one.top1:.1%} when it alone is pruned)" for one in worst)
        text += f"; the layers that hurt most are {shown}; leave them whole with "
        text += " ".join(f"--keep {one.name}" for one in worst)
    if wishes.training is None or not wishes.recipe.epochs:
        return f"{text}; or fine-tune with --fine-tune, prune less, or allow more"
    return f"{text}; or fine-tune longer (--epochs) and on more data, prune less, or allow more"
