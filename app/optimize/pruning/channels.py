"""Whole channels out of a network, with all that is coupled to them: torch-pruning finds what, and cuts.

A channel of a convolution is one of its outputs; where outputs are added or pass a depthwise convolution, several
layers lose the same one (Fang et al. 2023, https://arxiv.org/abs/2301.12900).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from app.errors import InvalidContent
from app.optimize.networks.fine_tune import Rows
from app.optimize.networks.torch_network import Network
from app.optimize.pruning.method import Amount, By
from app.optimize.pruning.weights import weighted
from app.tensors import Array

# Of the histogram whose entropy is taken; Luo and Wu take 100, for more photos than people mostly have here.
_BINS = 32
_TRIALS = 12


@dataclass(frozen=True, slots=True)
class ChannelScores:
    """Of one group of coupled layers: `layers` are those whose outputs go, `scores` one number a channel."""

    layers: tuple[str, ...]
    scores: Array


def score_channels(
    network: Network,
    example: Sequence[torch.Tensor],
    by: By,
    keep: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> list[ChannelScores]:
    """Every group of channels that can be taken out, in a fixed order; `example` is one row of each input.

    magnitude: the mean over the layers that it is an output or input of, of Σ w² over its weights; gradient: that of
    Σ |w · ∂L/∂w|, these being the `values`. Both relative to the mean of the group, so that groups can be ranked
    together. entropy: the mean over the layers that take the channel in of their `values`, in bits.

    Channels of the network's output stay, those that a layer in `keep` puts out, and those of grouped convolutions that
    are not depthwise. Raises InvalidContent.
    """
    if by == "gradient":
        assert values is not None
        network = _with_weights(network, values)
    graph = _trace(network, example)
    importance = _importance(network, by, values)
    found = []
    for group in _groups(graph, network, keep):
        scores = importance(group)
        if scores is not None:
            found.append(ChannelScores(_outputs(group, network), scores.double().numpy()))
    if not found:
        raise InvalidContent("the network has no channels between two layers that could be taken out")
    return found


def choose(found: Sequence[ChannelScores], amount: Amount, multiple: int) -> list[list[int]]:
    """The channels that go of each group, those with the lowest scores; as many stay as are the nearest multiple of
    `multiple`, at least one multiple, and where a group has fewer, all."""
    counts = [len(group.scores) for group in found]
    if amount.kind == "percentile":
        wanted = [round(amount.value / 100 * count) for count in counts]
    elif amount.kind == "threshold":
        wanted = [int((group.scores < amount.value).sum()) for group in found]
    else:
        ranked = np.argsort(np.concatenate([group.scores for group in found]), kind="stable")
        owners = np.repeat(np.arange(len(found)), counts)[ranked[: round(amount.value * sum(counts))]]
        wanted = np.bincount(owners, minlength=len(found)).tolist()
    chosen = []
    for group, count, gone in zip(found, counts, wanted, strict=True):
        left = min(count, max(multiple, round((count - gone) / multiple) * multiple))
        chosen.append(sorted(np.argsort(group.scores, kind="stable")[: count - left].tolist()))
    return chosen


def cut(
    network: Network,
    example: Sequence[torch.Tensor],
    found: Sequence[ChannelScores],
    chosen: Sequence[Sequence[int]],
) -> Network:
    """A copy of `network` without the chosen channels. Raises InvalidContent where it cannot run, or another shape
    comes out of it."""
    module = copy.deepcopy(network.module)
    pruned = Network(module, network.layers, network.weights, network.flattened)
    graph = _trace(pruned, example)
    names = {node: name for name, node in network.layers.items()}
    for group, channels in zip(found, chosen, strict=True):
        if channels:
            root = module.get_submodule(names[group.layers[0]])
            cutter = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, cutter, list(channels)).prune()
    _check_answer(network, pruned, example)
    return pruned


def columns_kept(
    network: Network,
    example: Sequence[torch.Tensor],
    found: Sequence[ChannelScores],
    chosen: Sequence[Sequence[int]],
) -> dict[str, torch.Tensor]:
    """Of each layer that takes chosen channels in, which of its weights are left: bool, in their shape."""
    graph = _trace(network, example)
    layers = weighted(network)
    nodes = {id(layer): node for node, layer in layers.items()}
    kept: dict[str, torch.Tensor] = {}
    for group, channels in zip(found, chosen, strict=True):
        if not channels:
            continue
        root = layers[group.layers[0]]
        cutter = graph.get_pruner_of_module(root).prune_out_channels
        for dep, columns in graph.get_pruning_group(root, cutter, list(channels)):
            layer = dep.target.module
            if dep.handler.__name__ == "prune_in_channels" and id(layer) in nodes:
                node = nodes[id(layer)]
                kept.setdefault(node, torch.ones_like(layer.weight, dtype=torch.bool))[:, columns] = False
    return kept


def choose_for_flops(
    network: Network, example: Sequence[torch.Tensor], found: Sequence[ChannelScores], share: float, multiple: int
) -> list[list[int]]:
    """The least global sparsity, to a part in 4,096, whose multiply-adds are at most 1 - `share` of the network's.

    Raises InvalidContent where taking out nearly all does not save so much.
    """
    most = multiply_adds(network, example) * (1 - share)
    low, high = 0.0, 1.0
    best: list[list[int]] | None = None
    counted: dict[str, int] = {}  # rounding makes neighbours the same
    for _ in range(_TRIALS):
        middle = (low + high) / 2
        chosen = choose(found, Amount("sparsity", middle), multiple)
        if (key := str(chosen)) not in counted:
            counted[key] = multiply_adds(cut(network, example, found, chosen), example)
        if counted[key] <= most:
            best, high = chosen, middle
        else:
            low = middle
    if best is None:
        raise InvalidContent(f"--fewer-flops {share:g}: the channels that can be taken out do not hold so many")
    return best


def multiply_adds(network: Network, example: Sequence[torch.Tensor]) -> int:
    """Of the layers with weights, for one row."""
    import torch_pruning

    count, _ = torch_pruning.utils.count_ops_and_params(network.module, tuple(example))
    return int(count)


def activation_entropy(network: Network, rows: Rows, advance: Callable[[], None] = lambda: None) -> dict[str, Array]:
    """Of each channel that a layer takes in, by the layer's ONNX node: the entropy in bits of its mean over the
    picture, in a histogram of 32 bins from its least to its greatest value over all rows (Luo and Wu 2017,
    https://arxiv.org/abs/1706.05791). A channel that is always the same has 0."""
    means: dict[str, list[Array]] = {}

    def watch(node: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            value = inputs[0]  # [rows, channels, …] of a convolution, [rows, …, features] of a product
            is_picture = node in convolutions
            flat = value.flatten(2).mean(2) if is_picture else value.reshape(len(value), -1, value.shape[-1]).mean(1)
            means.setdefault(node, []).append(flat.numpy())

        return keep

    layers = weighted(network)
    convolutions = {node for node, layer in layers.items() if isinstance(layer, nn.modules.conv._ConvNd)}
    hooks = [layer.register_forward_pre_hook(watch(node)) for node, layer in layers.items()]
    try:
        with torch.no_grad():
            for places, inputs in rows.batches():
                network.module(*inputs)
                for _ in places:
                    advance()
    finally:
        for hook in hooks:
            hook.remove()
    return {node: _entropy(np.concatenate(parts)) for node, parts in means.items()}


def _entropy(values: Array) -> Array:
    """In bits, of each column."""
    low, high = values.min(0), values.max(0)
    scaled = (values - low) / np.where(high > low, high - low, 1)
    places = np.minimum((scaled * _BINS).astype(int), _BINS - 1)
    shares = np.stack([(places == number).mean(0) for number in range(_BINS)])
    logarithms = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logarithms).sum(0))


def _check_answer(network: Network, pruned: Network, example: Sequence[torch.Tensor]) -> None:
    hint = "leave the layers before it whole with --keep"
    with torch.no_grad():
        before = network.module(*example)
        try:
            after = pruned.module(*example)
        except RuntimeError as exc:
            raise InvalidContent(f"without these channels the network cannot run ({exc}); {hint}") from exc
    pairs = zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]
    if any(one.shape != other.shape for one, other in pairs):
        raise InvalidContent(f"without these channels an answer of the network has another shape; {hint}")


def _trace(network: Network, example: Sequence[torch.Tensor]) -> Any:
    import torch_pruning

    graph = torch_pruning.DependencyGraph()
    with warnings.catch_warnings():
        # It names parameters outside of layers, which it leaves as they are; the shapes are checked by a run after.
        warnings.simplefilter("ignore")
        with torch.enable_grad():
            graph.build_dependency(network.module, example_inputs=tuple(example), verbose=False)
    return graph


def _groups(graph: Any, network: Network, keep: Sequence[str]) -> list[Any]:
    from torch_pruning import ops

    layers = weighted(network)
    kept = {id(layers[node]) for node in layers if node in keep}
    found = []
    for group in graph.get_all_groups(root_module_types=[ops.TORCH_CONV, ops.TORCH_LINEAR]):
        targets = [dep.target for dep, _ in group]
        is_output = any(target.type == ops.OPTYPE.OUTPUT for target in targets)
        is_grouped = any(
            isinstance(target.module, nn.modules.conv._ConvNd) and 1 < target.module.groups < target.module.out_channels
            for target in targets
        )
        is_read = any(graph.is_in_channel_pruning_fn(dep.handler) for dep, _ in group)
        producers = {id(dep.target.module) for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
        if is_read and not is_output and not is_grouped and not producers & kept:
            found.append(group)
    return found


def _outputs(group: Any, network: Network) -> tuple[str, ...]:
    """The nodes of the layers that lose an output, the root first."""
    nodes = {id(layer): node for node, layer in weighted(network).items()}
    targets = [dep.target.module for dep, _ in group if dep.handler.__name__ == "prune_out_channels"]
    return tuple(dict.fromkeys(nodes[id(target)] for target in targets if id(target) in nodes))


def _with_weights(network: Network, values: Mapping[str, Any]) -> Network:
    """A copy whose layers have the scores of their weights in the place of these."""
    copied = Network(copy.deepcopy(network.module), network.layers, network.weights, network.flattened)
    with torch.no_grad():
        for node, layer in weighted(copied).items():
            layer.weight.copy_(values[node])
    return copied


def _importance(network: Network, by: By, values: Mapping[str, Any] | None) -> Callable[[Any], Any]:
    from torch_pruning import importance

    if by != "entropy":
        magnitude: Callable[[Any], Any] = importance.MagnitudeImportance(p=2 if by == "magnitude" else 1)
        return magnitude
    assert values is not None
    nodes = {id(layer): node for node, layer in weighted(network).items()}
    return lambda group: _mean_entropy(group, nodes, values)


def _mean_entropy(group: Any, nodes: Mapping[int, str], values: Mapping[str, Array]) -> torch.Tensor | None:
    """Over the layers that take the channel in; a flattened picture has several columns of one channel."""
    sums = np.zeros(len(group[0].idxs))
    counts = np.zeros(len(group[0].idxs))
    for place, (dep, columns) in enumerate(group):
        if dep.handler.__name__ == "prune_in_channels" and id(dep.target.module) in nodes:
            roots = group[place].root_idxs
            np.add.at(sums, roots, values[nodes[id(dep.target.module)]][columns])
            np.add.at(counts, roots, 1)
    return torch.from_numpy(sums / np.maximum(counts, 1)) if counts.all() else None
