"""Masks and the scores behind them, beside numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from app.errors import InvalidContent
from app.optimize.networks.fine_tune import Recipe, fine_tune
from app.optimize.pruning.method import Amount, Method, partial
from app.optimize.pruning.refit import input_products, refit
from app.optimize.pruning.weights import apply_masks, gradients, hold, magnitudes, settle
from app.tensors import Array
from tests.optimize.networks.test_fine_tune import CLASSES, INPUTS, rows


@pytest.fixture
def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"first": nn.Linear(4, 6), "second": nn.Conv2d(2, 5, 3), "third": nn.Linear(5, 3)}


def weights(layers: dict[str, nn.Module]) -> dict[str, Array]:
    return {name: layer.weight.detach().numpy().copy() for name, layer in layers.items()}


def test_sparsity_takes_the_smallest_of_all_layers(layers: dict[str, nn.Module]) -> None:
    before = weights(layers)
    apply_masks(layers, magnitudes(layers), Amount("sparsity", 0.4))
    settle(layers)
    every = np.concatenate([np.abs(value).ravel() for value in before.values()])
    limit = np.sort(every)[round(0.4 * len(every))]
    for name, value in weights(layers).items():
        assert value.tolist() == np.where(np.abs(before[name]) < limit, 0, before[name]).tolist()


def test_percentile_takes_as_many_percent_of_each_layer(layers: dict[str, nn.Module]) -> None:
    before = weights(layers)
    apply_masks(layers, magnitudes(layers), Amount("percentile", 25))
    settle(layers)
    for name, value in weights(layers).items():
        count = round(0.25 * value.size)
        assert np.flatnonzero(value == 0).tolist() == sorted(np.argsort(np.abs(before[name]).ravel())[:count].tolist())


def test_threshold_takes_what_scores_below(layers: dict[str, nn.Module]) -> None:
    before = weights(layers)
    apply_masks(layers, magnitudes(layers), Amount("threshold", 0.2))
    settle(layers)
    for name, value in weights(layers).items():
        assert value.tolist() == np.where(np.abs(before[name]) < np.float32(0.2), 0, before[name]).tolist()


@pytest.mark.parametrize("amount", [Amount("sparsity", 0.6), Amount("percentile", 60), Amount("threshold", 0.3)])
def test_step_by_step_comes_to_the_same(layers: dict[str, nn.Module], amount: Amount) -> None:
    scores = magnitudes(layers)
    gone = []
    for stage in range(1, 11):
        apply_masks(layers, scores, partial(amount, stage / 10))
        gone.append(sum(int((layer.weight == 0).sum()) for layer in layers.values()))
    assert gone == sorted(gone)
    gradual = {name: layer.weight.detach() == 0 for name, layer in layers.items()}
    settle(layers)
    again = {name: nn.Linear(1, 1) for name in layers}
    for name, layer in again.items():
        layer.weight = nn.Parameter(torch.ones_like(scores[name]))
    apply_masks(again, scores, amount)
    assert all(torch.equal(gradual[name], layer.weight == 0) for name, layer in again.items())


def test_schedule_is_cubic() -> None:
    values = [partial(Amount("sparsity", 0.5), share).value for share in (0.1, 0.5, 1.0)]
    assert values == pytest.approx([0.5 * (1 - 0.9**3), 0.5 * (1 - 0.5**3), 0.5])


def test_gradient_scores_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    scores = gradients(network, {"only": network}, rows(), batch_size=1)["only"].numpy()
    weight, bias = network.weight.detach().numpy(), network.bias.detach().numpy()
    wrong = softmax(INPUTS @ weight.T + bias, 1) - np.eye(3)[CLASSES]
    slopes = wrong[:, :, None] * INPUTS[:, None, :]
    assert scores == pytest.approx(np.abs(weight * slopes).mean(0), rel=1e-4, abs=1e-7)
    with pytest.raises(InvalidContent, match="has no labels, and --by gradient takes the slope"):
        gradients(network, {"only": network}, rows(classes=None))


def test_what_is_masked_stays_0_while_the_rest_learns() -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    kept = torch.tensor([[True, False, True, False]]).repeat(3, 1)
    hold({"only": network}, {"only": kept})
    before = network.weight.detach().clone()
    fine_tune(network, list(network.parameters()), rows(), torch.zeros(50, 3), Recipe(epochs=3, learning_rate=0.1))
    settle({"only": network})
    assert torch.all(network.weight[:, [1, 3]] == 0)
    assert torch.all((network.weight != before)[:, [0, 2]])


@pytest.mark.parametrize("has_bias", [True, False])
def test_refit_is_the_ridge_regression_of_numpy(has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=has_bias)
    data = rows()
    products = input_products(layer, {"only": layer}, data)["only"]
    kept = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    old = np.hstack([layer.weight.detach().numpy(), *([layer.bias.detach().numpy()[:, None]] if has_bias else [])])
    inputs = np.hstack([INPUTS, *([np.ones((50, 1))] if has_bias else [])]).astype(np.float64)
    refit(layer, kept, products, lambda: None)
    ridge = 1e-2 * np.diag(inputs.T @ inputs).mean()
    for row in (0, 2):
        left = np.append(np.flatnonzero(kept[row]), [4] if has_bias else []).astype(int)
        # ridge regression as least squares with further rows
        extended = np.vstack([inputs[:, left], np.sqrt(ridge) * np.eye(len(left))])
        wanted = np.concatenate([inputs @ old[row], np.sqrt(ridge) * old[row, left]])
        expected = np.zeros(old.shape[1])
        expected[left] = np.linalg.lstsq(extended, wanted, rcond=None)[0]
        assert layer.weight[row].detach().numpy() == pytest.approx(expected[:4], abs=1e-5)
        assert not has_bias or layer.bias.detach().numpy()[row] == pytest.approx(expected[4], abs=1e-5)
    assert layer.weight[1].detach().numpy() == pytest.approx(old[1, :4])


def test_refit_of_grouped_convolutions_brings_outputs_nearer() -> None:
    torch.manual_seed(0)
    pictures = np.random.default_rng(1).normal(size=(50, 4, 6, 6)).cumsum(2).astype(np.float32)
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    data = rows(inputs=pictures)
    products = input_products(layer, {"only": layer}, data)["only"]
    assert products.shape == (2, 19, 19)
    exact = layer(torch.from_numpy(pictures)).detach()
    kept = magnitudes({"only": layer})["only"] > 0.1
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.mul_(kept)
        masked = float((layer(torch.from_numpy(pictures)) - exact).square().mean())
        layer.weight.copy_(before)
    refit(layer, kept, products, lambda: None)
    assert torch.all(layer.weight[~kept] == 0)
    assert float((layer(torch.from_numpy(pictures)) - exact).square().mean().detach()) < masked / 2


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("sparsity", 1.0, "--sparsity must be between 0 and 1, and is 1"),
        ("percentile", 0.0, "--percentile must be between 0 and 100, and is 0"),
        ("threshold", -1.0, "--threshold must be above 0, and is -1"),
        ("fewer_flops", float("nan"), "--fewer-flops must be between 0 and 1, and is nan"),
    ],
)
def test_amounts_out_of_range(kind: Any, value: float, says: str) -> None:
    with pytest.raises(InvalidContent, match=says):
        Amount(kind, value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"by": "entropy"}, "say --structure channel"),
        ({"amount": Amount("fewer_flops", 0.3)}, "--fewer-flops takes --structure channel"),
        ({"structure": "channel", "schedule": "gradual"}, "channels are cut once"),
    ],
)
def test_methods_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidContent, match=says):
        Method(**{"by": "magnitude", "amount": Amount("sparsity", 0.5)} | options)
