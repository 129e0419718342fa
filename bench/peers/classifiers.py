"""What every peer serves: the shipped photo model and the tiny one, as a user of any of them would write it.

BENCH_MODELS is the registry directory. BENCH_PIXELS says whose image steps run: `usual` (Pillow, the whole photo)
or `headway` (the product's own, pasted in).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

TINY_LABELS = ("first", "second", "third")


def usual_pixels(data: bytes) -> Any:
    """uint8 of shape [1, 224, 224, 3]; the model's graph normalises, (x - 127) / 128."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)))[np.newaxis]


def choose_pixels() -> Callable[[bytes], Any]:
    if os.environ.get("BENCH_PIXELS") != "headway":
        return usual_pixels
    from app.processing.image import ImageProcessing, ImageProcessor

    parameters = ImageProcessing(
        type="image", resize=256, crop=224, filter="bicubic", colour="RGB", layout="NHWC", normalise="in_graph"
    )
    return ImageProcessor(parameters).prepare


def one_thread_session(path: Path) -> ort.InferenceSession:
    """ONNX Runtime's advice where there is a process for each core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options)


class PhotoClassifier:
    def __init__(self) -> None:
        directory = Path(os.environ["BENCH_MODELS"], "efficientnet-lite0/1.1.0")
        self.session = one_thread_session(directory / "model.onnx")
        self.labels = (directory / "labels.txt").read_text(encoding="utf-8").splitlines()
        self.pixels = choose_pixels()

    def classify(self, data: bytes) -> list[dict[str, Any]]:
        """The five likeliest labels, the likeliest first."""
        scores = self.session.run(None, {"image": self.pixels(data)})[0][0]
        best = np.argsort(scores)[::-1][:5]
        return [{"label": self.labels[i], "confidence": float(scores[i])} for i in best]


class TinyClassifier:
    def __init__(self) -> None:
        self.session = one_thread_session(Path(os.environ["BENCH_MODELS"], "tiny/1.0.0/model.onnx"))

    def classify(self, rows: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """The likeliest label of each row."""
        scores = self.session.run(None, {"features": np.array(rows, np.float32)})[0]
        return [{"label": TINY_LABELS[int(row.argmax())], "confidence": float(row.max())} for row in scores]
