"""Photos: two real ones with much detail, and encoders of small ones."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from app.processing.image import ImageProcessing, ImageProcessor


def processing(**changes: Any) -> ImageProcessing:
    """The parameters of an image model; a crop of 56 from 64 unless changed."""
    usual = {
        "type": "image", "resize": 64, "crop": 56, "filter": "bilinear",
        "colour": "RGB", "layout": "NHWC", "normalise": "in_graph",
    }  # fmt: skip
    return ImageProcessing.model_validate(usual | changes)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """china.jpg and flower.jpg, 640 × 427."""
    return [Image.fromarray(np.asarray(array)) for array in load_sample_images().images]


@pytest.fixture(scope="session")
def small(photos: list[Image.Image]) -> Image.Image:
    """A photo of 100 × 80: at 80 × 64 nothing is rounded."""
    return photos[0].resize((100, 80), Image.Resampling.LANCZOS)


@pytest.fixture(scope="session")
def processor() -> ImageProcessor:
    return ImageProcessor(processing())
