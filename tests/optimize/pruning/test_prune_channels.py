"""Channels taken out: what is coupled goes together, what is dead changes nothing, counts that can be done by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from scipy.stats import entropy

from app.errors import InvalidContent
from app.optimize.examples import Examples
from app.optimize.networks.fine_tune import Rows
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
from app.optimize.pruning.method import Amount
from app.optimize.pruning.weights import weighted
from tests.fixtures_models import onnx_file
from tests.fixtures_prune import trained

EXAMPLE = (torch.from_numpy(np.linspace(0, 16, 64, dtype=np.float32)[None]),)
# Of the network in fixtures_prune, at 8 × 8 places: stem, deep, wide, back; head
WORK = 64 * (9 * 16 + 9 * 16 + 9 * 16 * 48 + 48 * 16) + 16 * 16 * 10


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load_from_string(trained()[0])


@pytest.fixture
def network(model: onnx.ModelProto) -> Network:
    return read_network(model)


def rows(count: int = 40) -> Rows:
    pixels = trained()[1].test_pixels
    read = Examples("digits", count, str, lambda number: {"pixels": pixels[number : number + 1]})
    return Rows(read, ["pixels"], range(count))


def test_coupled_layers_are_one_group(network: Network) -> None:
    found = score_channels(network, EXAMPLE, "magnitude")
    assert {frozenset(group.layers) for group in found} == {
        frozenset({"stem/Conv", "back/Conv", "deep/Conv"}),
        frozenset({"wide/Conv"}),
    }
    assert sorted(len(group.scores) for group in found) == [16, 48]
    kept = score_channels(network, EXAMPLE, "magnitude", keep=["back/Conv"])
    assert [group.layers for group in kept] == [("wide/Conv",)]


def test_group_scores_are_the_sums_of_squares(network: Network) -> None:
    (wide,) = score_channels(network, EXAMPLE, "magnitude", keep=["back/Conv"])
    layers = weighted(network)
    sums = layers["wide/Conv"].weight.square().sum((1, 2, 3)) + layers["back/Conv"].weight.square().sum((0, 2, 3))
    expected = (sums / sums.mean()).detach().numpy()
    assert wide.scores == pytest.approx(expected, rel=1e-5)


def test_a_dead_channel_changes_no_answer(model: onnx.ModelProto, network: Network) -> None:
    layers = weighted(network)
    with torch.no_grad():
        layers["wide/Conv"].weight[[3, 40]] = 0
        layers["wide/Conv"].bias[[3, 40]] = -1
    found = score_channels(network, EXAMPLE, "entropy", values=activation_entropy(network, rows()))
    wide = next(group for group in found if group.layers == ("wide/Conv",))
    assert {3, 40} <= set(np.flatnonzero(wide.scores == 0).tolist())
    pruned = cut(network, EXAMPLE, [wide], [[3, 40]])
    assert weighted(pruned)["wide/Conv"].weight.shape == (46, 16, 3, 3)
    assert weighted(network)["wide/Conv"].weight.shape == (48, 16, 3, 3)
    pixels = trained()[1].test_pixels
    answers = [
        ort.InferenceSession(write_weights(each, model)).run(None, {"pixels": pixels})[0] for each in (network, pruned)
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)


def test_multiply_adds_are_those_counted_by_hand(network: Network) -> None:
    # torch-pruning counts each bias and each step of the others, too: a few in a thousand here
    assert multiply_adds(network, EXAMPLE) == pytest.approx(WORK, rel=0.05)
    found = score_channels(network, EXAMPLE, "magnitude")
    chosen = choose_for_flops(network, EXAMPLE, found, 0.3, 4)
    left = multiply_adds(cut(network, EXAMPLE, found, chosen), EXAMPLE)
    assert 0.6 < left / multiply_adds(network, EXAMPLE) <= 0.7


def test_multiply_adds_that_channels_do_not_hold(network: Network) -> None:
    found = score_channels(network, EXAMPLE, "magnitude", keep=["back/Conv"])
    with pytest.raises(InvalidContent, match="do not hold so many"):
        choose_for_flops(network, EXAMPLE, found, 0.99, 48)


def test_entropy_is_that_of_scipy(network: Network) -> None:
    found = activation_entropy(network, rows())
    seen: list[torch.Tensor] = []
    weighted(network)["back/Conv"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network.module(*rows().batch(range(40)))
    means = seen[0].mean((2, 3)).numpy()
    for channel in range(48):
        low, high = means[:, channel].min(), means[:, channel].max()
        counts = np.histogram(means[:, channel], 32, (low, high))[0] if high > low else np.array([40])
        assert found["back/Conv"][channel] == pytest.approx(entropy(counts, base=2), abs=0.11)
    assert np.median(found["back/Conv"]) > 1


def test_choose_keeps_multiples() -> None:
    groups = [
        ChannelScores(("a",), np.arange(16.0)),
        ChannelScores(("b",), np.arange(100.0, 108.0)),
        ChannelScores(("c",), np.array([3.0, 1.0, 2.0])),
    ]
    assert choose(groups, Amount("sparsity", 0.3), 8) == [list(range(8)), [], []]
    assert choose(groups, Amount("sparsity", 0.3), 1) == [list(range(5)), [], [1, 2]]
    assert choose(groups, Amount("percentile", 50), 2) == [list(range(8)), [0, 1, 2, 3], [1]]
    assert choose(groups, Amount("threshold", 2.5), 1) == [[0, 1, 2], [], [1, 2]]
    assert choose(groups, Amount("threshold", 1000), 4) == [list(range(12)), [0, 1, 2, 3], []]


def test_columns_are_those_that_the_cut_takes(network: Network) -> None:
    found = score_channels(network, EXAMPLE, "magnitude")
    chosen = choose(found, Amount("percentile", 50), 1)
    kept = columns_kept(network, EXAMPLE, found, chosen)
    assert set(kept) == {"wide/Conv", "back/Conv", "head/Gemm"}
    pruned = weighted(cut(network, EXAMPLE, found, chosen))
    for node, mask in kept.items():
        left = pruned[node].weight.shape[1]
        assert mask.any(0).flatten(1).any(1).sum() == left if mask.dim() > 2 else int(mask[0].sum()) == left


def test_a_network_without_inner_channels_is_refused() -> None:
    weight = np.ones((64, 10), np.float32)
    node = onnx.helper.make_node("MatMul", ["pixels", "w"], ["scores"], name="only")
    file = onnx_file([node], [("pixels", "FP32", [-1, 64])], [("scores", "FP32", [-1, 10])], {"w": weight})
    with pytest.raises(InvalidContent, match="no channels between two layers"):
        score_channels(read_network(onnx.load_from_string(file)), EXAMPLE, "magnitude")
