"""Every format and mode gives the tensor that a plain, slow way gives."""

from __future__ import annotations

import io
import itertools
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from app.errors import InvalidImage
from app.processing.image import ImageProcessor, PixelBudget
from app.tensors import Array
from tests.processing.conftest import encode, processing

PATIENCE_SECONDS = 30.0


def _reference(image: Image.Image, resize: int = 64, crop: int = 56) -> Array:
    """Shorter side to `resize`, centre crop: each step over the whole picture, as torchvision has it."""
    width, height = image.size
    scale = resize / min(width, height)
    image = image.convert("RGB").resize(
        (max(crop, round(width * scale)), max(crop, round(height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def _difference(found: Array, expected: Array) -> float:
    assert found.shape == (1, *expected.shape)
    return float(np.abs(found[0].astype(int) - expected.astype(int)).mean())


FILES: dict[str, tuple[str, dict[str, Any], float]] = {
    "baseline JPEG": ("JPEG", {"quality": 95}, 4.0),
    "progressive JPEG": ("JPEG", {"quality": 95, "progressive": True}, 4.0),
    "JPEG without chroma subsampling": ("JPEG", {"quality": 95, "subsampling": 0}, 4.0),
    "PNG": ("PNG", {}, 1.0),
    "lossy WebP": ("WEBP", {"quality": 95}, 4.0),
    "lossless WebP": ("WEBP", {"lossless": True}, 1.0),
    "BMP": ("BMP", {}, 1.0),
    "TIFF": ("TIFF", {}, 1.0),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}, 1.0),
    "JPEG in TIFF": ("TIFF", {"compression": "jpeg", "quality": 95}, 4.0),
    "GIF": ("GIF", {}, 6.0),
}


@pytest.mark.parametrize("name", FILES)
def test_prepare_each_format(processor: ImageProcessor, small: Image.Image, name: str) -> None:
    format, options, tolerance = FILES[name]
    found = processor.prepare(encode(small, format, **options))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert _difference(found, _reference(small)) < tolerance


# Sizes that leave whole pixels at 256 differ by the scaled decode only; the others by the part of a pixel, too, that
# the plain way rounds off.
@pytest.mark.parametrize(
    ("size", "tolerance"),
    [((512, 256), 0.1), ((1536, 1024), 3.5), ((640, 427), 5.0), ((1201, 803), 7.5), ((300, 901), 5.0), ((90, 60), 2.5)],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_prepare_equals_plain_reference_on_photos(
    photos: list[Image.Image], size: tuple[int, int], tolerance: float, options: dict[str, Any]
) -> None:
    processor = ImageProcessor(processing(resize=256, crop=224))
    for photo in photos:
        picture = photo.resize(size, Image.Resampling.LANCZOS)
        data = encode(picture, "JPEG", quality=95, **options)
        plain = _reference(Image.open(io.BytesIO(data)), 256, 224)
        assert _difference(processor.prepare(data), plain) < tolerance


@pytest.mark.parametrize(
    ("mode", "format"),
    [*itertools.product(["1", "L", "P", "RGB", "RGBA"], ["PNG", "TIFF"]), ("LA", "PNG"), ("YCbCr", "TIFF")],
)
def test_prepare_each_mode(processor: ImageProcessor, small: Image.Image, mode: str, format: str) -> None:
    image = small.convert("RGB").convert(mode)
    found = processor.prepare(encode(image, format))
    assert _difference(found, _reference(image)) < 2.0


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_prepare_cmyk(processor: ImageProcessor, small: Image.Image, format: str) -> None:
    image = small.convert("CMYK")
    assert _difference(processor.prepare(encode(image, format)), _reference(small)) < 4.0


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_prepare_grey_of_16_bits(processor: ImageProcessor, small: Image.Image, format: str) -> None:
    grey = np.asarray(small.convert("L"))
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257), format)
    assert _difference(processor.prepare(data), _reference(Image.fromarray(grey))) < 1.0


def test_prepare_big_endian_tiff_of_16_bits(processor: ImageProcessor, small: Image.Image) -> None:
    grey = np.asarray(small.convert("L"))
    data = encode(Image.frombytes("I;16B", small.size, (grey.astype(">u2") * 257).tobytes()), "TIFF")
    assert _difference(processor.prepare(data), _reference(Image.fromarray(grey))) < 1.0


@pytest.mark.parametrize("mode", ["I", "F"])
def test_prepare_32_bits_a_pixel_is_refused(processor: ImageProcessor, small: Image.Image, mode: str) -> None:
    with pytest.raises(InvalidImage, match="have no agreed range; save it with 8 or 16"):
        processor.prepare(encode(small.convert("L").convert(mode), "TIFF"))


def test_prepare_lab(processor: ImageProcessor) -> None:
    white = Image.new("LAB", (80, 80), (255, 128, 128))  # L* = 100 %, a* = b* = 0
    assert processor.prepare(encode(white, "TIFF")).min() >= 254


def test_prepare_shows_transparency_on_white(processor: ImageProcessor) -> None:
    clear = Image.new("RGBA", (80, 80), (200, 0, 0, 0))
    half = Image.new("RGBA", (80, 80), (0, 0, 0, 128))
    grey = Image.new("LA", (80, 80), (0, 0))
    assert (processor.prepare(encode(clear, "PNG")) == 255).all()
    assert (processor.prepare(encode(clear, "WEBP", lossless=True)) == 255).all()
    assert np.abs(processor.prepare(encode(half, "PNG")).astype(int) - 127).max() <= 1
    assert (processor.prepare(encode(grey, "PNG")) == 255).all()


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_prepare_palette_with_a_transparent_entry(processor: ImageProcessor, format: str) -> None:
    image = Image.new("P", (80, 80), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert (processor.prepare(encode(image, format, transparency=1)) == 255).all()
    assert (processor.prepare(encode(image, format, transparency=0)) == (0, 0, 255)).all()


def test_prepare_palette_with_alpha_for_each_entry(processor: ImageProcessor) -> None:
    image = Image.new("P", (80, 80), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert (processor.prepare(encode(image, "PNG", transparency=b"\xff\x00")) == 255).all()


@pytest.mark.parametrize(("mode", "clear"), [("L", 7), ("RGB", (1, 2, 3))])
def test_prepare_a_transparent_colour(processor: ImageProcessor, mode: str, clear: Any) -> None:
    assert (processor.prepare(encode(Image.new(mode, (80, 80), clear), "PNG", transparency=clear)) == 255).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_prepare_animation_takes_the_first_frame(processor: ImageProcessor, format: str) -> None:
    frames = [Image.new("RGB", (80, 60), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (processor.prepare(data) == (255, 0, 0)).all()


# EXIF orientation n: how the stored pixels come from the upright photo.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_prepare_turns_by_exif_orientation(
    processor: ImageProcessor, small: Image.Image, orientation: int, format: str
) -> None:
    how = STORED[orientation]
    stored = small if how is None else small.transpose(how)
    options: dict[str, Any] = {"PNG": {}, "TIFF": {}}.get(format, {"quality": 95})
    found = processor.prepare(encode(stored, format, exif=_exif(orientation), **options))
    upright = processor.prepare(encode(small, format, **options))
    assert _difference(found, upright[0]) < (2.0 if format in ("JPEG", "WEBP") else 0.5)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_prepare_ignores_an_unknown_orientation(
    processor: ImageProcessor, small: Image.Image, orientation: int
) -> None:
    plain = processor.prepare(encode(small, "JPEG"))
    np.testing.assert_array_equal(processor.prepare(encode(small, "JPEG", exif=_exif(orientation))), plain)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0" + bytes(range(200))])
def test_prepare_reads_a_photo_whose_exif_is_damaged(
    processor: ImageProcessor, small: Image.Image, exif: bytes
) -> None:
    plain = processor.prepare(encode(small, "JPEG"))
    np.testing.assert_array_equal(processor.prepare(encode(small, "JPEG", exif=exif)), plain)


def test_prepare_layouts_and_colours(small: Image.Image) -> None:
    data = encode(small, "PNG")
    rgb = ImageProcessor(processing()).prepare(data)
    np.testing.assert_array_equal(ImageProcessor(processing(colour="BGR")).prepare(data), rgb[..., ::-1])
    np.testing.assert_array_equal(ImageProcessor(processing(layout="NCHW")).prepare(data), rgb.transpose(0, 3, 1, 2))
    grey = ImageProcessor(processing(colour="GRAY")).prepare(data)
    assert grey.shape == (1, 56, 56, 1)
    expected = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, Pillow's
    assert np.abs(grey[..., 0] - expected).max() <= 1


def test_prepare_normalises(small: Image.Image) -> None:
    data = encode(small, "PNG")
    raw = ImageProcessor(processing()).prepare(data)
    normalise = {"mean": [123.0, 116.0, 103.0], "scale": [58.0, 57.0, 57.5]}
    found = ImageProcessor(processing(normalise=normalise, layout="NCHW")).prepare(data)
    assert found.dtype == np.float32
    expected = (raw - np.array(normalise["mean"])) / np.array(normalise["scale"])
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=1e-6, atol=1e-6)
    single = ImageProcessor(processing(normalise={"mean": [127.0], "scale": [128.0]})).prepare(data)
    np.testing.assert_allclose(single, (raw - 127.0) / 128.0, atol=1e-6)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("colour", ["RGB", "GRAY"])
@pytest.mark.parametrize("normalise", ["in_graph", {"mean": [0.0], "scale": [255.0]}])
def test_spec_is_what_prepare_makes(small: Image.Image, layout: str, colour: str, normalise: Any) -> None:
    processor = ImageProcessor(processing(layout=layout, colour=colour, normalise=normalise))
    made = processor.prepare(encode(small, "PNG"))
    assert processor.spec.shape == made.shape
    assert processor.spec.datatype == {"uint8": "UINT8", "float32": "FP32"}[made.dtype.name]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 7)])
def test_prepare_extreme_shapes(processor: ImageProcessor, size: tuple[int, int]) -> None:
    assert (processor.prepare(encode(Image.new("RGB", size, "lime"), "PNG")) == (0, 255, 0)).all()


def test_prepare_of_a_large_jpeg_decodes_a_small_one(processor: ImageProcessor) -> None:
    """96 million pixels are over the limit of decoded ones, but a baseline JPEG is decoded at an eighth."""
    data = encode(Image.new("L", (12_000, 8_000), 90), "JPEG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as every server process does
        assert np.abs(processor.prepare(data).astype(int) - 90).max() <= 1


@pytest.mark.parametrize("missing", ["resize", "crop", "filter", "colour", "layout", "normalise"])
def test_processing_has_no_defaults(missing: str) -> None:
    given = processing().model_dump()
    del given[missing]
    with pytest.raises(ValidationError, match=missing):
        type(processing()).model_validate(given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 65},
        {"crop": 0},
        {"resize": 5000},
        {"filter": "box"},
        {"normalise": {"mean": [1, 2, 3]}},
        {"normalise": "imagenet"},
        {"size": 3},
    ],
)
def test_processing_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        processing(**wrong)


def test_pixel_budget_under_threads() -> None:
    budget, limit = PixelBudget(100), 100
    lock, held, most, done = threading.Lock(), [0], [0], []

    def work(number: int) -> None:
        pixels = (number * 37) % 250 + 1  # some want more than there is
        for _ in range(20):
            with budget.reserve(pixels):
                with lock:
                    held[0] += min(pixels, limit)
                    most[0] = max(most[0], held[0])
                with lock:
                    held[0] -= min(pixels, limit)
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sorted(done) == list(range(16))
    assert 0 < most[0] <= limit
    with budget.reserve(limit):
        pass  # everything was given back


def test_pixel_budget_is_given_back_after_an_error() -> None:
    budget = PixelBudget(10)
    with pytest.raises(InvalidImage), budget.reserve(10):
        raise InvalidImage("damaged")
    with budget.reserve(10):
        pass


def test_prepare_from_several_threads_gives_the_same(processor: ImageProcessor, photos: list[Image.Image]) -> None:
    data = [encode(photo, "JPEG") for photo in photos]
    alone = [processor.prepare(one) for one in data]
    results: list[bool] = []

    def work() -> None:
        results.extend(np.array_equal(processor.prepare(data[n % 2]), alone[n % 2]) for n in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80
