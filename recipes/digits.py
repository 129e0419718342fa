"""Builds models/digits 1.0.0 and 1.1.0 from the handwritten digits that scikit-learn carries.

    pip install -e '.[recipes]'
    python recipes/digits.py

1.0.0 is a multinomial logistic regression, 1.1.0 a small multilayer perceptron; both take the 64 pixels of an 8 × 8
picture (0 white … 16 black). Data, split and seed are fixed, so that one machine gives one digest.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
from onnx import TensorProto, helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from threadpoolctl import threadpool_limits

from app import load
from app.tensors import Array
from recipes import machine, registry
from recipes.cards import write_card

NAME, INPUT, OUTPUT, PIXELS, CLASSES = "digits", "pixels", "probabilities", 64, 10
LOGISTIC, PERCEPTRON = "1.0.0", "1.1.0"
SEED = 0
TEST_SHARE = 0.25
OPSET = 21
LICENCE = "Apache-2.0"
TRAINED_ON = "1347 of the 1797 rows of scikit-learn's load_digits (UCI optical recognition of handwritten digits)"
DATA = "scikit-learn load_digits (UCI optical recognition of handwritten digits, test part), held out rows"
# Chosen by 5-fold cross-validation on the training rows (0.965 and 0.977), never on the held out ones.
PARAMETERS: Mapping[str, dict[str, Any]] = {
    LOGISTIC: {"C": 1.0, "max_iter": 1000},
    PERCEPTRON: {"hidden_layer_sizes": (100,), "alpha": 0.1, "max_iter": 1000, "random_state": SEED},
}
ALGORITHMS = {LOGISTIC: "multinomial logistic regression", PERCEPTRON: "multilayer perceptron, 100 hidden units (ReLU)"}


@dataclass(frozen=True, slots=True)
class Digits:
    """The fixed split: pixels [n, 64] float32 in 0…16, and the digits they show."""

    train_pixels: Array
    test_pixels: Array
    train_digits: Array
    test_digits: Array


def main() -> None:
    options = parse_options(__doc__, sys.argv[1:])
    digits = split_digits()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        for version in (LOGISTIC, PERCEPTRON):
            build(models, version, digits, options.date)
            registry.publish(models / NAME / version, options.models / NAME / version)
    registry.write_release(options.models / NAME, PERCEPTRON, also_serve=[LOGISTIC])
    for version in (LOGISTIC, PERCEPTRON):
        accuracy, _ = score(options.models, NAME, version, digits)
        sys.stdout.write(f"{NAME}@{version}: {accuracy:.2%} of {len(digits.test_digits)} held out rows\n")


def split_digits() -> Digits:
    pixels, digits = load_digits(return_X_y=True)
    split = train_test_split(pixels, digits, test_size=TEST_SHARE, random_state=SEED, stratify=digits)
    train_pixels, test_pixels, train_digits, test_digits = split
    return Digits(train_pixels.astype(np.float32), test_pixels.astype(np.float32), train_digits, test_digits)


def train(version: str, digits: Digits) -> Pipeline:
    # One thread: the order of the sums, and so the weights, depend on it.
    with threadpool_limits(1):
        return untrained(version).fit(digits.train_pixels, digits.train_digits)


def untrained(version: str) -> Pipeline:
    """The pixels scaled to 0…1, then the classifier of `version`."""
    kind = LogisticRegression if version == LOGISTIC else MLPClassifier
    return make_pipeline(MinMaxScaler(), kind(**PARAMETERS[version]))


def build(models: Path, version: str, digits: Digits, date: str) -> None:
    """Train, export, measure and describe one version in the registry `models`."""
    directory = models / NAME / version
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(export(train(version, digits)))
    (directory / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(CLASSES)), encoding="utf-8")
    registry.write_version(directory, manifest(version))
    record_golden(models, NAME, version, digits)
    evaluation = _evaluate(models, version, digits) | {"date": date}
    registry.write_version(directory, _final_manifest(version, evaluation, digits))
    _write_card(directory, version, evaluation)
    load(f"{NAME}@{version}", models=models)  # digests, signature, golden answers: as a server checks them


def _evaluate(models: Path, version: str, digits: Digits) -> dict[str, Any]:
    accuracy, macro_f1 = score(models, NAME, version, digits)
    return {
        "data": DATA,
        "n": len(digits.test_digits),
        "top1": round(accuracy, 4),
        "macro_f1": round(macro_f1, 4),
        "latency_ms": latency(models, NAME, version, digits),
        "rss_mb": machine.loaded_rss_mb(models, f"{NAME}@{version}"),
        "threads": 1,
        **machine.describe_machine(("numpy", "onnxruntime", "scikit-learn", "skl2onnx")),
    }


def export(pipeline: Pipeline) -> bytes:
    """One ONNX file, float32 pixels to float32 probabilities; the converter's label output is left out."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs

    classifier = pipeline.steps[-1][1]
    model = to_onnx(
        pipeline,
        initial_types=[(INPUT, FloatTensorType([None, PIXELS]))],
        options={id(classifier): {"zipmap": False}},
        target_opset=OPSET,
    )
    model = select_model_inputs_outputs(model, outputs=[OUTPUT])
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _strip(model: onnx.ModelProto) -> None:
    """Drop producer and random graph name, and give the output the shape that it has."""
    for field in ("producer_name", "producer_version", "doc_string", "metadata_props", "domain"):
        model.ClearField(field)
    # The converter lists the operator sets in the order of a hash, another one in each process.
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.graph.name = NAME
    model.graph.ClearField("doc_string")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def manifest(version: str) -> dict[str, Any]:
    """All of model.yaml that is known before anything has run."""
    answer = {"type": "classification", "output": OUTPUT, "activation": "none", "labels": "labels.txt"}
    return {
        "schema": 1,
        "name": NAME,
        "version": version,
        "task": "tabular-classification",
        "runtime": "onnx",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, PIXELS]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, CLASSES]}],
        "batch": {"axis": 0, "max_size": 64, "max_wait_ms": 0},
        "limits": {"queue": 1024, "max_run_seconds": 5, "deadline_ms": 10000},
        "processing": {"type": "tensor"},
        "answer": answer,
        "licence": LICENCE,
    }


def _final_manifest(version: str, evaluation: Mapping[str, Any], digits: Digits) -> dict[str, Any]:
    parameters = {key: str(value) for key, value in PARAMETERS[version].items()}
    parameters["scaling"] = "each pixel to 0…1 by its range in the training rows"
    parameters |= {"rows": str(len(digits.train_digits)), "split_seed": str(SEED)}
    training = {"algorithm": ALGORITHMS[version], "data": TRAINED_ON, "parameters": parameters}
    golden = {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.001}
    return manifest(version) | {"golden": golden, "training": training, "evaluation": [dict(evaluation)]}


def record_golden(models: Path, name: str, version: str, digits: Digits) -> None:
    """What the version answers to the first held out picture of each digit."""
    model = load(f"{name}@{version}", models=models)
    requests = []
    for digit in range(CLASSES):
        row = digits.test_pixels[np.argmax(digits.test_digits == digit)].astype(int).tolist()
        requests.append({"inputs": [row], "top": registry.top_of(model.predict(row))})
    registry.write_golden(models / name / version, requests)


def score(models: Path, name: str, version: str, digits: Digits) -> tuple[float, float]:
    """Accuracy and macro F1 on the held out rows, through the served path."""
    model = load(f"{name}@{version}", models=models)
    predicted = [row[0].index for row in model.predict(digits.test_pixels, top_k=1)]
    accuracy = float(np.mean(predicted == digits.test_digits))
    return accuracy, float(f1_score(digits.test_digits, predicted, average="macro"))


def latency(models: Path, name: str, version: str, digits: Digits) -> dict[str, float]:
    """Percentiles of one row at a time on one thread, in ms."""
    model = load(f"{name}@{version}", models=models)
    times = []
    for row in np.tile(digits.test_pixels, (2, 1)):
        started = time.perf_counter()
        model.predict(row)
        times.append((time.perf_counter() - started) * 1e3)
    return {f"p{p}": round(float(np.percentile(times, p)), 3) for p in (50, 95)}


def _write_card(directory: Path, version: str, evaluation: Mapping[str, Any]) -> None:
    times = evaluation["latency_ms"]
    parameters = ", ".join(f"{key} {value}" for key, value in PARAMETERS[version].items())
    write_card(
        directory / "README.md",
        name=NAME,
        version=version,
        summary=f"Handwritten digits of 8 × 8 pixels to 0…9: {ALGORITHMS[version]}.",
        task="tabular classification",
        input=f"`{INPUT}` FP32 [n, {PIXELS}]: the rows of the picture one after the other, 0 (white) to 16 (black)",
        output=f"`{OUTPUT}` FP32 [n, {CLASSES}]",
        licence=LICENCE,
        recipe="`recipes/digits.py`",
        bytes=(directory / "model.onnx").stat().st_size,
        measured=[
            ("Data", f"{evaluation['n']} held out rows of scikit-learn's bundled digits"),
            ("Accuracy, macro F1", f"{evaluation['top1']:.1%}, {evaluation['macro_f1']:.3f}"),
            ("One row, one thread", f"p50 {times['p50']} ms, p95 {times['p95']} ms in process"),
            ("CPU", evaluation["cpu"]),
        ],
        origin=f"{TRAINED_ON}, split with seed {SEED}; parameters {parameters}.",
        limits="An example of a tabular model with two versions. Pictures must be scaled and centred as those of the "
        "data set are (bitmaps of 32 × 32 counted down to 8 × 8); what is no digit still gets a digit.",
    )


def parse_options(doc: str | None, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="the registry to write to")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date of the evaluation")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
