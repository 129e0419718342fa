"""Scores against scikit-learn, and the two layouts of labelled images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from app.engine.inference import Inference
from app.errors import InvalidContent
from app.optimize.evaluate import Confusion, Evaluation, Sample, StepUse, evaluate, find_samples, macro_scores
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import COLOUR_LABELS, write_composition, write_model

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def _photo(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), COLOURS[colour]).save(path, "PNG")
    return path


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40))
def test_macro_scores_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    actual, predicted = np.array(pairs).T
    expected = precision_recall_fscore_support(actual, predicted, average="macro", zero_division=0)[:3]
    assert macro_scores(actual, predicted) == pytest.approx(expected, abs=1e-12)


def test_macro_scores_by_hand() -> None:
    # Class 0: 1 of 2 taken right, 1 of 1 found. Class 1: 1 of 1, 1 of 2. Class 2: never predicted.
    actual, predicted = np.array([0, 1, 1, 2]), np.array([0, 1, 0, 0])
    precision, recall, f1 = macro_scores(actual, predicted)
    assert precision == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert recall == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert f1 == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "as Excel writes it"])
def test_find_samples_in_a_table(tmp_path: Path, start: str) -> None:
    text = f"{start}filename,class_index,note\na.png,2,x\nsub/b.png,0,y\n"
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    assert find_samples(tmp_path, COLOUR_LABELS) == [Sample(tmp_path / "a.png", 2), Sample(tmp_path / "sub/b.png", 0)]


def test_find_samples_in_folders_by_label_or_index(tmp_path: Path) -> None:
    red, blue = _photo(tmp_path / "red" / "1.png", "red"), _photo(tmp_path / "2" / "x.PNG", "blue")
    (tmp_path / "red" / "notes.txt").write_text("no image")
    assert find_samples(tmp_path, COLOUR_LABELS) == [Sample(blue, 2), Sample(red, 0)]


TABLES = {
    "no column": ("filename,label\na.png,1\n", r"labels\.csv: lacks the column 'class_index'"),
    "empty": ("", r"labels\.csv: lacks the column 'class_index'"),
    "no rows": ("filename,class_index\n", "holds no labelled images"),
    "class too high": ("filename,class_index\na.png,3\n", r"labels\.csv, line 2: class_index '3' is not in 0…2"),
    "negative class": ("filename,class_index\na.png,0\na.png,-1\n", "line 3: class_index '-1' is not in"),
    "class by name": ("filename,class_index\na.png,red\n", "line 2: class_index 'red' is not in"),
    "another script's digit": ("filename,class_index\na.png,²\n", "line 2: class_index '²' is not in"),
    "no file": ("filename,class_index\n,1\n", "line 2: filename '' is that of no file"),
    "no file name": ("filename,class_index\na\0.png,1\n", r"line 2: filename 'a\\x00.png' is that of no file"),
    "a long cell": ("filename,class_index\n" + "a" * 200_000 + ",1\n", r"labels\.csv: is not a CSV file in UTF-8"),
    "after an empty line": ("filename,class_index\n\na.png,3\n", "line 3: class_index '3' is not in"),
    "short row": ("filename,class_index\na.png\n", "line 2: class_index '' is not in"),
}


@pytest.mark.parametrize("name", TABLES)
def test_find_samples_refuses_a_table(tmp_path: Path, name: str) -> None:
    text, message = TABLES[name]
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidContent, match=message):
        find_samples(tmp_path, COLOUR_LABELS)


def test_find_samples_refuses_a_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"filename,class_index\n\xff.png,1\n")
    with pytest.raises(InvalidContent, match=r"labels\.csv: is not a CSV file in UTF-8"):
        find_samples(tmp_path, COLOUR_LABELS)


def test_find_samples_refuses_folders(tmp_path: Path) -> None:
    with pytest.raises(InvalidContent, match="is not a folder of labelled images"):
        find_samples(tmp_path / "nowhere", COLOUR_LABELS)
    with pytest.raises(InvalidContent, match=r"holds no labelled images; it needs labels\.csv or one folder a class"):
        find_samples(tmp_path, COLOUR_LABELS)
    for name in ("purple", "3"):
        (tmp_path / name).mkdir()
        with pytest.raises(InvalidContent, match=f"{name}: is named neither like a label of the model nor"):
            find_samples(tmp_path, COLOUR_LABELS)
        (tmp_path / name).rmdir()


def _evaluate(tmp_path: Path, samples: list[Sample], progress: Callable[[], None] = lambda: None) -> Evaluation:
    write_model(tmp_path / "models", "colour", kind="colour")
    registry = Registry(Store(tmp_path / "models"))
    resolved = registry.open(ModelRef("colour"))
    try:
        return evaluate(Inference(registry), resolved, samples, progress)
    finally:
        resolved.servable.close()


def test_evaluate_by_hand(tmp_path: Path) -> None:
    shown = ["red", "red", "red", "green", "blue", "green"]
    actual = [0, 0, 1, 1, 2, 2]
    samples = [Sample(_photo(tmp_path / f"{n}.png", colour), actual[n]) for n, colour in enumerate(shown)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    samples += [Sample(tmp_path / "broken.png", 0), Sample(tmp_path / "missing.png", 0)]
    steps: list[int] = []
    result = _evaluate(tmp_path, samples, lambda: steps.append(1))
    assert len(steps) == 8
    assert (result.model, result.version, result.n) == ("colour", "1.0.0", 6)
    assert result.top1 == pytest.approx(4 / 6)
    assert result.top5 == 1.0  # of three classes
    assert result.macro_recall == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert set(result.confusions) == {Confusion("green", "red", 1), Confusion("blue", "green", 1)}
    assert [Path(line.partition(": ")[0]).name for line in result.unreadable] == ["broken.png", "missing.png"]
    assert 0 < result.latency_ms["p50"] <= result.latency_ms["p95"] <= result.latency_ms["p99"]


def test_evaluate_a_cascade_by_hand(tmp_path: Path) -> None:
    """The first step is sure of the reddest red only."""
    root = tmp_path / "models"
    write_model(root, "colour", kind="colour")
    steps = [{"model": "colour", "confidence": 1.0}, "colour@stable"]
    write_composition(root, "steps", "cascade", steps, kind="colour")
    samples = []
    for number, (value, actual) in enumerate([(255, 0), (255, 0), (255, 1), (200, 0)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (6, 5), (value, 0, 0)).save(path)
        samples.append(Sample(path, actual))
    (tmp_path / "broken.png").write_bytes(b"no image")
    registry = Registry(Store(root))
    result = evaluate(
        Inference(registry), registry.open(ModelRef("steps")), [*samples, Sample(tmp_path / "broken.png", 0)]
    )
    assert (result.n, result.top1) == (4, 0.75)
    assert result.steps == (StepUse("colour", 1.0, 0.75), StepUse("colour@stable", 0.25, 0.25))
    assert 0 < result.mean_ms < result.latency_ms["p99"] * 2


def test_evaluate_of_nothing_readable(tmp_path: Path) -> None:
    with pytest.raises(InvalidContent, match=r"none of the 1 images could be read; the first: .*missing.png"):
        _evaluate(tmp_path, [Sample(tmp_path / "missing.png", 0)])
