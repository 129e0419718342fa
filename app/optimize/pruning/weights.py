"""Which weights of a network go, W' = M ⊙ W: scores by a criterion, and masks by how much is asked.

torch.nn.utils.prune makes and holds the masks; whole channels are taken out by app.optimize.pruning.channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from app.errors import InvalidContent
from app.optimize.networks.fine_tune import Rows
from app.optimize.networks.torch_network import Network
from app.optimize.pruning.method import Amount, Method

_WEIGHT = "weight"


def weighted(network: Network) -> dict[str, nn.Module]:
    """Its convolutions and linear layers, by their ONNX node."""
    return {
        node: network.module.get_submodule(name)
        for name, node in network.layers.items()
        if isinstance(network.module.get_submodule(name), (nn.modules.conv._ConvNd, nn.Linear))
    }


def prunable(network: Network, method: Method) -> dict[str, nn.Module]:
    """Those whose weights may go. Raises InvalidContent where there are none, or `method.keep` names another."""
    found = weighted(network)
    for node in method.keep:
        if node not in found:
            raise InvalidContent(f"--keep {node}: there is no layer {node!r}; there are {' '.join(found) or 'none'}")
    left = {node: layer for node, layer in found.items() if node not in method.keep}
    if method.structure == "weight" and not method.depthwise:
        left = {node: layer for node, layer in left.items() if getattr(layer, "groups", 1) == 1}
    if not left:
        raise InvalidContent(
            "the network has no layer that can be pruned: a convolution or matrix product with weights"
        )
    return left


def magnitudes(layers: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """|w| of each weight, as it is after the masks that are there."""
    return {node: layer.weight.detach().abs() for node, layer in layers.items()}


def gradients(
    network: Callable[..., torch.Tensor],
    layers: Mapping[str, nn.Module],
    rows: Rows,
    batch_size: int = 32,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, torch.Tensor]:
    """|w · ∂L/∂w| of each weight, the mean over batches: by how much the loss L would change to first order without it.

    L is the cross-entropy of the logits that `network` gives with the labels. The criterion is that of Molchanov et al.
    2017 (https://arxiv.org/abs/1611.06440) and, of single weights, of SNIP (https://arxiv.org/abs/1810.02340). Raises
    InvalidContent where `rows` have no labels.
    """
    classes = rows.classes
    if classes is None:
        raise InvalidContent(f"{rows.data} has no labels, and --by gradient takes the slope of their loss")
    weights = [layer.weight for layer in layers.values()]
    sums = [torch.zeros_like(weight) for weight in weights]
    count = 0
    for places, inputs in rows.batches(batch_size):
        loss = functional.cross_entropy(network(*inputs), classes[places.start : places.stop])
        for total, weight, slope in zip(sums, weights, torch.autograd.grad(loss, weights), strict=True):
            total += (weight.detach() * slope).abs()
        count += 1
        for _ in places:
            advance()
    return {node: total / count for node, total in zip(layers, sums, strict=True)}


def apply_masks(layers: Mapping[str, nn.Module], scores: Mapping[str, torch.Tensor], amount: Amount) -> None:
    """Mask the weights with the lowest scores; what is masked already stays so, and counts. Of equal scores those go
    that torch.topk takes."""
    if amount.kind == "sparsity":
        total = sum(layer.weight.numel() for layer in layers.values())
        wanted = round(amount.value * total) - sum(_masked(layer) for layer in layers.values())
        if wanted > 0:
            prune.global_unstructured(
                [(layer, _WEIGHT) for layer in layers.values()],
                prune.L1Unstructured,
                {(layer, _WEIGHT): scores[node] for node, layer in layers.items()},
                amount=wanted,
            )
        return
    for node, layer in layers.items():
        if amount.kind == "threshold":
            prune.custom_from_mask(layer, _WEIGHT, scores[node] >= amount.value)
            continue
        wanted = round(amount.value / 100 * layer.weight.numel()) - _masked(layer)
        if wanted > 0:
            prune.l1_unstructured(layer, _WEIGHT, wanted, scores[node])


def hold(layers: Mapping[str, nn.Module], kept: Mapping[str, torch.Tensor]) -> None:
    """Mask all but what is kept, bool in the shape of the weights."""
    for node, layer in layers.items():
        prune.custom_from_mask(layer, _WEIGHT, kept[node])


def settle(layers: Mapping[str, nn.Module]) -> None:
    """Write the masks into the weights, and let them go."""
    for layer in layers.values():
        if prune.is_pruned(layer):
            prune.remove(layer, _WEIGHT)


def _masked(layer: nn.Module) -> int:
    mask = getattr(layer, f"{_WEIGHT}_mask", None)
    return 0 if mask is None else int((mask == 0).sum())
