"""Quantisation-aware training: what it learns, that it rounds as ONNX Runtime does, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from app.errors import InvalidContent
from app.optimize.examples import Examples, find_examples, find_labelled
from app.optimize.networks.fine_tune import Recipe
from app.optimize.networks.onnx_graph import layers
from app.optimize.quantization.method import Method
from app.optimize.quantization.quantizer import Quantizer
from app.optimize.quantization.training import Lesson, Trained, train
from app.optimize.quantization.version import Wishes, quantize_version
from app.registry.manifest import read_manifest
from app.registry.servables.golden import run_golden_tests
from app.registry.servables.loading import load_servable
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.tensors import Array
from tests.fixtures_prune import trained, write_cnn

QAT, STATIC = Method("int8", "qat"), Method("int8")
RECIPE = Recipe(epochs=2, learning_rate=2e-3)


@pytest.fixture
def parent(tmp_path: Path) -> Servable:
    """Beside the registry: train.npz, test.npz, and few.npz, which is 320 rows of the first."""
    write_cnn(tmp_path / "models")
    _, digits = trained()
    np.savez(tmp_path / "few.npz", pixels=digits.train_pixels[:320], class_index=digits.train_digits[:320])
    return Opener(Store(tmp_path / "models")).open(ModelRef.parse("cnn")).servable


def _no_progress(_name: str, _total: int) -> Callable[[], None]:
    return lambda: None


def _float_model(parent: Servable) -> onnx.ModelProto:
    quantizer = Quantizer(parent.directory / "model.onnx")
    quantizer.close()
    return quantizer.float_model


def _labelled(parent: Servable, name: str = "train.npz") -> Examples:
    return find_labelled(parent, parent.directory.parents[2] / name)


def _train(
    parent: Servable, recipe: Recipe, method: Method = QAT, most: int | None = None, data: str = "few.npz"
) -> Trained:
    examples = _labelled(parent, data)
    lesson = Lesson(examples, examples, 200, recipe)
    return train(_float_model(parent), parent.manifest.answer, method, lesson, _no_progress, most)


def _run(model: bytes, rows: Array) -> Array:
    (answer,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"pixels": rows})
    return np.asarray(answer)


def _weights(model: onnx.ModelProto) -> dict[str, Array]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: constants[node.input[1]] for name, node in layers(model).items()}


def _accuracy_rounded(model: onnx.ModelProto, most: int) -> float:
    """With each output channel of each weight rounded to -most…most by numpy, on the rows held out."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    turned = {node.input[1] for node in layers(model).values() if node.op_type == "MatMul"}
    names = {node.input[1] for node in layers(model).values()}
    for tensor in rounded.graph.initializer:
        if tensor.name in names:
            weight = numpy_helper.to_array(tensor)
            channels = np.moveaxis(weight, 1, 0) if tensor.name in turned else weight
            scale = np.abs(channels).max(axis=tuple(range(1, channels.ndim)), keepdims=True) / most
            values = np.rint(channels / scale) * scale
            values = np.moveaxis(values, 0, 1) if tensor.name in turned else values
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), tensor.name))
    _, digits = trained()
    found = _run(rounded.SerializeToString(), digits.test_pixels).argmax(axis=1)
    return float(np.mean(found == digits.test_digits))


def test_at_few_bits_it_loses_less_than_rounding_afterwards(parent: Servable) -> None:
    """Weights of -1, 0 and 1 in steps of a channel's scale, activations in 8 bits."""
    before = _float_model(parent)
    after = _train(parent, RECIPE, most=1, data="train.npz")
    assert after.trained_on == len(trained()[1].train_pixels)
    assert len(after.losses) == RECIPE.epochs
    exact, rounded, learnt = (_accuracy_rounded(*one) for one in ((before, 2**20), (before, 1), (after.model, 1)))
    assert exact > 0.93
    assert rounded < exact - 0.2
    assert learnt > exact - 0.05


def test_without_labels_the_parents_answers_are_learnt(parent: Servable) -> None:
    rows = find_examples(parent, parent.directory.parents[2] / "train.npz")
    lesson = Lesson(rows, rows, 200, Recipe(epochs=2, learning_rate=2e-3, alpha=0.0))
    learnt = train(_float_model(parent), parent.manifest.answer, QAT, lesson, _no_progress, most=1)
    assert all(loss.labels is None for loss in learnt.losses)
    assert learnt.losses[-1].parent < learnt.losses[0].parent
    assert _accuracy_rounded(learnt.model, 1) > _accuracy_rounded(_float_model(parent), 1) + 0.1


@pytest.mark.parametrize("method", [QAT, Method("int8", "qat", reduce_range=False)], ids=str)
def test_it_rounds_as_the_file_will(parent: Servable, method: Method) -> None:
    """At a learning rate of 0 its loss is that of the file that ONNX Runtime quantises, an independent computation."""
    _, digits = trained()
    rows, classes = digits.train_pixels[:320], digits.train_digits[:320]
    quantizer = Quantizer(parent.directory / "model.onnx", lambda: iter([{"pixels": rows}]))
    file = quantizer.quantize(Method("int8", reduce_range=method.reduce_range), "cnn")
    quantizer.close()
    examples = _labelled(parent, "few.npz")
    lesson = Lesson(examples, examples, examples.count, Recipe(epochs=1, learning_rate=0.0))
    result = train(_float_model(parent), parent.manifest.answer, method, lesson, _no_progress)
    answers = {name: _run(model, rows) for name, model in {"int8": file, "float": trained()[0]}.items()}
    losses = {name: -float(np.mean(np.log(found[np.arange(len(found)), classes]))) for name, found in answers.items()}
    assert result.losses[0].labels == pytest.approx(losses["int8"], rel=0.02)
    before, after = (_weights(model) for model in (_float_model(parent), result.model))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_same_seed_gives_the_same_weights(parent: Servable) -> None:
    recipe = Recipe(epochs=1, learning_rate=1e-3)
    first, second, other = (
        _train(parent, each).model.SerializeToString()
        for each in (recipe, recipe, Recipe(epochs=1, learning_rate=1e-3, seed=1))
    )
    assert first == second != other


def test_layer_that_is_kept_in_float_is_not_trained(parent: Servable) -> None:
    before = _weights(_float_model(parent))
    first, *others = before
    after = _weights(_train(parent, Recipe(epochs=1), Method("int8", "qat", keep_float=(first,))).model)
    assert np.array_equal(before[first], after[first])
    assert not any(np.array_equal(before[name], after[name]) for name in others)
    with pytest.raises(InvalidContent, match="there is nothing to train with rounding"):
        _train(parent, RECIPE, Method("int8", "qat", keep_float=tuple(before)))


def test_only_classifiers_are_trained(parent: Servable) -> None:
    examples = _labelled(parent)
    with pytest.raises(InvalidContent, match="--scheme qat is for classifiers"):
        train(_float_model(parent), None, QAT, Lesson(examples, examples, 9, RECIPE), _no_progress)


def test_version_says_what_it_learnt_from(parent: Servable) -> None:
    directory = parent.directory.parents[2] / "work" / "cnn" / "1.1.0"
    examples = _labelled(parent, "few.npz")
    wishes = Wishes(QAT, examples, _labelled(parent, "test.npz"), 100, training=examples, recipe=Recipe(epochs=2))
    store = Store(parent.directory.parents[1])
    outcome = quantize_version(store, parent, directory, wishes, _no_progress)
    made = read_manifest(directory)
    assert made.parent is not None
    assert made.parent.parameters == {
        "to": "int8", "seed": "0", "scheme": "qat", "reduce_range": "true", "calibration": "few.npz",
        "calibration_size": "100", "fine_tune": "few.npz", "fine_tune_size": "320", "epochs": "2",
        "learning_rate": "0.001", "batch_size": "32", "alpha": "1", "temperature": "2",
    }  # fmt: skip
    how = "quantisation-aware training, then static INT8 QDQ, per channel, MinMax, reduce_range, 100 inputs of few.npz"
    assert made.parent.how == f"{how}, seed 0; learnt from 320 inputs of few.npz"
    assert outcome.measured is not None
    assert (outcome.measured.lost_points or 0) <= 1
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "## Training\n| epoch | against the parent's answers | against the labels |" in card
    servable = load_servable(directory, 1)
    assert servable.manifest.golden is None or run_golden_tests(servable)
    servable.close()
