"""Encoded photographs to the uint8 tensor that an image model takes.

Written for speed: the header decides before a pixel is decoded, JPEG is decoded at the smallest scale that
still holds what the model needs (`draft`), and one resize with `box=` does scaling and centre crop together.
Pixels stay uint8; a float image is made only for models that do not carry their normalisation in the graph.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import ImageTooLarge, InvalidImage
from app.tensors import Array, TensorSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP or TIFF"

# A decoder holds one copy of the pixels; with 3 bytes a pixel this is 120 MB.
MAX_DECODED_PIXELS = 40_000_000
# Entropy decoding of a JPEG goes over every pixel even where `draft` keeps only 1 of 64.
MAX_HEADER_PIXELS = 4 * MAX_DECODED_PIXELS
# Progressive files of real encoders have at most 20 scans or so; each costs a pass over all coefficients.
MAX_JPEG_SCANS = 100

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ORIENTATION_TAG = 0x0112
# 0xFF00 and 0xFFD0 to 0xFFD7 stand within the entropy-coded data of a scan.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_FRAME = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# EXIF 2.32, table 6: how the stored image must be turned to be seen upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Normalisation(BaseModel):
    """`(x - mean) / scale` for x in 0…255; one value a channel, or one for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, ...] = Field(min_length=1, max_length=3)
    scale: tuple[float, ...] = Field(min_length=1, max_length=3)


class ImageProcessing(BaseModel):
    """The `processing` section of an image model's manifest. Nothing that changes accuracy has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["image"]
    resize: int = Field(ge=1, le=4096, description="length that the shorter side is scaled to, in pixels")
    crop: int = Field(ge=1, le=4096, description="side of the square that is cut from the centre, in pixels")
    filter: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    colour: Literal["RGB", "BGR", "GRAY"]
    layout: Literal["NHWC", "NCHW"]
    normalise: Literal["in_graph"] | Normalisation

    @model_validator(mode="after")
    def _crop_fits(self) -> ImageProcessing:
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) must not be larger than resize ({self.resize})")
        return self


class PixelBudget:
    """How many decoded pixels may be in memory at one time, over all threads of a process."""

    def __init__(self, pixels: int) -> None:
        self._free = self._total = pixels
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until `pixels` (at most the whole budget) are free, and hold them."""
        pixels = min(pixels, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_pixel_budget = PixelBudget(MAX_DECODED_PIXELS)


class ImageProcessor:
    """Turns one encoded image into the model's input. Thread-safe; holds no state but its parameters."""

    def __init__(self, parameters: ImageProcessing) -> None:
        self.parameters = parameters
        self._filter = _RESAMPLING[parameters.filter]

    @property
    def spec(self) -> TensorSpec:
        """What `prepare` makes; the name is of no account."""
        side, channels = self.parameters.crop, 1 if self.parameters.colour == "GRAY" else 3
        shape = (1, side, side, channels) if self.parameters.layout == "NHWC" else (1, channels, side, side)
        return TensorSpec("image", "UINT8" if self.parameters.normalise == "in_graph" else "FP32", shape)

    def prepare(self, data: bytes) -> Array:
        """Return uint8 (float32 unless `normalise: in_graph`) of shape [1, crop, crop, channels] or NCHW.

        Raises InvalidImage for what cannot be decoded and ImageTooLarge for what is refused from its header.
        """
        with _open(data) as image:
            pixels = self._shrink_decode(image, data)
            with _pixel_budget.reserve(pixels):
                small = self._resize(image)
        return self._to_array(small)

    def _shrink_decode(self, image: Image.Image, data: bytes) -> int:
        """Ask the decoder for the smallest sufficient scale; return how many pixels it will hold."""
        width, height = image.size
        header_pixels = width * height
        if header_pixels > MAX_HEADER_PIXELS:
            raise _too_large(width, height)
        if image.format in ("JPEG", "MPO"):
            scans = _count_jpeg_scans(data)
            if scans > MAX_JPEG_SCANS:
                raise InvalidImage(
                    f"the JPEG has more than {MAX_JPEG_SCANS} scans; save it as a baseline JPEG and send it again"
                )
            scale = self.parameters.resize / min(width, height)
            image.draft(None, (int(width * scale) or 1, int(height * scale) or 1))
            if scans == 1:
                # With several scans the decoder keeps the coefficients of the whole image, whatever the scale.
                header_pixels = image.size[0] * image.size[1]
        if header_pixels > MAX_DECODED_PIXELS:
            raise _too_large(width, height)
        return header_pixels

    def _resize(self, image: Image.Image) -> Image.Image:
        try:
            image.load()
        except Image.DecompressionBombError as exc:
            raise _too_large(*image.size) from exc
        except Exception as exc:  # as in _open; "truncated" is the usual word
            raise InvalidImage(f"the image is damaged or cut off ({_one_line(exc)}); send the complete file") from exc
        turn = _UPRIGHT.get(_orientation(image))
        source = _resizable(image)
        width, height = source.size
        side = min(width, height) * self.parameters.crop / self.parameters.resize
        left, top = (width - side) / 2, (height - side) / 2
        crop = self.parameters.crop
        small = source.resize((crop, crop), self._filter, box=(left, top, left + side, top + side), reducing_gap=2.0)
        # The centre crop is square, so turning the small result equals turning the large source.
        return small.transpose(turn) if turn is not None else small

    def _to_array(self, image: Image.Image) -> Array:
        colour = self.parameters.colour
        image = _flatten(image, "L" if colour == "GRAY" else "RGB")
        array: Array = np.asarray(image)
        if colour == "GRAY":
            array = array[:, :, np.newaxis]
        elif colour == "BGR":
            array = array[:, :, ::-1]
        if self.parameters.normalise != "in_graph":
            normalise = self.parameters.normalise
            mean, scale = (np.array(values, np.float32) for values in (normalise.mean, normalise.scale))
            array = (array.astype(np.float32) - mean) / scale
        if self.parameters.layout == "NCHW":
            array = array.transpose(2, 0, 1)
        return np.ascontiguousarray(array)[np.newaxis]


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    if not data:
        raise InvalidImage(f"the image is empty; send the bytes of a {FORMAT_NAMES} file")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as exc:
        raise ImageTooLarge(
            f"the image's header says more pixels than the {MAX_DECODED_PIXELS // 1_000_000} million "
            "that are decoded, so scale it down"
        ) from exc
    except UnidentifiedImageError as exc:
        raise InvalidImage(f"this is not an image that can be read; send {FORMAT_NAMES}") from exc
    except Exception as exc:
        # Pillow's decoders raise many classes for damaged files (struct.error, KeyError, zlib.error …), and a
        # Warning where the program makes errors of them.
        raise InvalidImage(f"the image's header is damaged ({_one_line(exc)}); send the complete file") from exc


def _too_large(width: int, height: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"the image has {width} × {height} pixels; at most {MAX_DECODED_PIXELS // 1_000_000} million "
        "are decoded, so scale it down"
    )


def _count_jpeg_scans(data: bytes) -> int:
    """1 where the first image in `data` has all its components in one scan; else 2 or more, up to above the limit.

    Thumbnails, and what phones append after the image (a video, a depth map), do not count.
    """
    scans, components, position, is_progressive = 0, 0, 0, False
    while scans <= MAX_JPEG_SCANS and (found := _JPEG_MARKER.search(data, position)):
        marker, position = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        if marker in (0x01, 0xD8):
            continue  # has no length
        if marker in _START_OF_FRAME:
            components = int.from_bytes(data[position + 7 : position + 8], "big")
            is_progressive = marker in _PROGRESSIVE_FRAME
        elif marker == _START_OF_SCAN:
            scans += 1
            in_this_scan = int.from_bytes(data[position + 2 : position + 3], "big")
            if not is_progressive and in_this_scan >= components:
                return 1  # the decoder reads no other
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return max(2, scans)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1  # the photo is good, only its EXIF block is not


def _resizable(image: Image.Image) -> Image.Image:
    """The image in a mode that resizes by interpolation; palettes and 16 bits are resolved first."""
    mode = image.mode
    if mode in ("RGB", "L", "RGBA", "LA", "CMYK"):
        return image.convert("RGBA") if "transparency" in image.info and mode in ("RGB", "L") else image
    if mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        raise InvalidImage(f"images of 32 bits a pixel (mode {mode}) have no agreed range; save it with 8 or 16")
    return image.convert("RGBA" if mode in ("PA", "La", "RGBa") else "RGB")


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """The image without alpha, on white, as people see it on a page."""
    if image.mode in ("RGBA", "LA"):
        rgba: Any = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, rgba)
    return image if image.mode == mode else image.convert(mode)


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200]
