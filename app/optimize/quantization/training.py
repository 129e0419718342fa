"""Quantisation-aware training: the network learns with its rounding in the loop, and is then quantised as any other.

Weights and activations are rounded forwards as the file will round them; backwards the gradient passes as if they were
not (Y. Bengio, N. Léonard, A. Courville, Estimating or Propagating Gradients Through Stochastic Neurons, 2013;
https://arxiv.org/abs/1308.3432), and none passes where a range cuts off. The method is B. Jacob et al.'s, Quantization
and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import onnx
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from app.errors import InvalidContent
from app.optimize.derived import Progress
from app.optimize.examples import Examples, pick
from app.optimize.networks import onnx_graph as graphs
from app.optimize.networks.fine_tune import EpochLoss, Recipe, Rows, answers, fine_tune, reproducible, to_logits
from app.optimize.networks.torch_network import Network, read_network, write_weights
from app.optimize.quantization.method import Method
from app.registry.manifest import ClassificationAnswer

_SUMS = (operator.add, torch.add)


@dataclass(frozen=True, slots=True)
class Trained:
    """`model` is the float network with its new weights; `trained_on` the inputs that were learnt from."""

    model: onnx.ModelProto
    trained_on: int
    losses: tuple[EpochLoss, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """`training` is learnt from, all of it; the ranges of activations come from `size` of `calibration`. `recipe.alpha`
    weighs the labels of `training` against the parent's answers."""

    training: Examples
    calibration: Examples
    size: int
    recipe: Recipe


def train(
    model: onnx.ModelProto, answer: object, method: Method, lesson: Lesson, progress: Progress, most: int | None = None
) -> Trained:
    """`model` is `Quantizer.float_model`; `most` is the largest whole number of a weight (by `method` if None).

    Raises InvalidContent where the network cannot be read into torch, is no classifier, or has nothing to round.
    """
    if not isinstance(answer, ClassificationAnswer):
        raise InvalidContent("--scheme qat is for classifiers: their answers are what is learnt from")
    whole, network = read_network(model), read_network(model)
    recipe = lesson.recipe
    rows = _read(model, lesson.training, lesson.training.count, recipe.seed)
    ranges = _read(model, lesson.calibration, lesson.size, recipe.seed)
    if most is None:
        most = 64 if method.reduce_range else 127
    with reproducible(recipe.threads):
        with torch.no_grad():
            parent = answers(_logits(whole, model, answer), rows, progress("the parent's answers", len(rows)))
        _round_activations(network, model, method, ranges, progress("ranges", len(ranges)))
        layers = _round_weights(network, method, most)
        weights = [parameter for layer in layers for parameter in layer.parameters()]
        advance = progress("training", recipe.epochs * len(rows))
        losses = fine_tune(_logits(network, model, answer), weights, rows, parent, recipe, advance=advance)
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return Trained(onnx.load_from_string(write_weights(network, model)), len(rows), tuple(losses))


class _RoundedWeight(nn.Module):
    """Symmetric, with a scale for each output channel, from -most to most."""

    def __init__(self, most: int, axis: int) -> None:
        super().__init__()
        self._most, self._axis = most, axis

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        others = [axis for axis in range(weight.dim()) if axis != self._axis]
        scale = weight.detach().abs().amax(others).clamp(min=torch.finfo(weight.dtype).tiny) / self._most
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, self._axis, -self._most, self._most)


class _RoundedActivation(nn.Module):
    """In 8 bits, from the least to the largest value that was seen before `is_open` was taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = True
        self._least, self._largest = 0.0, 0.0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.is_open:
            self._least = min(self._least, float(values.min()))
            self._largest = max(self._largest, float(values.max()))
            return values
        if self._least == self._largest:
            return values
        scale = (self._largest - self._least) / 255
        zero_point = round(-self._least / scale)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)


def _read(model: onnx.ModelProto, examples: Examples, size: int, seed: int) -> Rows:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    most_rows = min((value.type.tensor_type.shape.dim[0].dim_value for value in inputs), default=0) or None
    return Rows(examples, [value.name for value in inputs], pick(examples.count, size, seed), most_rows)


def _logits(network: Network, model: onnx.ModelProto, answer: ClassificationAnswer) -> Callable[..., torch.Tensor]:
    place = [value.name for value in model.graph.output].index(answer.output)

    def logits(*inputs: torch.Tensor) -> torch.Tensor:
        found = network.module(*inputs)
        return to_logits(found[place] if isinstance(found, tuple) else found, answer.activation == "none")

    return logits


def _round_weights(network: Network, method: Method, most: int) -> list[nn.Module]:
    """The layers whose weights are rounded from now on."""
    layers = []
    for name, node in network.layers.items():
        layer = network.module.get_submodule(name)
        if node not in method.keep_float and getattr(layer, "weight", None) is not None and layer.weight.dim() > 1:
            axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
            parametrize.register_parametrization(layer, "weight", _RoundedWeight(most, axis))
            layers.append(layer)
    if not layers:
        raise InvalidContent("there is nothing to train with rounding: no layer with weights that is not kept in float")
    return layers


def _round_activations(
    network: Network, model: onnx.ModelProto, method: Method, rows: Rows, advance: Callable[[], None]
) -> None:
    """What layers and sums read is rounded, as ONNX Runtime does it; ranges by MinMax over `rows`."""
    graph = network.module.graph
    layers = {name for name, node in network.layers.items() if node not in method.keep_float}
    rounded: list[_RoundedActivation] = []
    sources: dict[fx.Node, list[fx.Node]] = {}
    after_layer: set[fx.Node] = set()
    has_bytes = bool(graphs.quantised_inputs(model))
    for node in graph.nodes:
        if node.target in network.layers or any(one in after_layer for one in node.all_input_nodes):
            after_layer.add(node)
        is_layer = node.op == "call_module" and node.target in layers
        if is_layer or (node.op == "call_function" and node.target in _SUMS):
            for source in node.all_input_nodes:
                # A photo's bytes have 8 bits already.
                if source.op != "get_attr" and (source in after_layer or not has_bytes):
                    sources.setdefault(source, []).append(node)
    for number, (source, readers) in enumerate(sources.items()):
        name = f"rounded_{number}"
        rounded.append(_RoundedActivation())
        network.module.add_submodule(name, rounded[-1])
        with graph.inserting_after(source):
            made = graph.call_module(name, (source,))
        for reader in readers:
            reader.replace_input_with(source, made)
    network.module.recompile()
    answers(lambda *inputs: _first(network.module(*inputs)), rows, advance)
    for one in rounded:
        one.is_open = False


def _first(found: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return found[0] if isinstance(found, tuple) else found
