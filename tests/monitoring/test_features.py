"""Features against their definitions, worked out in float64 with scipy, and by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage, stats

from app.errors import InvalidTensor
from app.monitoring.features import image_features, output_features, text_features

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(9)


def _plain(colour: tuple[int, int, int], height: int = 20, width: int = 30) -> Array:
    return np.full((height, width, 3), colour, np.uint8)


def _smooth(height: int, width: int) -> Array:
    """Something like a photo: noise that is smooth, with a colour that changes."""
    noise = ndimage.gaussian_filter(RANDOM.normal(size=(height, width, 3)), (5, 5, 0))
    scaled = (noise - noise.min()) / (noise.max() - noise.min()) * [255, 200, 120]
    return np.asarray(scaled.astype(np.uint8))


def _expected(rgb: Array) -> dict[str, float]:
    red, green, blue = np.moveaxis(rgb.astype(np.float64), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    colour = math.hypot(red_green.std(), yellow_blue.std())
    colour += 0.3 * math.hypot(red_green.mean(), yellow_blue.mean())
    return {"brightness": float(luma.mean()), "contrast": float(luma.std()), "colour": colour}


@pytest.mark.parametrize("shape", [(224, 224), (37, 411), (1, 1), (300, 2)])
def test_image_features_by_their_definitions(shape: tuple[int, int]) -> None:
    for rgb in (
        RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8),
        _smooth(*shape) if min(shape) > 5 else _plain((9, 8, 7)),
    ):
        features, expected = image_features(rgb, 1.5), _expected(rgb)
        # Luma is rounded to whole levels.
        assert features["brightness"] == pytest.approx(expected["brightness"], abs=0.51)
        assert features["contrast"] == pytest.approx(expected["contrast"], abs=0.51)
        assert features["colour"] == pytest.approx(expected["colour"], abs=1e-9)
        assert features["size"] == 1.5


def test_sharpness_by_its_definition() -> None:
    """Small enough not to be scaled; then twice as large, with each pixel four times: scaled to the same."""
    rgb = RANDOM.integers(0, 256, (100, 128, 3), dtype=np.uint8)
    luma = np.asarray(Image.fromarray(rgb).convert("L"), np.float64)
    expected = ndimage.laplace(luma)[1:-1, 1:-1].var()
    assert image_features(rgb, 1)["sharpness"] == pytest.approx(expected, rel=1e-4)
    doubled = rgb.repeat(2, axis=0).repeat(2, axis=1)
    assert image_features(doubled, 1)["sharpness"] == pytest.approx(expected, rel=1e-4)


def test_blur_lowers_sharpness() -> None:
    sharp = RANDOM.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    blurred = np.asarray(ndimage.gaussian_filter(sharp, (2, 2, 0)))
    assert image_features(blurred, 1)["sharpness"] < image_features(sharp, 1)["sharpness"] / 10


PLAIN = {
    (0, 0, 0): (0, 0),
    (255, 255, 255): (255, 0),
    (128, 128, 128): (128, 0),
    (0, 0, 255): (29, 0.3 * 255),
    (255, 0, 0): (76, 0.3 * math.hypot(255, 127.5)),
}


@pytest.mark.parametrize("colour", PLAIN)
def test_plain_images(colour: tuple[int, int, int]) -> None:
    brightness, colourfulness = PLAIN[colour]
    for shape in ((20, 30), (224, 224)):
        assert image_features(_plain(colour, *shape), 0.05) == {
            "brightness": brightness,
            "contrast": 0,
            "sharpness": 0,
            "colour": pytest.approx(colourfulness),
            "size": 0.05,
        }


def test_image_features_of_a_view() -> None:
    """Turned from channels first, or from BGR: not contiguous."""
    rgb = RANDOM.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    channels_first = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    expected = image_features(rgb, 1)
    assert image_features(channels_first.transpose(1, 2, 0), 1) == expected
    assert image_features(bgr[..., ::-1], 1) == expected


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 4, 3), np.float32), ((4, 4), np.uint8), ((3, 4, 4), np.uint8), ((0, 4, 3), np.uint8)],
)
def test_image_features_refuses_other_arrays(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(InvalidTensor, match=r"need uint8 \[height, width, 3\], not (float32|uint8) \[[034, ]+\]"):
        image_features(np.zeros(shape, dtype), 1)


def test_features_are_plain_floats() -> None:
    features = image_features(_plain((1, 2, 3)), 1)
    features |= text_features("a", frozenset())
    assert {type(value) for value in features.values()} == {float}
    json.dumps(features, allow_nan=False)


def test_entropy_equals_scipy() -> None:
    for scores in (RANDOM.random(1000), RANDOM.random(3), np.array([0, 1e-300, 1]), np.array([5e-324] * 3)):
        features = output_features(scores[np.newaxis])
        assert features["confidence"] == [scores.max()]
        assert features["entropy"] == pytest.approx([stats.entropy(scores / scores.sum(), base=2)], abs=1e-9)


def test_output_features_of_a_row_are_the_same_alone() -> None:
    scores = RANDOM.random((37, 1000)).astype(np.float32)
    together = output_features(scores)
    for number in range(len(scores)):
        alone = output_features(scores[number : number + 1])
        assert all(alone[name].tolist() == [together[name][number]] for name in together)


def test_output_features_by_hand() -> None:
    features = output_features(np.array([[0.25] * 4, [0.0, 1.0, 0.0, 0.0]], np.float32))
    assert {name: values.tolist() for name, values in features.items()} == {
        "confidence": [0.25, 1.0],
        "entropy": [2.0, 0.0],
    }


OUTPUTS = {
    "none": ([], True, True),
    "NaN": ([0.5, np.nan], True, True),
    "infinite": ([np.inf, 1.0], True, True),
    "all 0": ([0.0, 0.0], False, True),
    "negative": ([-1.0, 3.0], False, True),
    "too large": ([1.5e308, 1.5e308], False, True),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_features_that_are_missing(name: str) -> None:
    values, *expected = OUTPUTS[name]
    features = output_features(np.array(values).reshape(1, -1))
    assert [math.isnan(features[key][0]) for key in ("confidence", "entropy")] == expected


def test_text_features() -> None:
    vocabulary = frozenset({"the", "straße", "is", "2"})
    assert text_features("The Straße is wide, 2 wide.", vocabulary) == {"length": 27.0, "unknown_words": 2 / 6}
    assert text_features("the the", vocabulary)["unknown_words"] == 0.0
    assert text_features("wide", vocabulary)["unknown_words"] == 1.0
    assert text_features("wide") == {"length": 4.0}


@pytest.mark.parametrize("text", ["", " ", "…!"])
def test_unknown_words_are_missing_without_words(text: str) -> None:
    features = text_features(text, frozenset({"a"}))
    assert features["length"] == len(text)
    assert math.isnan(features["unknown_words"])
