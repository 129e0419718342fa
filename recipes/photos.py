"""Photographs: the pixels a recipe calibrates with, the plain reference that processing is held against, and the free
photos that go with the model as examples and golden requests."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from app.processing.image import ImageProcessing, ImageProcessor
from app.tensors import Array

# scikit-image carries them under CC0; the photographers stand in its documentation of skimage.data.
FREE_PHOTOS: Mapping[str, tuple[str, str]] = {
    "cat.jpg": ("chelsea", "Stéfan van der Walt"),
    "coffee.jpg": ("coffee", "Rachel Michetti"),
    "camera.jpg": ("camera", "Lav Varshney"),
}
QUALITY = {"cat.jpg": 92, "coffee.jpg": 80, "camera.jpg": 80}


def find_photos(folder: Path) -> list[Path]:
    """Every JPEG of a folder in the order of names. Raises FileNotFoundError where there is none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no JPEG photographs")
    return paths


def read_pixels(paths: Sequence[Path], processing: ImageProcessing) -> Array:
    """The photos as the server would give them to the model, one row each."""
    processor = ImageProcessor(processing)
    return np.concatenate([processor.prepare(path.read_bytes()) for path in paths])


def read_plain_pixels(paths: Sequence[Path], processing: ImageProcessing) -> Array:
    """The reference without any haste: decode in full, resize the whole photo by bicubic, cut the centre."""
    return np.stack([_plain(path, processing.resize, processing.crop) for path in paths])


def write_free_photo(name: str, path: Path) -> None:
    """Write one of FREE_PHOTOS as a JPEG in its original size."""
    import skimage.data

    pixels = getattr(skimage.data, FREE_PHOTOS[name][0])()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY[name], optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _plain(path: Path, resize: int, crop: int) -> Array:
    with Image.open(path) as photo:
        whole = photo.convert("RGB")
    scale = resize / min(whole.size)
    size = (round(whole.width * scale), round(whole.height * scale))
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    return np.asarray(whole.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + crop, top + crop)))
