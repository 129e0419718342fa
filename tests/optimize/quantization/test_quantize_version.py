"""A quantised version in a directory: its files, its golden answers, its figures, and when it is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from sklearn.metrics import accuracy_score

from app import load
from app.errors import InvalidContent, RegistryError
from app.optimize.derived import find_same, next_minor
from app.optimize.examples import find_examples, find_labelled
from app.optimize.quantization.method import Method
from app.optimize.quantization.version import Outcome, Wishes, quantize_version
from app.registry.manifest import read_manifest
from app.registry.servables.golden import run_golden_tests
from app.registry.servables.loading import load_servable
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.registry.storing.recycle_bin import RecycleBin
from app.registry.versions import ModelRef
from recipes.digits import split_digits
from tests.fixtures_models import onnx_file, write_composition, write_model, write_release
from tests.fixtures_quantize import write_brittle
from tests.running import ROOT

INT8 = Method("int8")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """digits 1.0.0, 1.1.0 and a brittle 1.1.1, with labelled rows beside the registry."""
    shutil.copytree(ROOT / "models" / "digits", tmp_path / "models" / "digits")
    write_brittle(tmp_path / "models", "1.1.1")
    data = split_digits()
    np.savez(tmp_path / "train.npz", pixels=data.train_pixels, class_index=data.train_digits)
    np.savez(tmp_path / "test.npz", pixels=data.test_pixels, class_index=data.test_digits)
    return Store(tmp_path / "models")


@pytest.fixture
def parent(store: Store) -> Servable:
    return Opener(store).open(ModelRef.parse("digits@1.1.0")).servable


def _wishes(parent: Servable, store: Store, method: Method = INT8, **changes: object) -> Wishes:
    beside = store.root.parent
    wishes = Wishes(method, find_examples(parent, beside / "train.npz"), find_labelled(parent, beside / "test.npz"), 50)
    return replace(wishes, **changes)  # type: ignore[arg-type]


def _quantize(parent: Servable, store: Store, wishes: Wishes, progress: Counter | None = None) -> tuple[Path, Outcome]:
    directory = store.root.parent / "work" / "digits" / "1.2.0"
    return directory, quantize_version(store, parent, directory, wishes, progress or Counter())


class Counter:
    """What was done, and how many steps of it."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def __call__(self, name: str, total: int) -> Callable[[], None]:
        count = self.steps.setdefault(name, [0, total])

        def advance() -> None:
            count[0] += 1

        return advance


def test_version_is_whole_and_says_how_it_came_to_be(store: Store, parent: Servable) -> None:
    progress = Counter()
    directory, outcome = _quantize(parent, store, _wishes(parent, store), progress)
    assert progress.steps == {"calibrating": [50, 50], "measuring": [450, 450]}
    manifest = read_manifest(directory)
    assert manifest.parent is not None
    assert (manifest.parent.version, manifest.parent.name) == ("1.1.0", None)
    how = "static INT8 QDQ, per channel, MinMax, reduce_range, 50 inputs of train.npz, seed 0"
    assert manifest.parent.how == how
    assert manifest.parent.method == "quantize"
    assert manifest.parent.parameters == {
        "to": "int8",
        "seed": "0",
        "scheme": "static",
        "reduce_range": "true",
        "calibration": "train.npz",
        "calibration_size": "50",
    }
    figures = {one.name: one for one in manifest.parent.figures}
    measured = outcome.measured
    assert measured is not None
    assert (figures["top1"].parent, figures["top1"].version) == (
        pytest.approx(measured.before.top1, rel=1e-5),
        pytest.approx(measured.after.top1, rel=1e-5),
    )
    assert (figures["agreement"].parent, figures["agreement"].version) == (None, measured.agreement)
    assert (figures["model_bytes"].parent, figures["model_bytes"].version) == (
        measured.before.size_bytes,
        (directory / "model.onnx").stat().st_size,
    )
    assert {"run_p50_ms", "run_p95_ms", "loaded_bytes", "sqnr_db"} < set(figures)
    (evaluation,) = manifest.evaluation
    assert (evaluation.data, evaluation.n) == ("test.npz", 450)
    assert evaluation.rss_mb is not None
    assert set(evaluation.latency_ms) == {"run_p50", "run_p95"}
    card = (directory / "README.md").read_text()
    assert card.startswith("# digits 1.2.0\n\ndigits 1.1.0, quantised: static INT8")
    assert "| top-1 accuracy | 98.4% | 98.4% | +0.0 points |" in card
    assert "| `MatMul/MatMulAddFusion` | Gemm | 6,400 | " in card
    assert "## Card of the parent, 1.1.0" in card
    assert "### Measured" not in card.split("## Card of the parent")[0]
    assert outcome.sha256 == manifest.files["model.onnx"].sha256


def test_figures_are_those_of_an_independent_count(store: Store, parent: Servable) -> None:
    directory, outcome = _quantize(parent, store, _wishes(parent, store, Method("int4")))
    data, measured = split_digits(), outcome.measured
    assert measured is not None
    pixels = data.test_pixels
    loaded = load("digits@1.1.0", models=store.root), load("digits@1.2.0", models=directory.parent.parent)
    answers = [np.array([row[0].index for row in model.predict(pixels, top_k=1)]) for model in loaded]
    assert measured.before.top1 == accuracy_score(data.test_digits, answers[0])
    assert measured.after.top1 == accuracy_score(data.test_digits, answers[1])
    assert measured.agreement == accuracy_score(answers[0], answers[1])
    assert measured.lost_points == pytest.approx((measured.before.top1 - measured.after.top1) * 100, abs=1e-3)
    assert measured.times_smaller == pytest.approx(31444 / (directory / "model.onnx").stat().st_size)
    exact, rounded = (
        np.array([[item.confidence for item in sorted(row, key=lambda one: one.index)] for row in rows])
        for rows in (model.predict(pixels, top_k=10) for model in loaded)
    )
    assert measured.largest_difference == pytest.approx(np.abs(exact - rounded).max(), rel=1e-4)
    decibels = 10 * np.log10(np.sum(exact**2) / np.sum((exact - rounded) ** 2))
    assert measured.sqnr_db == pytest.approx(decibels, abs=0.02)


def test_golden_answers_are_its_own(store: Store, parent: Servable) -> None:
    directory, _ = _quantize(parent, store, _wishes(parent, store, Method("int4")))
    manifest = read_manifest(directory)
    assert manifest.golden is not None
    assert (manifest.golden.tolerance, manifest.golden.top1) == (0.01, "equal")
    theirs, ours = (
        json.loads((path / "golden" / "golden.json").read_bytes())["requests"] for path in (parent.directory, directory)
    )
    assert [request["inputs"] for request in ours] == [request["inputs"] for request in theirs]
    assert [request["top"] for request in ours] != [request["top"] for request in theirs]
    made = load_servable(directory, 1)
    assert run_golden_tests(made) == 10
    made.close()


def test_calls_do_not_share_runs_where_the_range_is_one_of_all_rows(store: Store, parent: Servable) -> None:
    directory, _ = _quantize(parent, store, _wishes(parent, store, Method("int8", "dynamic")))
    assert read_manifest(directory).batch.max_size == 1
    assert parent.manifest.batch.max_size == 64


@pytest.fixture
def brittle(store: Store) -> Servable:
    return Opener(store).open(ModelRef.parse("digits@1.1.1")).servable


def test_version_that_loses_too_much_is_refused_with_its_layers(store: Store, brittle: Servable) -> None:
    with pytest.raises(InvalidContent) as caught:
        _quantize(brittle, store, _wishes(brittle, store, Method("int4")))
    text = str(caught.value)
    assert re.match(r"not registered: it loses [5-9]\d\.\d\d points of top-1 on 450 inputs, and --max-drop is 1 ", text)
    assert "hurt most are MatMul/MatMulAddFusion (" in text
    assert text.endswith("leave layers in float with --keep-float MatMul/MatMulAddFusion, or --auto, or allow more")


def test_auto_leaves_the_layer_in_float_that_hurts(store: Store, brittle: Servable) -> None:
    directory, outcome = _quantize(brittle, store, _wishes(brittle, store, Method("int4"), auto=True))
    assert outcome.method.keep_float == ("MatMul/MatMulAddFusion",)
    assert outcome.measured is not None
    assert (outcome.measured.lost_points or 0) <= 1
    parent = read_manifest(directory).parent
    assert parent is not None
    assert "in float: MatMul/MatMulAddFusion" in parent.how
    card = (directory / "README.md").read_text()
    assert " --keep-float MatMul/MatMulAddFusion" not in card.split("\n## ")[0]


def test_auto_that_does_not_help_is_refused(store: Store, parent: Servable) -> None:
    with pytest.raises(InvalidContent, match="--auto has left 1 layers in float, and that was not enough"):
        _quantize(parent, store, _wishes(parent, store, Method("int4"), max_drop=0.1, auto=True))


def test_one_layer_that_loses_too_much_is_not_proposed(store: Store, parent: Servable) -> None:
    method = Method("int4", keep_float=("MatMul/MatMulAddFusion",))
    with pytest.raises(InvalidContent, match=r"\(25\.\d dB\); allow more, or another --to$"):
        _quantize(parent, store, _wishes(parent, store, method, max_drop=0.1))


def test_without_labels_only_agreement_is_known(store: Store, parent: Servable) -> None:
    directory, outcome = _quantize(parent, store, _wishes(parent, store, Method("int4"), labelled=None, max_drop=0.0))
    measured = outcome.measured
    assert measured is not None
    assert (measured.before.top1, measured.lost_points, measured.p_value) == (None, None, None)
    assert measured.agreement is not None
    assert measured.n == 1347
    assert [entry.top1 for entry in read_manifest(directory).evaluation] == [None]


def test_same_seed_same_file_and_another_seed_another(store: Store, parent: Servable) -> None:
    digests = [_quantize(parent, store, _wishes(parent, store, seed=seed, size=20))[1].sha256 for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_same_file_is_found(store: Store, parent: Servable) -> None:
    directory, outcome = _quantize(parent, store, _wishes(parent, store))
    shutil.copytree(directory, store.root / "digits" / "1.2.0")
    assert find_same(store, "digits", outcome.sha256) == "1.2.0"
    _, again = _quantize(parent, store, _wishes(parent, store))
    assert (again.same_as, again.measured) == ("1.2.0", None)


def test_version_follows_the_highest_minor(tmp_path: Path) -> None:
    for version in ("1.0.0", "1.4.2", "1.9.0", "2.0.0"):
        write_model(tmp_path, "scores", version)
    write_release(tmp_path, "scores", "1.0.0")
    store = Store(tmp_path)
    assert next_minor(store, "scores", "1.0.0") == "1.10.0"
    assert next_minor(store, "scores", "2.0.0") == "2.1.0"
    RecycleBin(store, 30).remove("scores", "1.9.0", force=False)
    assert next_minor(store, "scores", "1.4.2") == "1.10.0"


def test_damaged_parent_is_refused(store: Store, parent: Servable) -> None:
    (parent.directory / "labels.txt").write_text("damaged")
    with pytest.raises(RegistryError, match=r"labels\.txt"):
        _quantize(parent, store, _wishes(parent, store))


def test_what_has_no_float_network_is_refused(tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        write_model(tmp_path, "scores", version)
    write_composition(tmp_path, "both", "average", ["scores@1.0.0", "scores@1.1.0"])
    rows = tmp_path / "rows.csv"
    rows.write_text("1,2,3\n" * 5)
    composed = Opener(Store(tmp_path)).open(ModelRef.parse("both@1.0.0")).servable
    photos = Opener(Store(ROOT / "models")).open(ModelRef.parse("efficientnet-lite0-tflite@1.0.0")).servable
    for parent, source, says in (
        (composed, rows, "is a composition of other versions"),
        (
            photos,
            photos.directory / "golden",
            r"is quantised already \(CONV_2D, DEPTHWISE_CONV_2D, DEQUANT",
        ),
    ):
        wishes = Wishes(Method("fp16"), find_examples(parent, source))
        with pytest.raises(InvalidContent, match=says):
            quantize_version(Store(tmp_path), parent, tmp_path / "x", wishes, Counter())


def test_regression_with_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    """One layer, whose answer can be worked out: the sum of three numbers."""
    graph = onnx.load_from_string(
        onnx_file(
            [helper.make_node("MatMul", ["x", "ones"], ["total"])],
            [("x", "FP32", [-1, 3])],
            [("total", "FP32", [-1, 1])],
            {"ones": np.ones((3, 1), np.float32)},
        )
    )
    onnx.save(graph, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    golden = b'{"requests": [{"inputs": [[1, 2, 3]], "value": 6}]}'
    names = ("model.onnx", "weights.bin")
    files = {name: (tmp_path / name).read_bytes() for name in names} | {"golden.json": golden}
    write_model(
        tmp_path / "models", "sum", kind="sum", files=files, golden={"file": "golden.json", "tolerance": 0.125}
    )  # fmt: skip
    store = Store(tmp_path / "models")
    parent = Opener(store).open(ModelRef.parse("sum@1.0.0")).servable
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).uniform(0, 10, (60, 3)).astype(np.float32))
    examples = find_examples(parent, tmp_path / "rows.npy")
    directory = tmp_path / "work" / "sum" / "1.1.0"
    outcome = quantize_version(store, parent, directory, Wishes(INT8, examples), Counter())
    assert outcome.measured is not None
    assert outcome.measured.agreement is None
    assert 0 < outcome.measured.largest_difference < 3 * 10 / 255
    manifest = read_manifest(directory)
    assert sorted(manifest.files) == ["golden.json", "model.onnx"]
    assert manifest.golden is not None
    assert manifest.golden.tolerance == 0.125
    request = json.loads((directory / "golden.json").read_bytes())["requests"][0]
    assert request["value"] == pytest.approx(6, abs=0.06)
    fails = Wishes(Method("fp16"), examples)
    with pytest.raises(InvalidContent, match="has no weights to store in FP16"):
        quantize_version(store, parent, directory, fails, Counter())
