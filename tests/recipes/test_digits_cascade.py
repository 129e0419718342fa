from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app import load
from app.registry.manifest import read_manifest
from recipes.digits import LOGISTIC, PERCEPTRON, split_digits
from recipes.digits_cascade import choose_confidence

MODELS = Path(__file__).parents[2] / "models"


def test_answers_are_those_of_the_steps() -> None:
    """Computed from the steps' own answers: the first where it is sure, else the second."""
    pixels = split_digits().test_pixels
    first, second, cascade = (
        load(ref, models=MODELS).predict(pixels, top_k=10)
        for ref in (f"digits@{LOGISTIC}", f"digits@{PERCEPTRON}", "digits-cascade")
    )
    composition = read_manifest(MODELS / "digits-cascade" / "1.0.0").composition
    assert composition is not None
    least = getattr(composition.steps[0], "confidence", None)
    for one, two, both in zip(first, second, cascade, strict=True):
        expected = one if one[0].confidence >= least else two
        assert [item.index for item in both] == [item.index for item in expected]
        np.testing.assert_allclose(
            [item.confidence for item in both], [item.confidence for item in expected], rtol=1e-6
        )


@pytest.mark.slow
def test_confidence_is_chosen_again() -> None:
    composition = read_manifest(MODELS / "digits-cascade" / "1.0.0").composition
    assert composition is not None
    assert choose_confidence(split_digits()) == pytest.approx(
        getattr(composition.steps[0], "confidence", None), abs=0.051
    )
