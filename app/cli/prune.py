"""`headway prune`: a version without the weights or channels that matter least, with what it gained and lost."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.table import Table
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
    from app.optimize.networks.fine_tune import Recipe
    from app.optimize.pruning.method import Amount, Method
    from app.optimize.pruning.version import Outcome
    from app.registry.servables.servable import Servable
    from app.registry.storing.intake import Published

_SHOWN = 12


def prune(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias of a float version")],
    by: Annotated[
        Literal["magnitude", "gradient", "entropy"],
        typer.Option("--by", help="What says how much a weight or channel matters."),
    ] = "magnitude",
    structure: Annotated[
        Literal["weight", "channel"],
        typer.Option("--structure", help="weight: zeros, which shrink what is stored; channel: less work, so time."),
    ] = "weight",
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="The share of all weights or channels that goes, in 0…1.")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="The percentage of each layer's that goes.")
    ] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", help="All go whose score is below it.")] = None,
    fewer_flops: Annotated[
        float | None, typer.Option("--fewer-flops", help="Of channels: the share of the multiply-adds to save.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="LAYER", help="A layer to leave whole; repeatable.")
    ] = None,
    depthwise: Annotated[
        bool, typer.Option("--depthwise", help="Zero weights of depthwise convolutions, too.")
    ] = False,
    schedule: Annotated[
        Literal["once", "gradual"],
        typer.Option("--schedule", help="Zeros all at once, and what is left refitted; or step by step."),
    ] = "once",
    multiple: Annotated[
        int, typer.Option("--multiple", min=1, help="Channels that are left of a layer are a multiple of it.")
    ] = 8,
    fine_tune: Annotated[
        Path | None,
        typer.Option("--fine-tune", metavar="DIR", help="Data to learn from: images; a CSV or .npz file of rows."),
    ] = None,
    size: Annotated[int, typer.Option("--fine-tune-size", min=1, help="How many of them are taken.")] = 2000,
    epochs: Annotated[int, typer.Option("--epochs", min=0, help="Times that they are gone through.")] = 10,
    learning_rate: Annotated[float, typer.Option("--learning-rate", min=0, help="Of Adam, at the start.")] = 1e-3,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows in a step.")] = 32,
    alpha: Annotated[
        float, typer.Option("--alpha", min=0, help="Weight of the labels beside the parent's answers; 0: no labels.")
    ] = 1.0,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.01, help="That the parent's answers are softened with.")
    ] = 2.0,
    evaluation: EvaluationOption = None,
    max_drop: MaxDropOption = 1.0,
    sensitivity_size: Annotated[
        int, typer.Option("--sensitivity-size", min=1, help="Labelled inputs that each layer is tried on.")
    ] = 100,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Another number may give another file.")] = 1,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of which inputs are taken, and in which order.")
    ] = 0,
    version: VersionOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Zero weights, or take out channels, of an ONNX model; fine-tune what is left; refuse what loses too much."""
    settings = read_settings(models=models)
    with failing_cleanly():
        from app.optimize.pruning.method import Method

        amount = _amount(
            sparsity=sparsity, percentile=percentile, threshold=threshold, fewer_flops=fewer_flops
        )  # fmt: skip
        method = Method(by, amount, structure, tuple(keep or ()), depthwise, multiple, schedule)
        if by != "magnitude" and fine_tune is None:
            raise Misuse(f"--by {by} takes data: say --fine-tune (with --epochs 0 where nothing is to be trained)")
        if evaluation is None and fine_tune is None:
            raise Misuse("say --evaluation, or --fine-tune: what the version is measured on beside its parent")
        store = open_store(settings)
        parent = open_parent(store, model)
        number = free_version(store, parent, version)
        require("training", "onnx", "torch", "torch_pruning")
        from app.optimize.examples import find_examples, find_labelled
        from app.optimize.networks.fine_tune import Recipe
        from app.optimize.pruning.version import Wishes, prune_version

        recipe = Recipe(epochs, learning_rate, batch_size, alpha, temperature, seed, threads)
        labelled = find_labelled(parent, evaluation) if evaluation is not None else None
        needs_labels = by == "gradient" or (alpha > 0 and epochs > 0)
        find = find_labelled if needs_labels else find_examples
        training = find(parent, fine_tune) if fine_tune is not None else None
        command = _command(parent, method, recipe, fine_tune, evaluation, size)
        wishes = Wishes(method, labelled, training, recipe, size, sensitivity_size, max_drop, command)
        with workplace(parent, number) as directory, progress_bars() as progress:
            outcome = prune_version(store, parent, directory, wishes, progress)
            published = publish(store, settings, directory) if outcome.same_as is None else None
        emit(
            as_json,
            _plain(parent, method, outcome, published, number),
            lambda: _report(parent, method, outcome, published, number, settings, store),
        )


def _amount(**given: float | None) -> Amount:
    from app.optimize.pruning.method import Amount

    said = [(kind, value) for kind, value in given.items() if value is not None]
    if len(said) != 1:
        names = " or ".join(f"--{kind.replace('_', '-')}" for kind in given)
        raise Misuse(f"say how much goes, once: {names}")
    kind, value = said[0]
    return Amount(kind, value)  # type: ignore[arg-type]


def _command(
    parent: Servable, method: Method, recipe: Recipe, fine_tune: Path | None, evaluation: Path | None, size: int
) -> str:
    """What makes such a version again, for its card. Folders are named without where they lie on this machine."""
    words = ["headway", "prune", f"{parent.name}@{parent.version}", "--by", method.by]
    words += [f"--{method.amount.kind.replace('_', '-')}", f"{method.amount.value:g}", "--structure", method.structure]
    words += ["--multiple", str(method.multiple)] if method.structure == "channel" else []
    words += ["--depthwise"] if method.depthwise else []
    words += ["--schedule", method.schedule] if method.structure == "weight" and fine_tune is not None else []
    for layer in method.keep:
        words += ["--keep", layer]
    if fine_tune is not None:
        words += ["--fine-tune", fine_tune.resolve().name, "--fine-tune-size", str(size)]
        words += ["--epochs", str(recipe.epochs), "--learning-rate", f"{recipe.learning_rate:g}"]
        words += ["--batch-size", str(recipe.batch_size)]
        words += ["--alpha", f"{recipe.alpha:g}", "--temperature", f"{recipe.temperature:g}"]
        words += ["--threads", str(recipe.threads)] if recipe.threads != 1 else []
    words += ["--evaluation", evaluation.resolve().name] if evaluation is not None else []
    return shlex.join([*words, "--seed", str(recipe.seed)])


def _plain(
    parent: Servable, method: Method, outcome: Outcome, published: Published | None, number: str
) -> dict[str, Any]:
    measured, sensitivity, pruned = outcome.measured, outcome.sensitivity, outcome.pruned
    return describe_version(parent, published, number, outcome.same_as) | {
        "method": asdict(method) | {"text": str(method)},
        "sha256": outcome.sha256,
        "weights": {"before": pruned.weights[0], "after": pruned.weights[1]},
        "multiply_adds": {"before": pruned.multiply_adds[0], "after": pruned.multiply_adds[1]},
        "gone": round(pruned.gone, 6),
        "trained_on": pruned.trained_on,
        "losses": [asdict(loss) for loss in pruned.losses],
        "measured": describe_measured(measured) if measured is not None else None,
        "layers": [asdict(layer) for layer in outcome.layers],
        "curve": [list(point) for point in sensitivity.curve] if sensitivity is not None else [],
    }


def _report(
    parent: Servable,
    method: Method,
    outcome: Outcome,
    published: Published | None,
    number: str,
    settings: Settings,
    store: Store,
) -> Group:
    measured, pruned = outcome.measured, outcome.pruned
    if published is None or measured is None:
        return Group(same_file_text(parent, outcome.same_as))
    parts: list[Table | Text] = [before_after_table(parent, number, str(method), measured), Text()]
    parts += [_layer_table(outcome), Text()]
    if method.structure == "weight":
        said = (
            f"{pruned.gone:.1%} of the prunable weights are 0: stored and sent it is smaller, a run takes what it took"
        )
    else:
        before, after = pruned.multiply_adds
        said = f"multiply-adds of a run: {before:,} before, {after:,} after, {1 - after / before:.1%} fewer"
    parts.append(Text(said))
    return Group(*parts, *closing_lines(parent, published, measured, settings, store))


def _layer_table(outcome: Outcome) -> Table:
    """The layers that hurt most first."""
    ranked = sorted(outcome.layers, key=lambda one: 2.0 if one.top1 is None else one.top1)
    shown = ranked[:_SHOWN]
    title = "layers" if len(shown) == len(ranked) else f"the {len(shown)} of {len(ranked)} layers that hurt most"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("layer", "weights", "gone", "channels left", "top-1 if it alone is pruned"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for one in shown:
        left = f"{one.channels[0]} of {one.channels[1]}" if one.channels is not None else ""
        table.add_row(
            Text(one.name), f"{one.weights:,}", f"{one.zeros:.1%}", left, "" if one.top1 is None else f"{one.top1:.1%}"
        )
    return table
