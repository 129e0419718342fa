"""What drift is measured on: a few numbers that stand for an image, a text or an answer. NaN stands for missing."""

from __future__ import annotations

import re
from collections.abc import Set

import numpy as np
from PIL import Image

from app.errors import InvalidTensor
from app.tensors import Array

# Sharpness is of an image no larger than this: it costs less, and noise of single pixels averages out.
SHARPNESS_PIXELS = 128
# Colourfulness is summed over so many pixels at a time: 137 µs for 224×224, and 456 µs with twice as many, which
# no longer fit into memory that the process has at hand.
_PIXELS_AT_ONCE = 8192
_LEVELS = np.arange(256.0)
_WORD = re.compile(r"\w+")


def image_features(rgb: Array, megapixels: float) -> dict[str, float]:
    """Of `rgb` (uint8 [height, width, 3]) and the size of the original; raises InvalidTensor for another array.

    - brightness: mean luma, 0…255 (ITU-R BT.601, rounded to whole levels);
    - contrast: standard deviation of luma;
    - sharpness: variance of the Laplacian (four neighbours) of luma (Pech-Pacheco et al., "Diatom autofocusing in
      brightfield microscopy", 2000), averaged down by a whole factor to at most 128 pixels a side; 0 under 3 pixels;
    - colour: colourfulness (Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003); 0 is grey;
    - size: `megapixels`.
    Sharpness is comparable between arrays of one size only, as a model's input is.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise InvalidTensor(f"features of an image need uint8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}")
    rgb = np.ascontiguousarray(rgb)
    luma = Image.fromarray(rgb).convert("L")
    brightness, contrast = _level_statistics(luma)
    return {
        "brightness": brightness,
        "contrast": contrast,
        "sharpness": _sharpness(luma),
        "colour": _colourfulness(rgb),
        "size": float(megapixels),
    }


def output_features(confidences: Array) -> dict[str, Array]:
    """Of each answer ([rows, classes]) the highest confidence, and the entropy in bits, 0…log2(classes): [rows] each.

    Entropy is of the confidences divided by their sum, for those of a sigmoid do not sum to 1; it is NaN where they are
    all 0 or one is negative. Both are NaN where one is not finite.
    """
    values = np.ascontiguousarray(confidences, np.float64)
    if values.shape[1] == 0:
        return dict.fromkeys(("confidence", "entropy"), np.full(len(values), np.nan))
    is_finite = np.isfinite(values).all(axis=1)
    # Errors are of rows that get NaN, and 0 log 0 is 0.
    with np.errstate(all="ignore"):
        totals = values.sum(axis=1)
        shares = values / totals[:, np.newaxis]
        entropies = -np.where(shares > 0, shares * np.log2(shares), 0.0).sum(axis=1)
        has_entropy = is_finite & (values.min(axis=1) >= 0) & (totals > 0) & (totals < np.inf)
    return {
        "confidence": np.where(is_finite, values.max(axis=1), np.nan),
        "entropy": np.where(has_entropy, np.maximum(entropies, 0.0), np.nan),
    }


def text_features(text: str, vocabulary: Set[str] | None = None) -> dict[str, float]:
    """Its length in characters, and with a vocabulary (of lower-case words) the share of words that it lacks.

    Words are runs of letters, digits and underscores in lower case. The share is NaN for a text without words.
    """
    features = {"length": float(len(text))}
    if vocabulary is not None:
        words = _WORD.findall(text.lower())
        unknown = sum(word not in vocabulary for word in words)
        features["unknown_words"] = unknown / len(words) if words else np.nan
    return features


def _level_statistics(luma: Image.Image) -> tuple[float, float]:
    """Mean and standard deviation, from the histogram: 20 µs, against 200 µs from the pixels."""
    counts = np.array(luma.histogram(), np.float64)
    n = counts.sum()
    mean = counts @ _LEVELS / n
    return float(mean), float(np.sqrt(counts @ (_LEVELS - mean) ** 2 / n))


def _sharpness(luma: Image.Image) -> float:
    factor = -(-max(luma.size) // SHARPNESS_PIXELS)
    levels = np.asarray(luma.reduce(factor)).astype(np.int16)
    if min(levels.shape) < 3:
        return 0.0
    laplacian = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:] - 4 * levels[1:-1, 1:-1]
    return float(laplacian.var())


def _colourfulness(rgb: Array) -> float:
    """Sums of whole numbers in float64: exact."""
    pixels = rgb.reshape(-1, 3)
    sums = np.zeros(4)
    for start in range(0, len(pixels), _PIXELS_AT_ONCE):
        red, green, blue = pixels[start : start + _PIXELS_AT_ONCE].T.astype(np.float64, order="C")
        red_green, twice_yellow_blue = red - green, red + green - 2 * blue
        sums += (
            red_green.sum(),
            red_green @ red_green,
            twice_yellow_blue.sum(),
            twice_yellow_blue @ twice_yellow_blue,
        )
    first, first_square, second, second_square = sums / len(pixels) / (1, 1, 2, 4)
    variance = max(0.0, first_square - first**2) + max(0.0, second_square - second**2)
    return float(np.sqrt(variance) + 0.3 * np.hypot(first, second))
