"""A pruned version in a directory: what is left of its accuracy, its file, its card, and when it is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sklearn.metrics import accuracy_score

from app import load
from app.errors import InvalidContent
from app.optimize.examples import find_examples, find_labelled
from app.optimize.networks.fine_tune import Recipe
from app.optimize.pruning.method import Amount, Method
from app.optimize.pruning.network import Pruning
from app.optimize.pruning.version import PICTURE, Outcome, Wishes, prune_version
from app.registry.drafting.draft import write_manifest
from app.registry.manifest import read_manifest
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.runtimes.packed import read_model_file
from recipes.digits import split_digits
from tests.fixtures_models import write_model
from tests.fixtures_prune import Counter, write_cnn
from tests.running import ROOT

HALF = Method("magnitude", Amount("sparsity", 0.5))
SHORT = Recipe(epochs=1, learning_rate=1e-3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_cnn(tmp_path / "models")
    return Store(tmp_path / "models")


@pytest.fixture
def parent(store: Store) -> Servable:
    return Opener(store).open(ModelRef.parse("cnn@1.0.0")).servable


def wishes_for(parent: Servable, store: Store, method: Method = HALF, **changes: object) -> Wishes:
    beside = store.root.parent
    train, test = (find_labelled(parent, beside / name) for name in ("train.npz", "test.npz"))
    return replace(Wishes(method, test, train, SHORT, size=400, sensitivity_size=50), **changes)  # type: ignore[arg-type]


def prune(parent: Servable, store: Store, wishes: Wishes, progress: Counter | None = None) -> tuple[Path, Outcome]:
    directory = store.root.parent / "work" / "cnn" / "1.1.0"
    return directory, prune_version(store, parent, directory, wishes, progress or Counter())


def layer_weights(path: Path) -> list[np.ndarray]:
    graph = onnx.load_from_string(read_model_file(path)).graph
    return [array for array in map(numpy_helper.to_array, graph.initializer) if array.ndim in (2, 4)]


def test_half_of_the_weights_cost_no_point_and_are_stored_in_less(store: Store, parent: Servable) -> None:
    progress = Counter()
    directory, outcome = prune(parent, store, wishes_for(parent, store), progress)
    assert all(done == total for done, total in progress.steps.values()), progress.steps
    assert {"refitting layers", "fine-tuning", "layer by layer", "measuring"} <= set(progress.steps)
    measured, manifest = outcome.measured, read_manifest(directory)
    assert measured is not None
    assert measured.lost_points is not None
    assert measured.lost_points <= 1.0
    assert outcome.pruned.gone == pytest.approx(0.5, abs=1e-4)
    packed = directory / "model.onnx.gz"
    assert packed.stat().st_size <= 0.6 * (parent.directory / "model.onnx").stat().st_size
    arrays = layer_weights(packed)
    assert sum(int(np.count_nonzero(array)) for array in arrays) == outcome.pruned.weights[1]
    depthwise = next(array for array in arrays if array.shape[1:] == (1, 3, 3) and len(array) == 16)
    assert np.count_nonzero(depthwise) == depthwise.size or outcome.layers[0].weights == 144
    answers = load("cnn@1.1.0", models=directory.parent.parent).predict(split_digits().test_pixels, top_k=1)
    top1 = accuracy_score(split_digits().test_digits, [row[0].index for row in answers])
    assert measured.after.top1 == pytest.approx(top1)
    assert manifest.parent is not None
    assert manifest.parent.parameters == {
        "by": "magnitude", "structure": "weight", "sparsity": "0.5", "seed": "0", "schedule": "once",
        "depthwise": "false", "fine_tune": "train.npz", "fine_tune_size": "400", "epochs": "1",
        "learning_rate": "0.001", "batch_size": "32", "alpha": "1", "temperature": "2", "threads": "1",
    }  # fmt: skip
    figures = {one.name: one for one in manifest.parent.figures}
    assert (figures["gone"].version, figures["multiply_adds"].parent) == (0.5, figures["multiply_adds"].version)
    card = (directory / "README.md").read_text()
    assert f"]({PICTURE})" in card
    assert "The time of a run stays what it was" in card
    assert "| layer | weights | gone | sensitivity |" in card
    assert b"</svg>" in (directory / PICTURE).read_bytes()


def test_channels_save_multiply_adds(store: Store, parent: Servable) -> None:
    method = Method("magnitude", Amount("fewer_flops", 0.3), "channel", multiple=4)
    directory, outcome = prune(parent, store, wishes_for(parent, store, method))
    before, after = outcome.pruned.multiply_adds
    assert after <= 0.7 * before
    assert outcome.measured is not None
    assert outcome.measured.lost_points is not None
    assert outcome.measured.lost_points <= 1.5
    assert (directory / "model.onnx").stat().st_size < 0.8 * (parent.directory / "model.onnx").stat().st_size
    by_name = {layer.name: layer for layer in outcome.layers}
    left, whole = by_name["wide/Conv"].channels or (0, 0)
    assert (whole, left % 4) == (48, 0)
    assert by_name["head/Gemm"].channels == (10, 10)
    # the channels that a sum adds up go together, and so does the depthwise convolution between
    assert by_name["stem/Conv"].channels == by_name["back/Conv"].channels == by_name["deep/Conv"].channels
    assert "fewer multiply-adds" in (directory / "README.md").read_text()


@pytest.mark.parametrize(
    "method",
    [
        Method("gradient", Amount("percentile", 40), schedule="gradual", depthwise=True),
        Method("gradient", Amount("sparsity", 0.3), "channel"),
        Method("entropy", Amount("percentile", 25), "channel"),
        Method("magnitude", Amount("threshold", 0.02), keep=("head/Gemm",)),
    ],
    ids=str,
)
def test_every_criterion_gives_the_same_file_again(store: Store, parent: Servable, method: Method) -> None:
    model = onnx.load(parent.directory / "model.onnx")
    train = find_labelled(parent, store.root.parent / "train.npz")
    files = []
    for _ in range(2):
        pruning = Pruning(model, parent, method, Recipe(epochs=1, alpha=0.5), train, Counter())
        files.append(pruning.run(train, 64).model)
    assert files[0] == files[1]
    zeros = {layer.name: layer.zeros for layer in pruning.reports(None)}
    assert max(zeros.values()) > 0.1
    assert all(zeros[name] == 0 for name in method.keep)


def test_refitting_alone_brings_accuracy_back(store: Store, parent: Servable) -> None:
    method, still = Method("magnitude", Amount("percentile", 85)), Recipe(epochs=1, learning_rate=0)
    model = onnx.load(parent.directory / "model.onnx")
    train, test = (find_labelled(parent, store.root.parent / name) for name in ("train.npz", "test.npz"))
    top1 = {}
    for training in (None, train):
        pruning = Pruning(model, parent, method, still, train, Counter())
        assert pruning.run(training, 400).gone == pytest.approx(0.85, abs=1e-3)
        sensitivity = pruning.weigh(test, 450)
        top1[training is not None] = sensitivity.pruned
    assert top1[True] > top1[False] + 0.05


def test_what_loses_too_much_names_the_layers(store: Store, parent: Servable) -> None:
    method = Method("magnitude", Amount("percentile", 97))
    wishes = wishes_for(parent, store, method, training=None, size=1)
    with pytest.raises(InvalidContent) as refused:
        prune(parent, store, wishes)
    text = str(refused.value)
    assert text.startswith("not registered: it loses ")
    assert "the layers that hurt most are " in text
    assert "% when it alone is pruned)" in text
    assert "--keep " in text
    assert "or fine-tune with --fine-tune" in text


def test_sensitivity_is_the_accuracy_with_one_layer_pruned(store: Store, parent: Servable) -> None:
    method = Method("magnitude", Amount("percentile", 90))
    _, outcome = prune(
        parent, store, wishes_for(parent, store, method, training=None, max_drop=100, sensitivity_size=450)
    )
    assert outcome.measured is not None
    assert outcome.sensitivity is not None
    model = onnx.load(parent.directory / "model.onnx")
    weight = next(one for one in model.graph.initializer if tuple(one.dims) == (48, 16, 3, 3))
    array = numpy_helper.to_array(weight).copy()
    array[np.abs(array) <= np.sort(np.abs(array).ravel())[round(0.9 * array.size) - 1]] = 0
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    copied = store.root.parent / "alone" / "cnn" / "1.0.0"
    shutil.copytree(parent.directory, copied)
    write_pruned(copied, model.SerializeToString())
    answers = load("cnn@1.0.0", models=copied.parent.parent).predict(split_digits().test_pixels, top_k=1)
    top1 = accuracy_score(split_digits().test_digits, [row[0].index for row in answers])
    assert {one.name: one.top1 for one in outcome.layers}["wide/Conv"] == pytest.approx(top1)
    shares = dict(outcome.sensitivity.curve)
    assert outcome.sensitivity.whole == outcome.measured.before.top1
    assert shares[0.9] == outcome.sensitivity.pruned == outcome.measured.after.top1


def write_pruned(directory: Path, model: bytes) -> None:
    (directory / "model.onnx").write_bytes(model)
    content = read_manifest(directory).model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"files"})
    write_manifest(directory, content)


def test_what_cannot_be_pruned(store: Store, parent: Servable, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "digits-cascade", store.root / "digits-cascade")
    shutil.copytree(ROOT / "models" / "digits", store.root / "digits")
    write_model(store.root, "sum", kind="sum")
    beside = store.root.parent
    np.save(tmp_path / "rows.npy", np.ones((4, 3), np.float32))
    for name, says in (("digits-cascade", "is a composition"), ("sum", "has no layer that can be pruned")):
        version = sorted(path.name for path in (store.root / name).iterdir() if path.is_dir())[0]
        other = Opener(store).open(ModelRef.parse(f"{name}@{version}")).servable
        rows = (
            find_examples(other, tmp_path / "rows.npy") if name == "sum" else find_labelled(other, beside / "test.npz")
        )
        with pytest.raises(InvalidContent, match=says):
            prune(other, store, Wishes(HALF, rows))
    with pytest.raises(InvalidContent, match="--keep nose: there is no layer 'nose'; there are "):
        prune(parent, store, wishes_for(parent, store, replace(HALF, keep=("nose",))))
    few = Method("magnitude", Amount("sparsity", 0.1), "channel", multiple=64)
    with pytest.raises(InvalidContent, match="no channel goes: layers keep a multiple of 64"):
        prune(parent, store, wishes_for(parent, store, few))
