"""Models of texts at the command line: added from a bare file, asked, measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from app.errors import InvalidContent, RegistryError
from app.monitoring.binning import Bins, ClassBins
from app.optimize.baseline import find_inputs
from app.optimize.examples import find_labelled
from app.registry.baseline import Baseline
from app.registry.drafting.draft import Draft, Wishes
from app.registry.manifest import read_manifest
from app.registry.servables.loading import load_servable
from tests.cli.conftest import Headway
from tests.fixtures_models import write_model, write_release

TEXTS = ["good film", "very good", "a good plot", "bad film", "very bad", "a bad plot"]
LABELS = [1, 1, 1, 0, 0, 0]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return make_pipeline(TfidfVectorizer(), LogisticRegression(C=10)).fit(TEXTS, LABELS)


@pytest.fixture
def classifier(pipeline: Pipeline, tmp_path: Path) -> Path:
    """What skl2onnx makes of a text classifier, with its labels beside it."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType

    vectorizer, regression = (step for _, step in pipeline.steps)
    model = to_onnx(
        pipeline,
        initial_types=[("text", StringTensorType([None, 1]))],
        # The converter's own locale is not in slim images, where ONNX Runtime would then refuse the file.
        options={id(regression): {"zipmap": False}, id(vectorizer): {"locale": "C.UTF-8"}},
        target_opset=21,
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "labels.txt").write_text("bad\ngood\n")
    return tmp_path / "model.onnx"


@pytest.fixture
def mood(root: Path) -> Path:
    directory = write_model(root, "mood", kind="mood")
    write_release(root, "mood", "1.0.0")
    return directory


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text('text,label\ngood,good\nbad,0\n"all, else",bad\n"",1\nbad,1\n', encoding="utf-8")
    return path


def test_a_file_with_one_string_a_row_becomes_a_text_model(
    headway: Headway, root: Path, classifier: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "one.txt").write_text("a very good film", encoding="utf-8")
    (golden / "two.txt").write_text("schlecht 很好 bad", encoding="utf-8")
    flags = ("--labels", classifier.parent / "labels.txt", "--activation", "none", "--golden", golden)
    done = headway("models", "add", classifier, "--name", "reviews", *flags)
    assert (done.code, done.err) == (0, ""), done.err
    manifest = read_manifest(root / "reviews" / "1.0.0")
    assert manifest.task == "text-classification"
    assert manifest.processing.model_dump() == {"type": "text", "max_characters": 10_000}
    requests = json.loads((root / "reviews/1.0.0/golden/golden.json").read_bytes())["requests"]
    assert [request["text"] for request in requests] == ["a very good film", "schlecht 很好 bad"]
    answer = json.loads(headway("predict", "reviews", "--text", "a good film", "--json").out)
    found = {one["label"]: one["confidence"] for one in answer["results"][0]}
    bad, good = pipeline.predict_proba(["a good film"])[0]
    assert found == {"good": pytest.approx(good, abs=1e-6), "bad": pytest.approx(bad, abs=1e-6)}


def test_content_tensor_makes_it_a_model_of_rows(classifier: Path, root: Path) -> None:
    directory = root / "rows" / "1.0.0"
    directory.mkdir(parents=True)
    labels = classifier.parent / "labels.txt"
    wishes = Wishes("rows", "1.0.0", labels=labels, activation="none", content="tensor")
    Draft(classifier, wishes).write(directory)
    assert read_manifest(directory).content_kind == "tensor"


def test_flags_that_contradict_a_text_are_refused(classifier: Path, root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "draft"
    directory.mkdir()
    with pytest.raises(InvalidContent, match="takes texts, and --resize is for photos"):
        Draft(classifier, Wishes("m", "1.0.0", image={"resize": 224})).write(directory)
    numbers = root / "scores" / "1.9.0" / "model.onnx"
    with pytest.raises(InvalidContent, match="--content text needs a model with one input"):
        Draft(numbers, Wishes("m", "1.0.0", content="text")).write(directory)


def test_a_text_may_be_in_a_file_or_come_on_stdin(headway: Headway, mood: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("good", encoding="utf-8")
    expected = [{"label": "good", "index": 1, "confidence": 0.75}, {"label": "bad", "index": 0, "confidence": 0.25}]
    for done in (
        headway("predict", "mood", tmp_path / "text.txt", "--json"),
        headway("predict", "mood", "-", "--json", stdin=b"good"),
    ):
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out)["results"] == [expected]
    assert mood.is_dir()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("mood",), 2, "a file, or --text"),
        (("scores", "--text", "good"), 1, "scores takes no texts"),
        (("mood", "--text", "x" * 21), 1, "21 characters; at most 20"),
    ],
)
def test_what_is_no_text_is_refused(
    headway: Headway, mood: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = headway("predict", *arguments, COLUMNS="400")
    assert done.code == code
    assert words in done.err
    assert mood.is_dir()


def test_evaluate_takes_a_table_of_texts(headway: Headway, mood: Path, table: Path) -> None:
    done = headway("evaluate", "mood", table, "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    # "all, else" is 0.5 for both: the first label wins.
    assert (result["n"], result["top1"]) == (4, 0.75)
    assert result["confusions"] == [{"actual": "good", "predicted": "bad", "count": 1}]
    (unreadable,) = result["unreadable"]
    assert unreadable == f"{table}, line 5: the text is empty; send at least one character that is no space"
    shown = headway("evaluate", "mood", table, COLUMNS="400").out
    assert "mood@1.0.0 on 4 texts" in shown
    assert "1 texts could not be read" in shown
    assert mood.is_dir()


def test_labelled_examples_of_a_text_model_are_tensors(mood: Path, table: Path) -> None:
    servable = load_servable(mood, 1)
    examples = find_labelled(servable, table)
    assert (examples.count, examples.classes) == (5, [1, 0, 0, 1, 1])
    assert examples.read(2)["text"].tolist() == [b"all, else"]
    assert examples.where(2) == f"{table}, line 4"
    servable.close()


def test_a_baseline_is_not_for_texts(root: Path, mood: Path, table: Path) -> None:
    servable = load_servable(mood, 1)
    with pytest.raises(InvalidContent, match="mood"):
        find_inputs(servable, table)
    servable.close()
    bins = {"length": Bins.of(np.arange(100.0))}
    answers = {"classes": ClassBins.of(np.zeros(100)), "confidence": bins["length"], "entropy": bins["length"]}
    baseline = Baseline("texts", 100, bins, **answers)
    directory = write_model(
        root, "watched", kind="mood", files={"baseline.json": baseline.to_json()}, baseline="baseline.json"
    )
    with pytest.raises(RegistryError, match="features: those of texts are not counted"):
        load_servable(directory, 1)
