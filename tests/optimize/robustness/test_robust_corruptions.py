"""The corruptions against what their parameters say, worked out by other means."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import hsv2rgb, rgb2hsv

from app.optimize.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from tests.running import CAT


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    with Image.open(CAT) as image:
        return np.asarray(image.convert("RGB").resize((224, 224))).astype(np.float32)


def _rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_by_severity_further_from_the_photo(name: str, pixels: np.ndarray) -> None:
    distances = []
    for severity in SEVERITIES:
        corrupted = corrupt(name, pixels, severity, _rng())
        assert (corrupted.dtype, corrupted.shape) == (np.uint8, pixels.shape)
        assert (corrupted == corrupt(name, pixels, severity, _rng())).all()
        distances.append(float(np.mean((corrupted - pixels) ** 2)))
    if name != "fog":  # whose third is of finer clouds than its second, not of thicker ones
        assert distances == sorted(distances)
    assert distances[-1] > distances[0]
    assert distances[0] > 10


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (2, 2, 3)])
def test_small_and_grey_pictures(name: str, shape: tuple[int, int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    for severity in SEVERITIES:
        assert corrupt(name, picture, severity, _rng()).shape == shape
    assert corrupt(name, np.zeros(shape, np.float32), 5, _rng()).shape == shape


def test_noise_has_the_deviation_that_is_said() -> None:
    grey = np.full((224, 224, 3), 128, np.float32)
    assert corrupt("gaussian_noise", grey, 1, _rng()).std() / 255 == pytest.approx(0.08, rel=0.02)
    assert corrupt("shot_noise", grey, 1, _rng()).std() / 255 == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.02)
    hit = corrupt("impulse_noise", grey, 5, _rng())
    assert (hit != 128).mean() == pytest.approx(0.27, abs=0.005)
    assert (hit == 255).mean() == pytest.approx((hit == 0).mean(), abs=0.005)


def test_brightness_raises_the_value_of_hsv(pixels: np.ndarray) -> None:
    hsv = rgb2hsv(pixels / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.3, 0, 1)
    np.testing.assert_allclose(corrupt("brightness", pixels, 3, _rng()), hsv2rgb(hsv) * 255, atol=1)


def test_contrast_keeps_the_mean_of_each_channel(pixels: np.ndarray) -> None:
    flat = corrupt("contrast", pixels, 4, _rng())
    np.testing.assert_allclose(flat.mean(axis=(0, 1)), pixels.mean(axis=(0, 1)), atol=0.5)
    np.testing.assert_allclose(flat.std(axis=(0, 1)), 0.1 * pixels.std(axis=(0, 1)), atol=0.3)


def test_blur_is_gaussian(pixels: np.ndarray) -> None:
    expected = gaussian_filter(pixels, (2, 2, 0), mode="nearest")
    assert np.abs(corrupt("gaussian_blur", pixels, 2, _rng()) - expected).mean() < 1


def test_pixelate_leaves_blocks_of_their_mean() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.float32)
    blocks = corrupt("pixelate", picture, 5, _rng())  # a quarter: 4 x 4 blocks
    means = picture.reshape(2, 4, 2, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks, np.repeat(np.repeat(means, 4, 0), 4, 1), atol=1)


def test_jpeg_is_what_a_decoder_makes_of_it(pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=7)
    np.testing.assert_array_equal(corrupt("jpeg_compression", pixels, 5, _rng()), np.asarray(Image.open(buffer)))


def test_fog_keeps_to_the_brightest_and_hides_the_photo(pixels: np.ndarray) -> None:
    fogged = corrupt("fog", pixels, 5, _rng()).astype(np.float32)
    assert fogged.max() <= pixels.max()
    assert fogged.std() < 0.8 * pixels.std()
