"""One pruning of one network: scores, what goes, fine-tuning, the file, and what each layer's share of it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn

from app.errors import InvalidContent
from app.optimize.derived import Progress
from app.optimize.examples import Examples, pick
from app.optimize.networks.fine_tune import EpochLoss, Recipe, Rows, answers, fine_tune, reproducible, to_logits
from app.optimize.networks.torch_network import Network, read_network, write_weights
from app.optimize.pruning.channels import (
    ChannelScores,
    activation_entropy,
    choose,
    choose_for_flops,
    columns_kept,
    cut,
    multiply_adds,
    score_channels,
)
from app.optimize.pruning.method import Method, partial
from app.optimize.pruning.refit import can_refit, input_products, refit
from app.optimize.pruning.sensitivity import SHARES, Judge, LayerReport, Sensitivity, weigh_channels, weigh_weights
from app.optimize.pruning.weights import (
    apply_masks,
    gradients,
    hold,
    magnitudes,
    prunable,
    settle,
    weighted,
)
from app.registry.manifest import ClassificationAnswer
from app.registry.servables.servable import Servable

# Weights go in so many steps over the first half of the fine-tuning; the other half is to recover.
_STAGES = 10
_RISING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Pruned:
    """`weights` of the prunable layers that are not 0, and `multiply_adds` of one row, before and after. `gone` is the
    share of the prunable weights, or of the channels, that went; `trained_on` the inputs that were learnt from."""

    model: bytes
    weights: tuple[int, int]
    multiply_adds: tuple[int, int]
    gone: float
    trained_on: int
    losses: tuple[EpochLoss, ...]


class Pruning:
    """`run` once, then `weigh` and `reports`. `example` is any input. Raises InvalidContent where the network cannot be
    read, or has nothing to prune."""

    def __init__(
        self,
        model: onnx.ModelProto,
        parent: Servable,
        method: Method,
        recipe: Recipe,
        example: Examples,
        progress: Progress,
    ) -> None:
        self._model, self._method, self._recipe, self._progress = model, method, recipe, progress
        self._whole = read_network(model)
        self._layers = prunable(self._whole, method)
        initializers = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in initializers]
        self._inputs = [value.name for value in inputs]
        self._most_rows = min((value.type.tensor_type.shape.dim[0].dim_value for value in inputs), default=0) or None
        self._answer = parent.manifest.answer
        self._example = Rows(example, self._inputs, [0]).batch([0])
        self._scores: dict[str, torch.Tensor] = {}
        self._found: list[ChannelScores] = []
        self._chosen: list[list[int]] = []
        self._network = self._whole

    def run(self, training: Examples | None, size: int) -> Pruned:
        """Raises InvalidContent where the criterion, or fine-tuning, lacks its data."""
        rows = self._read(training, size)
        with reproducible(self._recipe.threads):
            prune = self._prune_weights if self._method.structure == "weight" else self._prune_channels
            losses = prune(rows)
        before, after = weighted(self._whole), weighted(self._network)
        counts = [sum(int(layer.weight.count_nonzero()) for layer in each.values()) for each in (before, after)]
        return Pruned(
            model=write_weights(self._network, self._model),
            weights=(counts[0], counts[1]),
            multiply_adds=(
                multiply_adds(self._whole, self._example),
                multiply_adds(self._network, self._example),
            ),
            gone=self._gone(),
            trained_on=len(rows) if rows is not None else 0,
            losses=tuple(losses),
        )

    def weigh(self, examples: Examples, size: int) -> Sensitivity:
        """On `size` of these labelled inputs. Raises InvalidContent where none can be read."""
        assert isinstance(self._answer, ClassificationAnswer)
        numbers = pick(examples.count, size, self._recipe.seed)
        judge = Judge(self._model, self._answer.output, examples, numbers)
        parts = len(self._layers) if self._method.structure == "weight" else len(self._found)
        advance = self._progress("layer by layer", parts + len(SHARES))
        if self._method.structure == "weight":
            return weigh_weights(judge, self._whole, self._network, self._scores, self._method, advance)
        chosen = list(zip(self._found, self._chosen, strict=True))
        return weigh_channels(judge, self._whole, self._network, self._example, chosen, self._method, advance)

    def reports(self, sensitivity: Sensitivity | None) -> tuple[LayerReport, ...]:
        """Every layer with weights, in the order of the network."""
        after = weighted(self._network)
        found = []
        for node, layer in weighted(self._whole).items():
            count, left = layer.weight.numel(), after[node].weight
            if self._method.structure == "weight":
                gone, channels = int((left == 0).sum()) / count, None
            else:
                gone, channels = 1 - left.numel() / count, (len(left), len(layer.weight))
            top1 = sensitivity.layers.get(node) if sensitivity is not None else None
            found.append(LayerReport(node, count, round(gone, 6), channels, top1))
        return tuple(found)

    def _read(self, training: Examples | None, size: int) -> Rows | None:
        method = self._method
        is_needed = method.by != "magnitude"
        if training is None:
            if is_needed:
                raise InvalidContent(
                    f"--by {method.by} takes data: say --fine-tune (with --epochs 0 where nothing is to be trained)"
                )
            return None
        if not isinstance(self._answer, ClassificationAnswer) and (self._recipe.epochs or method.by == "gradient"):
            raise InvalidContent(
                "only classifiers can be fine-tuned, or pruned by gradient; say --epochs 0, --by magnitude"
            )
        return Rows(training, self._inputs, pick(training.count, size, self._recipe.seed), self._most_rows)

    def _prune_weights(self, rows: Rows | None) -> list[EpochLoss]:
        method = self._method
        scores = self._slopes(rows) if method.by == "gradient" else magnitudes(self._layers)
        self._scores = {node: scores[node] for node in self._layers}
        self._network = read_network(self._model)
        layers = prunable(self._network, method)
        if method.schedule == "gradual":
            losses = self._fine_tune(rows, self._rising(layers))
            apply_masks(layers, magnitudes(layers) if method.by == "magnitude" else self._scores, method.amount)
        else:
            kept = self._kept()
            self._refit(self._network, kept, rows)  # to what the whole layers give: before anything is masked
            hold(layers, kept)
            losses = self._fine_tune(rows, lambda _: None)
        settle(layers)
        return losses

    def _kept(self) -> dict[str, torch.Tensor]:
        """Which weights stay, bool in the shape of each layer's."""
        layers = prunable(read_network(self._model), self._method)
        apply_masks(layers, self._scores, self._method.amount)
        return {node: layer.weight != 0 for node, layer in layers.items()}

    def _rising(self, layers: dict[str, nn.Module]) -> Callable[[float], None]:
        """What raises the masks step by step; by magnitude, by |w| as it then is."""
        method, reached = self._method, 0

        def before_step(done: float) -> None:
            nonlocal reached
            stage = min(_STAGES, int(done / _RISING_SHARE * _STAGES) + 1)
            if stage > reached:
                reached = stage
                scores = magnitudes(layers) if method.by == "magnitude" else self._scores
                apply_masks(layers, scores, partial(method.amount, stage / _STAGES))

        return before_step

    def _prune_channels(self, rows: Rows | None) -> list[EpochLoss]:
        method = self._method
        values: Mapping[str, Any] | None = self._slopes(rows) if method.by == "gradient" else None
        if method.by == "entropy":
            assert rows is not None
            values = activation_entropy(self._whole, rows, self._progress("entropy of channels", len(rows)))
        self._found = score_channels(self._whole, self._example, method.by, method.keep, values)
        if method.amount.kind == "fewer_flops":
            share = method.amount.value
            self._chosen = choose_for_flops(self._whole, self._example, self._found, share, method.multiple)
        else:
            self._chosen = choose(self._found, method.amount, method.multiple)
        if not any(self._chosen):
            raise InvalidContent(
                f"no channel goes: layers keep a multiple of {method.multiple}; ask for more, or a smaller --multiple"
            )
        fitted = read_network(self._model)
        kept = columns_kept(fitted, self._example, self._found, self._chosen)
        self._refit(fitted, kept, rows)
        self._network = cut(fitted, self._example, self._found, self._chosen)
        return self._fine_tune(rows, lambda _: None)

    def _refit(self, network: Network, kept: Mapping[str, torch.Tensor], rows: Rows | None) -> None:
        """To what the layers gave, where there is data to fine-tune on; what is not kept becomes 0."""
        layers = {node: layer for node, layer in weighted(network).items() if node in kept and can_refit(layer)}
        if rows is None or not self._recipe.epochs:
            return
        advance = self._progress("inputs of layers", len(rows))
        products = input_products(network.module, layers, rows, self._recipe.seed, advance)
        advance = self._progress("refitting layers", len(layers))
        for node, layer in layers.items():
            refit(layer, kept[node], products[node], advance)

    def _slopes(self, rows: Rows | None) -> dict[str, torch.Tensor]:
        assert rows is not None
        advance = self._progress("gradients", len(rows))
        return gradients(self._logits_of(self._whole), weighted(self._whole), rows, advance=advance)

    def _fine_tune(self, rows: Rows | None, before_step: Callable[[float], None]) -> list[EpochLoss]:
        recipe = self._recipe
        if rows is None or not recipe.epochs:
            return []
        with torch.no_grad():
            parent = answers(self._logits_of(self._whole), rows, self._progress("the parent's answers", len(rows)))
        weights = [
            parameter
            for name in self._network.layers
            for parameter in self._network.module.get_submodule(name).parameters()
        ]
        advance = self._progress("fine-tuning", recipe.epochs * len(rows))
        return fine_tune(self._logits_of(self._network), weights, rows, parent, recipe, before_step, advance)

    def _logits_of(self, network: Network) -> Callable[..., torch.Tensor]:
        assert isinstance(self._answer, ClassificationAnswer)
        place = [value.name for value in self._model.graph.output].index(self._answer.output)
        is_probability = self._answer.activation == "none"

        def logits(*inputs: torch.Tensor) -> torch.Tensor:
            found = network.module(*inputs)
            return to_logits(found[place] if isinstance(found, tuple) else found, is_probability)

        return logits

    def _gone(self) -> float:
        if self._method.structure == "channel":
            return sum(map(len, self._chosen)) / sum(len(group.scores) for group in self._found)
        layers = prunable(self._network, self._method).values()
        zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
        return zeros / sum(int(layer.weight.numel()) for layer in layers)
