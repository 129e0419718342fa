"""The statistics against SciPy and scikit-learn, versions compared by hand, and what the pictures show."""

from __future__ import annotations

import io
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from onnx import TensorProto, helper
from PIL import Image
from scipy.stats import binomtest

from app.engine.call import Answer, Call
from app.engine.inference import Inference
from app.errors import InvalidContent, RunFailed
from app.monitoring.quality import score_classes, wilson_interval
from app.optimize.charts import MOST_CLASSES, draw_accuracy, draw_charts, draw_confusion, draw_f1, shown_classes
from app.optimize.compare import (
    Comparison,
    Figures,
    compare,
    format_bytes,
    mcnemar_p_value,
    measure_memory,
    open_versions,
)
from app.optimize.evaluate import (
    Confusion,
    Evaluation,
    Sample,
    find_samples,
    macro_scores,
    record_together,
)
from app.registry.serving.lifecycle import Registry, Resolved
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import COLOUR_LABELS, onnx_file, write_composition, write_model

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
steady = settings(max_examples=200, deadline=None, database=None, derandomize=True)
counts = st.integers(0, 400)


@steady
@given(counts, counts)
@example(0, 0)
@example(30_000, 30_500)
@example(0, 5_000)
def test_mcnemar_p_value_equals_scipy(only_first: int, only_other: int) -> None:
    n = only_first + only_other
    expected = binomtest(only_first, n, 0.5).pvalue if n else 1.0
    assert mcnemar_p_value(only_first, only_other) == pytest.approx(expected, rel=1e-7, abs=1e-300)


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 kB"), (4358, "4.4 kB"), (999_999, "1000.0 kB"), (1e6, "1.0 MB")])
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


# --- versions by hand


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """colour 1.0.0, which is right, and 1.1.0, which takes red for blue and blue for red."""
    root = tmp_path / "models"
    write_model(root, "colour", kind="colour")
    write_model(root, "colour", "1.1.0", kind="colour", processing={"colour": "BGR"})
    return Store(root)


def _photos(folder: Path, shown: Sequence[str], actual: Sequence[int]) -> list[Sample]:
    folder.mkdir()
    for number, colour in enumerate(shown):
        Image.new("RGB", (6, 5), COLOURS[colour]).save(folder / f"{number}.png")
    rows = [f"{number}.png,{index}" for number, index in enumerate(actual)]
    (folder / "labels.csv").write_text("\n".join(["filename,class_index", *rows]) + "\n")
    return find_samples(folder, COLOUR_LABELS)


def _open(store: Store, *refs: str) -> list[Resolved]:
    return open_versions(store, [ModelRef.parse(ref) for ref in refs], 1)


def test_compare_by_hand(store: Store, tmp_path: Path) -> None:
    shown = ["red", "red", "green", "blue", "blue", "red"]
    samples = _photos(tmp_path / "photos", shown, [0, 0, 1, 2, 0, 1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    samples = [Sample(tmp_path / "broken.png", 0), *samples, Sample(tmp_path / "missing.png", 1)]
    steps: list[int] = []
    found = compare(
        store,
        _open(store, "colour@1.0.0", "colour@1.1.0"),
        samples,
        ratings={"colour@1.1.0": 4.5, "other@1.0.0": 1},
        progress=lambda: steps.append(1),
    )
    assert len(steps) == 8
    assert (found.labels, found.images) == (COLOUR_LABELS, 8)
    first, other = found.versions
    assert (first.name, first.evaluation.n, first.evaluation.top1, first.rating) == ("colour@1.0.0", 6, 4 / 6, None)
    assert (other.name, other.evaluation.n, other.evaluation.top1, other.rating) == ("colour@1.1.0", 6, 2 / 6, 4.5)
    assert first.top1_interval == wilson_interval(4, 6)
    assert [len(version.evaluation.unreadable) for version in found.versions] == [2, 2]
    assert set(first.matrix) == {
        Confusion("red", "red", 2),
        Confusion("red", "blue", 1),
        Confusion("green", "green", 1),
        Confusion("green", "red", 1),
        Confusion("blue", "blue", 1),
    }
    (difference,) = found.differences
    assert (difference.first, difference.other, difference.n) == ("colour@1.0.0", "colour@1.1.0", 6)
    # The two reds and the blue are right in the first alone, the blue that is said to be red in the other alone.
    assert (difference.only_first_right, difference.only_other_right) == (3, 1)
    assert difference.top1 == pytest.approx(-2 / 6)
    assert (difference.p_value, difference.is_noise) == (0.625, True)
    files = [path for path in (store.root / "colour/1.0.0").iterdir() if path.name != "model.yaml"]
    assert first.size_bytes == sum(path.stat().st_size for path in files)
    described = found.describe()
    assert described["versions"][1]["classes"][0] == {
        "label": "red", "support": 3, "precision": 0.5, "recall": 1 / 3, "f1": 0.4,
    }  # fmt: skip
    assert described["differences"][0]["is_noise"] is True


def test_compare_tells_a_difference_from_noise(store: Store, tmp_path: Path) -> None:
    samples = _photos(tmp_path / "photos", ["red"] * 6 + ["green"] * 4, [0] * 6 + [1] * 4)
    (difference,) = compare(store, _open(store, "colour@1.1.0", "colour@1.0.0"), samples).differences
    assert (difference.top1, difference.p_value, difference.is_noise) == (0.6, 2 / 2**6, False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="is read from /proc")
def test_memory_is_measured_in_a_process_of_its_own(store: Store, tmp_path: Path) -> None:
    (sample,) = _photos(tmp_path / "photos", ["red"], [0])
    memory = measure_memory(store.root / "colour/1.1.0", store, photo=sample.path)
    assert memory is not None
    assert 0 < memory.rss_bytes <= memory.peak_rss_bytes < 1e9
    with pytest.raises(
        RunFailed, match=r"colour@9\.0\.0: the process that measures its memory ended with code 1 \(.*9"
    ):
        measure_memory(store.root / "colour/9.0.0", store, photo=sample.path)


def test_size_of_a_composition_holds_its_steps(store: Store, tmp_path: Path) -> None:
    steps = ["colour@1.0.0", {"model": "colour@1.1.0"}]
    write_composition(store.root, "mean", "average", steps, kind="colour")
    samples = _photos(tmp_path / "photos", ["green"], [1])
    sizes = [
        v.size_bytes for v in compare(store, _open(store, "mean", "colour@1.0.0", "colour@1.1.0"), samples).versions
    ]
    assert sizes[0] == sizes[1] + sizes[2] + (store.root / "mean/1.0.0/labels.txt").stat().st_size


class _Watched(Inference):
    """Keeps who was asked."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.asked: list[str] = []

    def predict_now(self, call: Call, resolved: Resolved) -> Answer:
        self.asked.append(resolved.servable.version)
        return super().predict_now(call, resolved)


def test_each_image_goes_to_every_version_in_another_order(store: Store, tmp_path: Path) -> None:
    write_model(store.root, "colour", "1.2.0", kind="colour")
    samples = _photos(tmp_path / "photos", ["green"] * 4, [1] * 4)
    inference = _Watched(Registry(store))
    versions = _open(store, "colour@1.0.0", "colour@1.1.0", "colour@1.2.0")
    records = record_together(inference, versions, samples)
    a, b, c = "1.0.0", "1.1.0", "1.2.0"
    # The first image is answered twice, and counted once.
    assert inference.asked == [a, a, b, b, c, c, b, c, a, c, a, b, a, b, c]
    assert [record.summarise().n for record in records] == [4, 4, 4]


def test_open_versions_refuses_what_cannot_be_compared(store: Store) -> None:
    root = store.root
    write_model(root, "scores")
    write_model(root, "other", kind="colour", files={"labels.txt": b"red\nblue\ngreen\n"})
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gather", ["mean", "two"], ["scores"], axis=1),
    ]
    inputs, outputs = [("image", "UINT8", [-1, 4, 4, 3])], [("scores", "FP32", [-1, 2])]
    model = onnx_file(nodes, inputs, outputs, {"two": np.array([0, 1])})
    write_model(
        root,
        "two",
        kind="colour",
        files={"model.onnx": model, "labels.txt": b"red\ngreen\n"},
        outputs=[{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
    )
    for refs, message in (
        (("colour@1.0.0", "scores"), "scores is no image classifier: compare takes labelled images"),
        (("colour@1.1.0", "colour@stable"), r"colour@1\.1\.0 and colour@stable are one version, colour@1\.1\.0"),
        (("colour@1.0.0", "two"), r"colour@1\.0\.0 and two@1\.0\.0 cannot be compared: they have 3 and 2 labels"),
        (("colour@1.0.0", "other"), r"cannot be compared: class 1 is 'green' in one and 'blue' in the other"),
    ):
        with pytest.raises(InvalidContent, match=message):
            _open(store, *refs)


def test_compare_of_nothing_readable(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidContent, match=r"none of the 1 images could be read; the first: .*missing\.png"):
        compare(store, _open(store, "colour@1.0.0", "colour@1.1.0"), [Sample(tmp_path / "missing.png", 0)])


# --- pictures


def _comparison(labels: Sequence[str], versions: int, images: int, rating: float | None = None) -> Comparison:
    """Versions that are the better the slower and the larger they are."""
    random = np.random.default_rng(0)
    actual = random.integers(0, len(labels), images)
    figures = []
    for number in range(versions):
        is_right = random.random(images) < 0.6 + 0.3 * number / versions
        predicted = np.where(is_right, actual, (actual + random.integers(1, 4, images)) % len(labels))
        hits = int(np.sum(predicted == actual))
        milliseconds = 4.0 + number * 0.2
        evaluation = Evaluation(
            "photos", f"1.{number}.0", images, (), hits / images, 1.0, *macro_scores(actual, predicted),
            dict.fromkeys(("p50", "p95", "p99"), milliseconds), milliseconds, milliseconds, (),
        )  # fmt: skip
        cells = sorted(Counter(zip(actual.tolist(), predicted.tolist(), strict=True)).items())
        figures.append(
            Figures(
                evaluation, wilson_interval(hits, images), 10**6 * (1 + number), None, rating if number else None,
                score_classes(predicted, actual),
                tuple(Confusion(labels[a], labels[p], count) for (a, p), count in cells),
            )
        )  # fmt: skip
    return Comparison(tuple(labels), images, 1, tuple(figures), ())


MANY = [f"a rather long label, number {number}" for number in range(10, 70)]


def _overlapping(figure: Figure, texts: Sequence[Text]) -> list[tuple[str, str]]:
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]


def test_pictures_are_whole_and_the_same_each_time() -> None:
    comparison = _comparison(["red", "costs $5 or $6", "绿", "_blue", "x\\frac{1}{2}", "é"], 3, 60, rating=4.2)
    pictures = draw_charts(comparison)
    names = ["accuracy-latency", "f1", *(f"confusion-photos@1.{number}.0" for number in range(3))]
    assert set(pictures) == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert draw_charts(comparison) == pictures
    for name, data in pictures.items():
        if name.endswith(".png"):
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                assert min(image.size) > 300
        else:
            assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("rating", [None, 4.2, 80.0])
def test_accuracy_picture_has_the_better_corner_at_the_top_right(rating: float | None) -> None:
    figure = draw_accuracy(_comparison(MANY[:5], 6, 500, rating))
    axes = figure.axes[0]
    assert axes.xaxis_inverted()
    assert not axes.yaxis_inverted()
    assert "reversed" in axes.get_xlabel()
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    assert [text.get_text() for text in names] == [f"photos\n@1.{number}.0" for number in range(6)]
    assert _overlapping(figure, names) == []
    bubbles = [float(collection.get_sizes()[0]) for collection in axes.collections if hasattr(collection, "get_sizes")]
    assert sorted(area / bubbles[0] for area in bubbles) == pytest.approx([(n + 1) / 6 for n in range(6)])
    assert len(figure.axes) == (1 if rating is None else 2)


def test_f1_picture_shows_the_classes_that_differ_most() -> None:
    comparison = _comparison(MANY[:40], 2, 900)
    figure = draw_f1(comparison)
    tables = [{score.index: score.f1 for score in version.classes} for version in comparison.versions]
    ranked = sorted(range(40), key=lambda index: -abs(tables[0].get(index, 0) - tables[1].get(index, 0)))
    shown = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    # The labels are cut in the middle, so that they still differ.
    assert [text.rpartition(" (")[0] for text in shown] == [f"a rather long…el, number {10 + n}" for n in ranked[:10]]
    assert _overlapping(figure, [*figure.axes[0].get_yticklabels(), *figure.axes[1].get_yticklabels()]) == []
    same = replace(comparison, versions=(comparison.versions[0], comparison.versions[0]))
    assert draw_f1(same).axes[1].get_title(loc="left") == "F1 of each class is the same in all versions"


@pytest.mark.parametrize("classes", [3, 12, 13, 30, 60])
def test_confusion_picture_is_readable(classes: int) -> None:
    comparison = _comparison(MANY[:classes] if classes > 3 else list(COLOUR_LABELS), 2, 1200)
    version, shown = comparison.versions[0], shown_classes(comparison)
    figure = draw_confusion(comparison, version, shown)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "actual")
    assert axes.yaxis_inverted()
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert len(axes.get_yticklabels()) == min(classes, MOST_CLASSES)
    assert (columns[-1] == "any other") == (classes > MOST_CLASSES)
    assert _overlapping(figure, axes.get_xticklabels()) == []
    assert _overlapping(figure, axes.get_yticklabels()) == []
    assert _overlapping(figure, axes.texts) == []
    images = {score.index: score.support for score in version.classes}
    assert sum(int(text.get_text()) for text in axes.texts) == sum(images.get(index, 0) for index in shown)


def test_confusion_pictures_show_the_most_frequent_mistakes() -> None:
    comparison = _comparison(MANY, 2, 1200)
    mistakes: Counter[tuple[str, str]] = Counter()
    for cell in itertools.chain.from_iterable(version.matrix for version in comparison.versions):
        mistakes[cell.actual, cell.predicted] += cell.count if cell.actual != cell.predicted else 0
    shown = shown_classes(comparison)
    assert shown == sorted(set(shown))
    assert len(shown) <= MOST_CLASSES
    top = max(mistakes.values())
    most = [pair for pair, count in mistakes.items() if count == top]
    assert any({MANY.index(actual), MANY.index(predicted)} <= set(shown) for actual, predicted in most)
