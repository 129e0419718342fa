"""Common corruptions of photos in five severities.

D. Hendrycks and T. Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
2019; the parameters of each severity are theirs, of 224 pixels. Lengths are in parts of the picture here, so that
smaller pictures are corrupted alike. The fog is a sum of random fields of halving size, not their diamond-square.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter

from app.tensors import Array

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224


def corrupt(name: str, pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """`pixels` are RGB or grey, [height, width, 3 or 1] in 0…255; what comes back is uint8 of the same shape."""
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    changed = CORRUPTIONS[name](rgb.astype(np.uint8), severity - 1, rng)
    levels = np.rint(changed).clip(0, 255).astype(np.uint8)
    return levels[:, :, : pixels.shape[2]]


def _gaussian_noise(pixels: Array, place: int, rng: np.random.Generator) -> Array:
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[place]
    noisy: Array = pixels + rng.normal(scale=255 * deviation, size=pixels.shape)
    return noisy


def _shot_noise(pixels: Array, place: int, rng: np.random.Generator) -> Array:
    photons = (60, 25, 12, 5, 3)[place]
    counted: Array = rng.poisson(pixels / 255 * photons) / photons * 255
    return counted


def _impulse_noise(pixels: Array, place: int, rng: np.random.Generator) -> Array:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[place]
    is_hit, is_white = rng.random(pixels.shape) < share, rng.random(pixels.shape) < 0.5
    return np.where(is_hit, np.where(is_white, 255, 0), pixels)


def _gaussian_blur(pixels: Array, place: int, _: np.random.Generator) -> Array:
    radius = (1, 2, 3, 4, 6)[place] * pixels.shape[0] / _SIDE
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _fog(pixels: Array, place: int, rng: np.random.Generator) -> Array:
    strength, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[place]
    height, width = pixels.shape[:2]
    field, weight, cells = np.zeros((height, width)), 1.0, 2
    while cells <= max(height, width):
        grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        field += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        weight, cells = weight / decay, cells * 2
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-9)
    brightest = float(pixels.max()) / 255
    fogged: Array = (pixels / 255 + strength * field[:, :, np.newaxis]) * (255 * brightest / (brightest + strength))
    return fogged


def _brightness(pixels: Array, place: int, _: np.random.Generator) -> Array:
    """The value of HSV is raised, hue and saturation stay: all channels grow alike."""
    raised = (0.1, 0.2, 0.3, 0.4, 0.5)[place] * 255
    value = pixels.max(axis=2, keepdims=True).astype(np.float64)
    target = np.minimum(value + raised, 255)
    raised_pixels: Array = np.where(value > 0, pixels * target / np.maximum(value, 1), target)
    return raised_pixels


def _contrast(pixels: Array, place: int, _: np.random.Generator) -> Array:
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[place]
    means = pixels.mean(axis=(0, 1), keepdims=True)
    reduced: Array = (pixels - means) * share + means
    return reduced


def _pixelate(pixels: Array, place: int, _: np.random.Generator) -> Array:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[place]
    height, width = pixels.shape[:2]
    coarse = (max(1, int(width * share)), max(1, int(height * share)))
    return np.asarray(Image.fromarray(pixels).resize(coarse, Image.Resampling.BOX).resize((width, height), 0))


def _jpeg(pixels: Array, place: int, _: np.random.Generator) -> Array:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[place])
    return np.asarray(Image.open(buffer))


CORRUPTIONS: Mapping[str, Callable[[Array, int, np.random.Generator], Array]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg,
}
