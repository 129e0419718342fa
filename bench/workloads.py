"""What is sent: the same bytes to every server, made from the example photo and a tiny model of our own."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).parent.parent
PHOTO_MODEL = ROOT / "models/efficientnet-lite0/1.1.0"
PHOTO_LABEL = "tiger cat"
PHOTO_BYTES = 100_000
ROW = [5.1, 3.5, 1.4, 0.2]


@dataclass(frozen=True, slots=True)
class Workload:
    """`key` is its letter in the reports; `body` goes to `path` with `content_type` and `headers`.

    `expects` is in every answer.
    """

    key: str
    title: str
    path: str
    content_type: str
    body: bytes
    expects: str
    headers: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def photo() -> bytes:
    """The example photo as a 500 × 375 JPEG of about 100 kB."""
    image = Image.open(ROOT / "examples/cat.jpg").resize((500, 375), Image.Resampling.LANCZOS)
    for quality in range(99, 50, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= PHOTO_BYTES * 1.05:
            break
    return buffer.getvalue()


def workloads() -> dict[str, Workload]:
    data = photo()
    encoded = base64.b64encode(data).decode()
    cases = (
        Workload("a", "base64 JSON photo", "/predict", "application/json", _json({"image": encoded}), "cat"),
        Workload("b", "raw JPEG body", "/predict", "image/jpeg", data, "cat"),
        Workload(
            "c",
            "four floats as JSON, tiny model",
            "/predict",
            "application/json",
            _json({"inputs": [ROW], "model": "tiny"}),
            "first",
        ),
    )
    return {case.key: case for case in cases}


def write_registry(root: Path) -> None:
    """A registry with the shipped photo model and a tiny one: four floats to three classes."""
    (root / "efficientnet-lite0").symlink_to(PHOTO_MODEL.parent)
    directory = root / "tiny/1.0.0"
    directory.mkdir(parents=True)
    onnx.save(_tiny_model(), directory / "model.onnx")
    (directory / "labels.txt").write_text("first\nsecond\nthird\n")
    files = {name: directory / name for name in ("model.onnx", "labels.txt")}
    manifest = {
        "schema": 1,
        "name": "tiny",
        "version": "1.0.0",
        "task": "tabular-classification",
        "runtime": "onnx",
        "files": {
            name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
            for name, path in files.items()
        },
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
        "batch": {"axis": 0, "max_size": 64},
        "processing": {"type": "tensor"},
        "answer": {"type": "classification", "output": "probabilities", "activation": "none", "labels": "labels.txt"},
        "licence": "Apache-2.0",
    }
    (directory / "model.yaml").write_text(json.dumps(manifest))  # JSON is YAML
    (root / "registry.yaml").write_text('{"schema": 1, "defaults": {"image": "efficientnet-lite0", "tensor": "tiny"}}')


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


def _tiny_model() -> onnx.ModelProto:
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
