"""Pipelines from a JPEG to the model's tensor, ours and what other libraries offer, each as it is meant to be used."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from app.optimize.evaluate import find_samples
from app.processing.image import ImageProcessing, ImageProcessor
from bench.contenders import Contenders, optional
from bench.workloads import PHOTO_MODEL

RESIZE, CROP = 256, 224


def image_pipelines() -> Contenders:
    """JPEG bytes to uint8 [1, 224, 224, 3], each as its library is meant to be used."""
    found: Contenders = {
        "Pillow, draft, bicubic (today)": _processor("bicubic").prepare,
        "the same, bilinear": _processor("bilinear").prepare,
    }
    cv2 = optional("cv2")
    if simplejpeg := optional("simplejpeg"):
        found["simplejpeg, Pillow's bicubic"] = lambda data: _resize_pillow(simplejpeg.decode_jpeg(data, "RGB"))
        found["simplejpeg at a scale, Pillow's bicubic"] = lambda data: _resize_pillow(_simplejpeg(simplejpeg, data))
    if cv2:
        cv2.setNumThreads(0)
        found["OpenCV, cubic"] = lambda data: _resize_opencv(cv2, _opencv(cv2, data), cv2.INTER_CUBIC)
        found["OpenCV, area"] = lambda data: _resize_opencv(cv2, _opencv(cv2, data), cv2.INTER_AREA)
    if cv2 and (jpeg := _turbojpeg()):
        found["PyTurboJPEG at a scale, OpenCV's area"] = lambda data: _resize_opencv(
            cv2, _scaled_turbojpeg(jpeg, data), cv2.INTER_AREA
        )
    if pyvips := optional("pyvips"):
        pyvips.cache_set_max(0)
        found["libvips thumbnail"] = lambda data: _thumbnail(pyvips, data)
    if cykooz := optional("cykooz_resizer"):
        resizer = cykooz.Resizer()
        found["Pillow, cykooz-resizer's bicubic"] = lambda data: _resize_cykooz(cykooz, resizer, data)
    return found


def _processor(filter_name: str) -> ImageProcessor:
    return ImageProcessor(
        ImageProcessing.model_validate(
            {"type": "image", "resize": RESIZE, "crop": CROP, "filter": filter_name}
            | {"colour": "RGB", "layout": "NHWC", "normalise": "in_graph"}
        )
    )


def _box(width: int, height: int) -> tuple[float, float, float]:
    """Left, top and side of the square that becomes the tensor."""
    side = min(width, height) * CROP / RESIZE
    return (width - side) / 2, (height - side) / 2, side


def _resize_pillow(pixels: Any) -> Any:
    image = Image.fromarray(pixels)
    left, top, side = _box(*image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((CROP, CROP), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))[np.newaxis]


def _resize_opencv(cv2: Any, pixels: Any, interpolation: int) -> Any:
    left, top, side = (round(value) for value in _box(pixels.shape[1], pixels.shape[0]))
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (CROP, CROP), interpolation=interpolation)[np.newaxis]


def _resize_cykooz(cykooz: Any, resizer: Any, data: bytes) -> Any:
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    scale = RESIZE / min(image.size)
    image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
    source = image.convert("RGB")
    left, top, side = _box(*source.size)
    algorithm = cykooz.ResizeAlg.convolution(cykooz.FilterType.catmull_rom)
    options = cykooz.ResizeOptions(algorithm, use_alpha=False, crop_box=cykooz.CropBox(left, top, side, side))
    small = Image.new("RGB", (CROP, CROP))
    resizer.resize_pil(source, small, options)
    return np.asarray(small)[np.newaxis]


def _opencv(cv2: Any, data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _simplejpeg(simplejpeg: Any, data: bytes) -> Any:
    """At the smallest of libjpeg-turbo's sixteen scales that holds what the model needs."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    scale = RESIZE / min(height, width)
    least = {"min_height": int(height * scale), "min_width": int(width * scale)}
    return simplejpeg.decode_jpeg(data, "RGB", min_factor=1, **least)


def _turbojpeg() -> Any:
    module = optional("turbojpeg")
    try:
        return module and module.TurboJPEG(os.environ.get("TURBOJPEG_LIBRARY"))
    except RuntimeError as exc:
        print(f"turbojpeg: {' '.join(str(exc).split())}: left out")
        return None


def _scaled_turbojpeg(jpeg: Any, data: bytes) -> Any:
    width, height, *_ = jpeg.decode_header(data)
    enough = [scale for scale in jpeg.scaling_factors if RESIZE / min(width, height) <= scale[0] / scale[1] <= 1]
    scale = min(enough, key=lambda factor: factor[0] / factor[1], default=None)
    return jpeg.decode(data, 0, scaling_factor=scale)  # 0: RGB


def _thumbnail(pyvips: Any, data: bytes) -> Any:
    image = pyvips.Image.thumbnail_buffer(data, RESIZE, height=RESIZE, crop="centre")
    margin = (RESIZE - CROP) // 2
    return image.colourspace("srgb").crop(margin, margin, CROP, CROP).numpy()[np.newaxis]


def rank_photos(pipelines: Contenders, folder: Path) -> tuple[Mapping[str, tuple[int, int]], int]:
    """By pipeline how many photos are right and how many are answered as today, and of how many."""
    labels = (PHOTO_MODEL / "labels.txt").read_text(encoding="utf-8").splitlines()
    samples = find_samples(folder, labels)
    session = _session()
    photos = [sample.path.read_bytes() for sample in samples]
    actual = [sample.class_index for sample in samples]
    best = {name: [_best(session, pipeline(data)) for data in photos] for name, pipeline in pipelines.items()}
    today = next(iter(best.values()))
    return {name: (_agreeing(found, actual), _agreeing(found, today)) for name, found in best.items()}, len(samples)


def _agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def photo_run() -> Callable[[], Any]:
    """One run of the photo model on a black picture."""
    session, pixels = _session(), np.zeros((1, CROP, CROP, 3), np.uint8)
    return lambda: session.run(None, {"image": pixels})


def _session() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(PHOTO_MODEL / "model.onnx", options)


def _best(session: Any, pixels: Any) -> int:
    return int(session.run(None, {"image": np.ascontiguousarray(pixels)})[0].argmax())
