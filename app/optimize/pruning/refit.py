"""The weights that are left, fitted anew so that each layer gives what it gave: least squares, no gradient.

It takes few inputs and no labels, which is what makes it come before fine-tuning (He et al. 2017,
https://arxiv.org/abs/1707.06168, of channels; Hubara et al. 2021, https://arxiv.org/abs/2102.08124, of single weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from app.optimize.networks.fine_tune import Rows

# Places of a picture that are taken of each: neighbours say much the same.
_PLACES = 32
# Of the mean of the products' diagonal: keeps a weight that the inputs say little of near what it was.
_RIDGE = 1e-2
_AT_ONCE = 16


def can_refit(layer: nn.Module) -> bool:
    """Products, and convolutions of pictures."""
    return isinstance(layer, (nn.Linear, nn.Conv2d))


def input_products(
    network: Callable[..., torch.Tensor],
    layers: Mapping[str, nn.Module],
    rows: Rows,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, torch.Tensor]:
    """Σ x xᵀ of what each layer (`can_refit`) multiplies its weights with, and a 1 for the bias.

    float64 [groups, k + 1, k + 1], k being the weights of an output. `seed` says which places of a picture are taken.
    """
    places = torch.Generator().manual_seed(seed)
    sums: dict[str, torch.Tensor] = {}

    def watch(node: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            columns = _columns(layer, inputs[0], places)
            columns = torch.cat([columns, torch.ones(*columns.shape[:2], 1)], 2)
            products = (columns.transpose(1, 2) @ columns).double()
            sums[node] = sums[node] + products if node in sums else products

        return add

    hooks = [layer.register_forward_pre_hook(watch(node)) for node, layer in layers.items()]
    try:
        with torch.no_grad():
            for numbers, inputs in rows.batches(_AT_ONCE):
                network(*inputs)
                for _ in numbers:
                    advance()
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def refit(layer: nn.Module, kept: torch.Tensor, products: torch.Tensor, advance: Callable[[], None]) -> None:
    """Set the weights where `kept` is true, the rest to 0, and the bias: as near as they come to the outputs of the
    whole layer, in the mean square over the inputs of `products`, with a ridge towards the weights that they were.

    Per output, w being its weights and bias, G the products, S what is kept: (G_SS + λI) w'_S = (G w)_S + λ w_S.
    """
    has_bias = layer.bias is not None
    old = layer.weight.detach().double().flatten(1)
    mask = kept.flatten(1)
    if has_bias:
        old = torch.cat([old, layer.bias.detach().double()[:, None]], 1)
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.bool)], 1)
    else:
        products = products[:, :-1, :-1]
    new = torch.where(mask, old, 0.0)
    for row in torch.nonzero(~mask.all(1)).flatten().tolist():
        gram = products[row // (len(old) // len(products))]
        left = mask[row].nonzero().flatten()
        ridge = _RIDGE * float(gram.diagonal().mean()) + torch.finfo(torch.float64).tiny
        system = gram[left][:, left] + ridge * torch.eye(len(left), dtype=torch.float64)
        new[row, left] = torch.linalg.solve(system, gram[left] @ old[row] + ridge * old[row, left])
    with torch.no_grad():
        layer.weight.copy_(new[:, : kept[0].numel()].reshape(layer.weight.shape))
        if has_bias:
            layer.bias.copy_(new[:, -1])
    advance()


def _columns(layer: nn.Module, inputs: torch.Tensor, places: torch.Generator) -> torch.Tensor:
    """[groups, samples, k]: what one output is the product of with its k weights."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    patches = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    rows, width, count = patches.shape
    if count > _PLACES:
        patches = patches[:, :, torch.randperm(count, generator=places)[:_PLACES]]
    grouped = patches.reshape(rows, layer.groups, width // layer.groups, -1)
    return grouped.permute(1, 0, 3, 2).reshape(layer.groups, -1, width // layer.groups)
