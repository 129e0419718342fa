"""The pictures of a measurement: what they show, and the same bytes for the same outcome."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from app.optimize.robustness.measure import Outcome
from app.optimize.robustness.pictures import draw_curve, draw_examples, draw_pictures
from app.optimize.robustness.tally import Example
from app.registry.robustness import Measurement


def _measurement(attack: str, strength: float, robust: float) -> Measurement:
    return Measurement(
        attack=attack, strength=strength, n=50, accuracy=0.9, robust_accuracy=robust, changed=0.5, data="photos",
        seed=0, how="L∞", cpu="any",
    )  # fmt: skip


def _outcome(*examples: Example) -> Outcome:
    measurements = [_measurement("fgsm", 1, 0.5), _measurement("fgsm", 4, 0.1), _measurement("fog", 3, 0.7)]
    measurements.append(_measurement("corruptions", 3, 0.6))
    return Outcome(50, "photos", "levels of 255", 0.9, tuple(measurements), examples, (), ())


def _example(shape: tuple[int, ...]) -> Example:
    before = np.full(shape, 100, np.float32)
    return Example("fgsm", 4, "cat.jpg", before, before + 4, ("a $dollar 猫", "b" * 60), (0.75, 0.5))


def test_curve_begins_at_the_clean_accuracy() -> None:
    left, right = draw_curve("m@1.0.0", _outcome()).axes
    assert [line.get_label() for line in (*left.lines, *right.lines)] == ["fgsm", "fog", "corruptions (mean)"]
    np.testing.assert_allclose(left.lines[0].get_xydata(), [[0, 90], [1, 50], [4, 10]])
    assert (left.get_xlabel(), right.get_xlabel()) == ("ε, levels of 255", "severity")


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (64,)])
def test_sheet_names_labels_before_and_after(shape: tuple[int, ...]) -> None:
    figure = draw_examples(_outcome(_example(shape)))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].endswith("\n75.0%")
    assert titles[1].startswith("bbb")
    assert "…" in titles[1]
    assert titles[2] == "fgsm, 4\nlargest change 4"


def test_pictures_are_the_same_for_the_same_outcome() -> None:
    outcome = _outcome(_example((8, 8, 3)))
    pictures = draw_pictures("m@1.0.0", outcome)
    assert set(pictures) == {"curve.png", "curve.svg", "examples.png"}
    assert pictures == draw_pictures("m@1.0.0", outcome)
    for name in ("curve.png", "examples.png"):
        Image.open(io.BytesIO(pictures[name])).verify()
    assert set(draw_pictures("m@1.0.0", _outcome())) == {"curve.png", "curve.svg"}
