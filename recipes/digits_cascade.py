"""Builds models/digits-cascade 1.0.0: digits 1.0.0 first, and digits 1.1.0 where that is not sure.

    pip install -e '.[recipes]'
    python recipes/digits_cascade.py

Needs models/digits (recipes/digits.py). The confidence is chosen by 5-fold cross-validation on the training rows, never
on the held out ones: the smallest at which the cascade is right as often as the second step alone.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from app import load
from app.engine.call import Call
from app.engine.inference import Inference
from app.registry.servables.servable import Content
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.tensors import Array
from recipes import digits as steps
from recipes import machine, registry
from recipes.cards import write_card
from recipes.digits import Digits, parse_options, split_digits, untrained

NAME, VERSION = "digits-cascade", "1.0.0"
FIRST, SECOND = f"{steps.NAME}@{steps.LOGISTIC}", f"{steps.NAME}@{steps.PERCEPTRON}"
CHOICES = tuple(round(0.5 + 0.05 * number, 2) for number in range(10))
FOLDS = 5


def main() -> None:
    options = parse_options(__doc__, sys.argv[1:])
    data = split_digits()
    confidence = choose_confidence(data)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        shutil.copytree(options.models / steps.NAME, models / steps.NAME)
        build(models, confidence, data, options.date)
        registry.publish(models / NAME / VERSION, options.models / NAME / VERSION)
    registry.write_release(options.models / NAME, VERSION)


def choose_confidence(data: Digits) -> float:
    """From which confidence on the first step is believed."""
    first, second = (_cross_validated(version, data) for version in (steps.LOGISTIC, steps.PERCEPTRON))
    target = np.mean(second.argmax(axis=1) == data.train_digits)
    for confidence in CHOICES:
        is_sure = first.max(axis=1, keepdims=True) >= confidence
        if np.mean(np.where(is_sure, first, second).argmax(axis=1) == data.train_digits) >= target:
            return confidence
    raise SystemExit("no confidence makes the cascade as good as its second step")


def _cross_validated(version: str, data: Digits) -> Array:
    """Probabilities for each training row, of a model that has not seen it."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=steps.SEED)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fold may not converge within the iterations of the whole
        pipeline = untrained(version)
        return cross_val_predict(pipeline, data.train_pixels, data.train_digits, cv=folds, method="predict_proba")


def build(models: Path, confidence: float, data: Digits, date: str) -> None:
    """Describe and measure the version in the registry `models`."""
    directory = models / NAME / VERSION
    directory.mkdir(parents=True)
    (directory / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(steps.CLASSES)), encoding="utf-8")
    registry.write_version(directory, _manifest(confidence))
    steps.record_golden(models, NAME, VERSION, data)
    measured = _measure(models, data)
    accuracy, macro_f1 = steps.score(models, NAME, VERSION, data)
    evaluation = {
        "data": steps.DATA,
        "n": len(data.test_digits),
        "top1": round(accuracy, 4),
        "macro_f1": round(macro_f1, 4),
        "latency_ms": steps.latency(models, NAME, VERSION, data),
        "rss_mb": machine.loaded_rss_mb(models, f"{NAME}@{VERSION}"),
        "threads": 1,
        **machine.describe_machine(("numpy", "onnxruntime", "scikit-learn")),
        "date": date,
        "note": f"{measured['second']:.1%} of the rows went on to the second step; mean of one row at a time in "
        f"the same run: {measured[NAME]:.3f} ms, {FIRST} alone {measured[FIRST]:.3f}, "
        f"{SECOND} alone {measured[SECOND]:.3f}",
    }
    golden = {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.001}
    training = {
        "algorithm": "cascade of digits 1.0.0 and 1.1.0",
        "data": steps.TRAINED_ON,
        "parameters": {
            "confidence": f"the smallest of {CHOICES[0]} to {CHOICES[-1]} at which the cascade is right as often as "
            f"its second step alone, by {FOLDS}-fold cross-validation on the training rows",
        },
    }
    extra = {"golden": golden, "training": training, "evaluation": [evaluation]}
    registry.write_version(directory, _manifest(confidence) | extra)
    _write_card(directory, confidence, evaluation, measured, models, data)
    load(f"{NAME}@{VERSION}", models=models)  # the steps, the labels, the golden answers: as a server checks them


def _manifest(confidence: float) -> dict[str, Any]:
    step = steps.manifest(steps.PERCEPTRON)
    composition = {"type": "cascade", "steps": [{"model": FIRST, "confidence": confidence}, {"model": SECOND}]}
    kept = {key: step[key] for key in ("task", "inputs", "outputs", "processing", "answer", "licence")}
    return {
        "schema": 1,
        "name": NAME,
        "version": VERSION,
        "runtime": "composition",
        "composition": composition,
        **kept,
        "limits": {"deadline_ms": 10000},
    }


def _measure(models: Path, data: Digits) -> dict[str, float]:
    """Mean ms of one row at a time, of the cascade and of each step in turn; and the share that went on."""
    opened = Registry(Store(models))
    refs = (f"{NAME}@{VERSION}", FIRST, SECOND)
    resolved = [opened.open(ModelRef.parse(ref)) for ref in refs]
    inference = Inference(opened)
    seconds, second_step = [0.0] * len(refs), 0
    for row in np.tile(data.test_pixels, (3, 1)):
        for number, one in enumerate(resolved):
            call = Call(Content("tensor", ([row],)), deadline=float("inf"))
            started = time.perf_counter()
            answer = inference.predict_now(call, one)
            seconds[number] += time.perf_counter() - started
            second_step += answer.answered_by == (1,)
    rows = 3 * len(data.test_pixels)
    means = [1e3 * total / rows for total in seconds]
    return {"second": second_step / rows, NAME: means[0], FIRST: means[1], SECOND: means[2]}


def _write_card(
    directory: Path,
    confidence: float,
    evaluation: Mapping[str, Any],
    measured: Mapping[str, float],
    models: Path,
    data: Digits,
) -> None:
    alone = [
        (f"{ref} alone", f"{steps.score(models, steps.NAME, version, data)[0]:.1%}, mean {measured[ref]:.3f} ms")
        for ref, version in ((FIRST, steps.LOGISTIC), (SECOND, steps.PERCEPTRON))
    ]
    write_card(
        directory / "README.md",
        name=NAME,
        version=VERSION,
        summary=f"Handwritten digits of 8 × 8 pixels to 0…9: {FIRST}, and {SECOND} where that is less than "
        f"{confidence:g} sure.",
        task="tabular classification",
        input=f"`{steps.INPUT}` FP32 [n, {steps.PIXELS}]: the rows of the picture one after the other, 0 (white) to 16 "
        "(black)",
        output=f"`{steps.OUTPUT}` FP32 [n, {steps.CLASSES}]",
        licence=steps.LICENCE,
        recipe="`recipes/digits_cascade.py`",
        model=f"Steps | {FIRST}, {SECOND}",
        measured=[
            ("Data", f"{evaluation['n']} held out rows of scikit-learn's bundled digits"),
            ("Accuracy, macro F1", f"{evaluation['top1']:.1%}, {evaluation['macro_f1']:.3f}"),
            ("Answered by the first step", f"{1 - measured['second']:.1%} of the rows"),
            ("One row, one thread", f"mean {measured[NAME]:.3f} ms in process"),
            *alone,
            ("CPU", evaluation["cpu"]),
        ],
        origin=f"The confidence {confidence:g} is the smallest at which the cascade is right as often as its second "
        f"step alone, by {FOLDS}-fold cross-validation on the {len(data.train_digits)} training rows.",
        limits="An example of a cascade. Its second step takes hardly longer than the first, so it saves nothing here; "
        "one saves where the second step costs several times the first.",
    )


if __name__ == "__main__":
    main()
