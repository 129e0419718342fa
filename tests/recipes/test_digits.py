from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import load
from recipes.digits import LOGISTIC, PERCEPTRON, Digits, split_digits, train

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"


@pytest.fixture(scope="module")
def digits() -> Digits:
    return split_digits()


@pytest.mark.parametrize("version", [LOGISTIC, PERCEPTRON])
def test_training_again_gives_the_shipped_answers(version: str, digits: Digits) -> None:
    """scikit-learn's own answers are the independent implementation; the last bits of weights differ across CPUs."""
    trained = train(version, digits).predict_proba(digits.test_pixels)
    shipped = np.zeros_like(trained)
    for row, predictions in enumerate(load(f"digits@{version}", models=MODELS).predict(digits.test_pixels, top_k=10)):
        for item in predictions:
            shipped[row, item.index] = item.confidence
    assert np.mean(trained.argmax(axis=1) == shipped.argmax(axis=1)) >= 0.99
    assert np.mean(np.abs(trained - shipped)) < 0.005


def test_newer_version_is_better(digits: Digits) -> None:
    accuracy = {}
    for version in (LOGISTIC, PERCEPTRON):
        answers = load(f"digits@{version}", models=MODELS).predict(digits.test_pixels, top_k=1)
        accuracy[version] = np.mean([row[0].index for row in answers] == digits.test_digits)
    assert accuracy[LOGISTIC] > 0.95
    assert accuracy[PERCEPTRON] > accuracy[LOGISTIC] + 0.01


@pytest.mark.slow
def test_recipe_repeats_to_the_digest(tmp_path: Path) -> None:
    """Needs the extra `recipes`."""
    digests = []
    for run in ("first", "second"):
        command = [sys.executable, str(ROOT / "recipes/digits.py"), "--models", str(tmp_path / run)]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
        files = sorted((tmp_path / run).glob("digits/*/model.onnx"))
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]
