"""How much each layer can lose, and the whole: accuracy as ONNX Runtime computes it, several times as fast as torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
import torch
from torch import nn

from app.errors import InvalidContent
from app.optimize.examples import Examples
from app.optimize.networks.torch_network import Network, write_weights
from app.optimize.pruning.channels import ChannelScores, choose, cut
from app.optimize.pruning.method import Amount, Kind, Method
from app.optimize.pruning.weights import apply_masks, prunable, settle
from app.tensors import Tensors

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """`weights` are those before, without biases; `zeros` the share of them that is gone, as zeros or with its channel;
    `channels` the outputs left of how many, where channels went. `top1` is the accuracy in 0…1 when only this layer
    (and those that it shares its channels with) is pruned so far, without fine-tuning; None without labelled data."""

    name: str
    weights: int
    zeros: float
    channels: tuple[int, int] | None
    top1: float | None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Accuracies in 0…1 on `n` inputs of `data`: of the `whole` network, of the `pruned` one after fine-tuning, and of
    the whole with one layer pruned. `curve` is (share that goes, accuracy) without fine-tuning."""

    data: str
    n: int
    whole: float
    pruned: float
    layers: Mapping[str, float]
    curve: tuple[tuple[float, float], ...]


class Judge:
    """Top-1 accuracy of networks on the same labelled inputs, one thread."""

    def __init__(self, model: onnx.ModelProto, output: str, examples: Examples, numbers: Sequence[int]) -> None:
        self._model = model
        self._output = output
        self._rows: list[tuple[Tensors, int]] = []
        assert examples.classes is not None
        for number in numbers:
            try:
                self._rows.append((examples.read(number), examples.classes[number]))
            except (InvalidContent, OSError):
                continue  # before_after names what it leaves out of the same inputs
        if not self._rows:
            raise InvalidContent(f"{examples.data}: none of {len(numbers)} inputs can be used")
        self.data = examples.data
        self.n = len(self._rows)

    def top1(self, network: Network) -> float:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(write_weights(network, self._model), options, providers=["CPUExecutionProvider"])
        hits = [np.argmax(session.run([self._output], dict(row))[0][0]) == right for row, right in self._rows]
        return float(np.mean(hits))


def weigh_weights(
    judge: Judge,
    network: Network,
    pruned: Network,
    scores: Mapping[str, torch.Tensor],
    method: Method,
    advance: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Of single weights; `scores` are those of `network`, which has its weights back in the end."""
    amount, layers = method.amount, prunable(network, method)
    alone = {}
    for node, layer in layers.items():
        alone[node] = _masked_top1(judge, network, {node: layer}, scores, amount)
        advance()
    kind: Kind = "percentile" if amount.kind == "percentile" else "sparsity"
    curve = []
    for share in SHARES:
        part = Amount(kind, share * 100 if kind == "percentile" else share)
        curve.append((share, _masked_top1(judge, network, layers, scores, part)))
        advance()
    return Sensitivity(judge.data, judge.n, judge.top1(network), judge.top1(pruned), alone, tuple(curve))


def weigh_channels(
    judge: Judge,
    network: Network,
    pruned: Network,
    example: Sequence[torch.Tensor],
    chosen: Sequence[tuple[ChannelScores, Sequence[int]]],
    method: Method,
    advance: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Of whole channels: each group with those that go of it, alone."""
    found = [group for group, _ in chosen]
    alone: dict[str, float] = {}
    for group, channels in chosen:
        top1 = judge.top1(cut(network, example, [group], [channels]))
        alone |= dict.fromkeys(group.layers, top1)
        advance()
    kind: Kind = "percentile" if method.amount.kind == "percentile" else "sparsity"
    curve = []
    for share in SHARES:
        part = choose(found, Amount(kind, share * 100 if kind == "percentile" else share), method.multiple)
        gone = sum(map(len, part)) / sum(len(group.scores) for group in found)
        curve.append((round(gone, 4), judge.top1(cut(network, example, found, part))))
        advance()
    whole, after = judge.top1(network), judge.top1(pruned)
    return Sensitivity(judge.data, judge.n, whole, after, alone, tuple(sorted(set(curve))))


def _masked_top1(
    judge: Judge,
    network: Network,
    layers: Mapping[str, nn.Module],
    scores: Mapping[str, torch.Tensor],
    amount: Amount,
) -> float:
    """With the weights of these layers masked; they come back."""
    before = {node: layer.weight.detach().clone() for node, layer in layers.items()}
    apply_masks(layers, scores, amount)
    settle(layers)
    try:
        return judge.top1(network)
    finally:
        with torch.no_grad():
            for node, layer in layers.items():
                layer.weight.copy_(before[node])
