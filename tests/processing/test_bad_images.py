"""Damaged, hostile and huge files are refused with InvalidImage or ImageTooLarge, and nothing else comes out."""

from __future__ import annotations

import contextlib
import resource
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import HeadwayError, ImageTooLarge, InvalidImage
from app.processing.image import MAX_JPEG_SCANS, ImageProcessor
from tests.processing.conftest import encode, processing

PATIENCE_SECONDS = 10.0


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


def _patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def _small_file(format: str, **options: object) -> bytes:
    return encode(Image.new("RGB", (10, 10), "teal"), format, **options)


def _huge(format: str) -> bytes:
    """A file whose header says tens of thousands of pixels a side, over almost no data."""
    if format == "PNG":
        return _png(50_000, 50_000, _chunk(b"IDAT", zlib.compress(b"\0" * 100)))
    if format == "JPEG":
        return _patched(_small_file("JPEG"), struct.pack(">BHH", 8, 10, 10), struct.pack(">BHH", 8, 65_000, 65_000))
    if format == "GIF":
        return _small_file("GIF").replace(struct.pack("<HH", 10, 10), struct.pack("<HH", 65_000, 65_000))
    if format == "BMP":
        return _patched(_small_file("BMP"), struct.pack("<ii", 10, 10), struct.pack("<ii", 50_000, 50_000))
    if format == "TIFF":
        data = _small_file("TIFF")
        for tag in (256, 257):
            entry = struct.pack("<HHI", tag, 4, 1)
            data = _patched(data, entry + struct.pack("<I", 10), entry + struct.pack("<I", 50_000))
        return data
    frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "lime")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    canvas = b"VP8X" + struct.pack("<II", 10, data[20])
    return _patched(data, canvas + (9).to_bytes(3, "little") * 2, canvas + (16_000).to_bytes(3, "little") * 2)


@contextlib.contextmanager
def _little_memory(extra_bytes: int) -> Iterator[None]:
    """At most `extra_bytes` more address space than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None], ids=["Pillow's own limit", "as in a server"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_prepare_refuses_a_huge_header_without_memory(
    processor: ImageProcessor, format: str, limit: int | None
) -> None:
    data = _huge(format)
    with pytest.MonkeyPatch.context() as patch, _little_memory(100_000_000):
        patch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageTooLarge, match="scale it down"):
            processor.prepare(data)


def test_prepare_refuses_a_huge_webp_canvas(processor: ImageProcessor) -> None:
    """libwebp reserves the canvas when it opens the file; the pages are not touched before a frame is decoded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLarge):
        processor.prepare(_huge("WEBP"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_prepare_says_the_size_and_the_limit(processor: ImageProcessor) -> None:
    data = _png(8_000, 8_000, _chunk(b"IDAT", b""))
    with pytest.raises(ImageTooLarge, match="8000 × 8000 pixels; at most 40 million are decoded"):
        processor.prepare(data)


def _scans(data: bytes) -> list[bytes]:
    """A JPEG cut before each of its scans; the last part ends before the end-of-image marker."""
    starts = [position for position in range(len(data)) if data[position : position + 2] == b"\xff\xda"]
    return [data[a:b] for a, b in zip([0, *starts], [*starts, len(data) - 2], strict=True)]


def test_prepare_refuses_a_large_progressive_jpeg(processor: ImageProcessor) -> None:
    """Its coefficients are all in memory, whatever the scale."""
    data = _small_file("JPEG", progressive=True)
    data = _patched(data, struct.pack(">BHH", 8, 10, 10), struct.pack(">BHH", 8, 7_000, 7_000))
    with pytest.raises(ImageTooLarge, match="7000 × 7000"):
        processor.prepare(data)


def test_prepare_refuses_a_large_baseline_jpeg_of_several_scans(processor: ImageProcessor) -> None:
    """A scan for each component costs the decoder as much memory as a progressive file."""
    head, scan = _scans(_small_file("JPEG"))
    header_length = 2 + int.from_bytes(scan[2:4], "big")
    assert scan[4] == 3  # components of the only scan
    one_component = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0)
    data = head + one_component + scan[header_length:] + b"\xff\xd9"
    data = _patched(data, struct.pack(">BHH", 8, 10, 10), struct.pack(">BHH", 8, 7_000, 7_000))
    with pytest.raises(ImageTooLarge, match="7000 × 7000"):
        processor.prepare(data)


def test_prepare_refuses_a_jpeg_of_many_scans(processor: ImageProcessor, small: Image.Image) -> None:
    parts = _scans(encode(small, "JPEG", progressive=True))
    data = b"".join(parts) + parts[-1] * MAX_JPEG_SCANS + b"\xff\xd9"
    with pytest.raises(InvalidImage, match=f"more than {MAX_JPEG_SCANS} scans"):
        processor.prepare(data)
    fewer = b"".join(parts) + parts[-1] * (MAX_JPEG_SCANS - len(parts) - 5) + b"\xff\xd9"
    assert processor.prepare(fewer).shape == (1, 56, 56, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_prepare_takes_a_photo_with_a_video_behind_it(
    processor: ImageProcessor, small: Image.Image, progressive: bool
) -> None:
    """Phones append a film to a photo; among random bytes stand many that look like the start of a scan."""
    data = encode(small, "JPEG", progressive=progressive)
    film = b"ftypmp42" + b"\xff\xda\x00\x08" * 500
    np.testing.assert_array_equal(processor.prepare(data + film), processor.prepare(data))


def test_prepare_takes_a_photo_with_a_thumbnail(processor: ImageProcessor, small: Image.Image) -> None:
    data = encode(small, "JPEG")
    note = b"Thumbnail\0" + b"\xff\xda\x00\x08" * 500
    segment = b"\xff\xe3" + struct.pack(">H", len(note) + 2) + note
    np.testing.assert_array_equal(processor.prepare(data[:2] + segment + data[2:]), processor.prepare(data))


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_prepare_of_a_png_with_a_text_bomb(processor: ImageProcessor, name: bytes) -> None:
    bomb = zlib.compress(b"\0" * 100_000_000, 1)
    head = b"key\0\1\0\0\0" if name == b"iTXt" else b"key\0\0"
    pixels = _chunk(b"IDAT", zlib.compress(b"\0" * (1 + 80 * 3) * 80))
    with _little_memory(60_000_000), contextlib.suppress(InvalidImage):
        processor.prepare(_png(80, 80, _chunk(name, head + bomb), pixels))
    with _little_memory(60_000_000), contextlib.suppress(InvalidImage):
        processor.prepare(_png(80, 80, pixels, _chunk(name, head + bomb)))


def test_prepare_of_a_png_with_more_pixels_than_its_header_says(processor: ImageProcessor) -> None:
    bomb = _chunk(b"IDAT", zlib.compress(b"\0" * 100_000_000, 1))
    with _little_memory(60_000_000), contextlib.suppress(InvalidImage):
        processor.prepare(_png(80, 80, bomb))


def test_prepare_does_not_walk_the_directories_of_a_tiff(processor: ImageProcessor) -> None:
    data = bytearray(encode(Image.new("RGB", (80, 80), "red"), "TIFF"))
    first = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[first : first + 2], "little")
    link = first + 2 + 12 * entries
    data[link : link + 4] = struct.pack("<I", len(data))
    start = len(data)
    directories = np.zeros(1_000_000, np.dtype([("entries", "<u2"), ("next", "<u4")]))
    directories["next"][:-1] = start + 6 * np.arange(1, 1_000_000)
    started = time.monotonic()
    assert (processor.prepare(bytes(data) + directories.tobytes()) == (255, 0, 0)).all()
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_prepare_does_not_read_the_frames_of_an_animation(processor: ImageProcessor) -> None:
    frames = [Image.new("P", (80, 80), number) for number in (0, 1)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 0, 255])
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    second = data.rindex(b"\x21\xf9\x04")
    started = time.monotonic()
    found = processor.prepare(data[:second] + data[second:-1] * 10_000 + b";")
    assert (found == (255, 0, 0)).all()
    assert time.monotonic() - started < PATIENCE_SECONDS
    assert (processor.prepare(data[:second] + b"\x21\xf9not a frame") == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty; send the bytes of a JPEG, PNG, WebP"),
        (b"Dear Sir or Madam,\n", "this is not an image that can be read; send JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
        (b"\xff\xd8\xff", "not an image|header is damaged"),
        (b"\x89PNG\r\n\x1a\n", "not an image|header is damaged"),
        (b"II*\0", "not an image|header is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
    ],
)
def test_prepare_refuses_what_is_no_image(processor: ImageProcessor, data: bytes, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        processor.prepare(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_prepare_refuses_a_truncated_file(processor: ImageProcessor, small: Image.Image, format: str) -> None:
    data = encode(small, format)
    with pytest.raises(InvalidImage, match="send"):
        processor.prepare(data[: len(data) // 2])


def test_prepare_says_that_a_jpeg_is_cut_off(processor: ImageProcessor, small: Image.Image) -> None:
    data = encode(small, "JPEG")
    with pytest.raises(InvalidImage, match=r"damaged or cut off \(.*truncated.*\); send the complete file"):
        processor.prepare(data[: len(data) * 2 // 3])


def test_prepare_refuses_a_jpeg_with_a_damaged_header(processor: ImageProcessor, small: Image.Image) -> None:
    data = encode(small, "JPEG")
    frame = data.index(b"\xff\xc0")
    for length in (0, 1, 2, 3, 65_535):
        with pytest.raises(InvalidImage):
            processor.prepare(data[: frame + 2] + struct.pack(">H", length) + data[frame + 4 :])


def _seeds() -> dict[str, bytes]:
    gradient = np.add.outer(np.arange(24), np.arange(32) * 3)
    photo = Image.fromarray(np.stack([gradient * 2 % 256, gradient * 5 % 256, gradient % 256], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    frames = [photo.transpose(Image.Transpose.ROTATE_180)]
    return {
        "JPEG": encode(photo, "JPEG", exif=exif),
        "progressive JPEG": encode(photo, "JPEG", progressive=True),
        "CMYK JPEG": encode(photo.convert("CMYK"), "JPEG"),
        "PNG": encode(photo, "PNG", exif=exif),
        "palette PNG": encode(photo.quantize(16), "PNG", transparency=3),
        "animated PNG": encode(photo, "PNG", save_all=True, append_images=frames),
        "WebP": encode(photo, "WEBP", exif=exif),
        "lossless WebP": encode(photo.convert("RGBA"), "WEBP", lossless=True),
        "animated WebP": encode(photo, "WEBP", save_all=True, append_images=frames),
        "GIF": encode(photo, "GIF", save_all=True, append_images=frames),
        "BMP": encode(photo, "BMP"),
        "palette BMP": encode(photo.quantize(16), "BMP"),
        "TIFF": encode(photo, "TIFF", exif=exif),
        "LZW TIFF": encode(photo, "TIFF", compression="tiff_lzw"),
        "JPEG in TIFF": encode(photo, "TIFF", compression="jpeg"),
        "deflated TIFF": encode(photo.convert("L"), "TIFF", compression="tiff_adobe_deflate"),
    }


SEEDS = _seeds()
_processor = ImageProcessor(processing(resize=16, crop=14))


@st.composite
def _damaged_files(draw: st.DrawFn) -> bytes:
    data = bytearray(SEEDS[draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(draw(st.integers(1, 6))):
        # Half of the damage goes where the headers are.
        span = draw(st.sampled_from([len(data), min(len(data), 300)]))
        position = draw(st.integers(0, max(0, span - 1)))
        what = draw(st.sampled_from(["flip", "set", "word", "cut", "drop", "repeat"]))
        if what == "flip" and data:
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif what == "set" and data:
            data[position] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif what == "word":
            word = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01"]))
            data[position : position + 4] = word
        elif what == "cut":
            del data[position:]
        elif what == "drop":
            del data[position : position + draw(st.integers(1, 8))]
        else:
            data[position:position] = data[position : position + draw(st.integers(1, 40))]
    return bytes(data)


def _prepare_or_refuse(data: bytes) -> None:
    refusal: HeadwayError | None = None
    try:
        made = _processor.prepare(data)
        assert (made.shape, made.dtype) == ((1, 14, 14, 3), np.uint8)
    except HeadwayError as exc:
        refusal = exc
    assert type(refusal) in (InvalidImage, ImageTooLarge, type(None))
    assert len(str(refusal)) < 500
    assert "\n" not in str(refusal)


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(_damaged_files())
def test_prepare_of_damaged_files_raises_only_ours(data: bytes) -> None:
    """With Pillow's warnings as in a server: seen by nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _prepare_or_refuse(data)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(_damaged_files())
def test_prepare_of_damaged_files_where_warnings_are_errors(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _prepare_or_refuse(data)


def test_prepare_of_every_prefix(small: Image.Image) -> None:
    for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        data = encode(small.resize((20, 16)), format)
        for length in range(0, len(data), 7):
            _prepare_or_refuse(data[:length])
