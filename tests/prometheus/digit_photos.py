"""Photos of handwritten digits in any light, and a classifier that has learned from bright ones.

The light fades and the noise of the camera stays, so in the dark the network no longer tells one digit from another.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from app.engine.inference import Inference
from app.optimize.baseline import find_inputs, measure, write_carrier
from app.optimize.evaluate import evaluate, find_samples
from app.optimize.labels_file import LABELS_FILE
from app.processing.image import ImageProcessing, ImageProcessor
from app.registry.servables.servable import Resolved
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import edit_manifest, onnx_file, write_model, write_release

Array = npt.NDArray[Any]
MODEL, MEASURED, SERVED = "digits", "1.0.0", "1.0.1"
LABELS = ("zero", "one", "two", "three")
SIDE = 16
# Levels of 255.
PAPER, INK, NOISE = 230, 220, 12
PROCESSING = {
    "type": "image", "resize": SIDE, "crop": SIDE, "filter": "bilinear",
    "colour": "GRAY", "layout": "NHWC", "normalise": "in_graph",
}  # fmt: skip
REFERENCE_PHOTOS = 700


@dataclass(frozen=True, slots=True)
class Photo:
    jpeg: bytes
    digit: int


class Camera:
    """Takes pictures of digits; which, and how, is drawn from `random`."""

    def __init__(self, random: np.random.Generator, *, is_learning: bool = False) -> None:
        """`is_learning`: of the digits to learn from, half of all; else of the others."""
        self._random = random
        self._images, self._digits = _digits(is_learning)

    def take(self, light: float = 1.0) -> Photo:
        """Of any digit, 20 to 32 pixels a side. Photos differ in light anyway; `light` is a factor to all of it."""
        number, side = self._random.integers(len(self._digits)), int(self._random.integers(20, 33))
        drawn = Image.fromarray((self._images[number] / 16 * INK).astype(np.uint8))
        ink = np.asarray(drawn.resize((side, side), Image.Resampling.BICUBIC), np.float64)
        lit = (PAPER - ink) * light * np.clip(self._random.normal(0.85, 0.07), 0.6, 1.05)
        levels = lit + self._random.normal(0, NOISE, lit.shape)
        buffer = io.BytesIO()
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        return Photo(buffer.getvalue(), int(self._digits[number]))


def publish(root: Path, folder: Path) -> None:
    """Write `root`/digits and release SERVED: with its accuracy on photos that it has not learned, and their baseline.

    The photos are kept in `folder`.
    """
    random = np.random.default_rng(11)
    directory = write_model(
        root, MODEL, MEASURED, kind="colour", processing=PROCESSING,
        files={"model.onnx": _learn(random), "labels.txt": "".join(f"{label}\n" for label in LABELS).encode()},
        inputs=[{"name": "image", "datatype": "UINT8", "shape": [-1, SIDE, SIDE, 1]}],
        outputs=[{"name": "scores", "datatype": "FP32", "shape": [-1, len(LABELS)]}],
        answer={"activation": "softmax"},
    )  # fmt: skip
    _save_photos(folder, Camera(random))
    inference, resolved = _open(root)
    found = evaluate(inference, resolved, find_samples(folder, LABELS))
    inference.registry.close()
    edit_manifest(directory, evaluation=[{"data": "bright photos", "n": found.n, "top1": found.top1}])
    inference, resolved = _open(root)
    measured = measure(inference, resolved, find_inputs(resolved.servable, folder), "bright photos")
    target = root / MODEL / SERVED
    target.mkdir()
    write_carrier(target, directory, resolved.servable.manifest, measured.baseline)
    inference.registry.close()
    write_release(root, MODEL, SERVED)


@cache
def _digits(is_learning: bool) -> tuple[Array, Array]:
    """Images of 8 by 8 pixels, 0 to 16, and what they show: Alpaydin and Kaynak, UCI repository, 1998."""
    data = load_digits(n_class=len(LABELS))
    order = np.random.default_rng(5).permutation(len(data.target))
    chosen = order[::2] if is_learning else order[1::2]
    return data.images[chosen], data.target[chosen]


def _learn(random: np.random.Generator) -> bytes:
    """The ONNX file of a logistic regression on the pixels of bright photos."""
    camera, prepare = Camera(random, is_learning=True), ImageProcessor(ImageProcessing(**PROCESSING)).prepare
    photos = [camera.take() for _ in range(500)]
    pixels = np.array([prepare(photo.jpeg).ravel() for photo in photos]) / 255
    learned = LogisticRegression(C=0.1, max_iter=300).fit(pixels, [photo.digit for photo in photos])
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=1),
        helper.make_node("Flatten", ["levels"], ["row"]),
        helper.make_node("Gemm", ["row", "weights", "bias"], ["scores"]),
    ]
    constants = {
        "weights": (learned.coef_.T / 255).astype(np.float32),
        "bias": learned.intercept_.astype(np.float32),
    }
    image, scores = ("image", "UINT8", [-1, SIDE, SIDE, 1]), ("scores", "FP32", [-1, len(LABELS)])
    return onnx_file(nodes, [image], [scores], constants)


def _save_photos(folder: Path, camera: Camera) -> None:
    folder.mkdir()
    with (folder / LABELS_FILE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["filename", "class_index"])
        for number in range(REFERENCE_PHOTOS):
            photo = camera.take()
            (folder / f"{number:03}.jpg").write_bytes(photo.jpeg)
            table.writerow([f"{number:03}.jpg", photo.digit])


def _open(root: Path) -> tuple[Inference, Resolved]:
    registry = Registry(Store(root))
    return Inference(registry), registry.open(ModelRef(MODEL, MEASURED))
