"""Float TFLite networks with layers: the shipped digits, and a small classifier of photo bytes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import numpy_helper

from app.registry.drafting.draft import write_manifest
from tests.fixtures_tflite import Network, Node, tflite_file
from tests.running import ROOT

SIDE, CLASSES = 8, 5
_RELU, _RELU6 = 1, 3  # of schema.ActivationFunctionType
_DENSE = "FullyConnectedOptions"


@cache
def digits_tflite() -> bytes:
    """digits 1.1.0: pixels FP32 [n, 64] to probabilities FP32 [n, 10]."""
    model = onnx.load(ROOT / "models" / "digits" / "1.1.0" / "model.onnx")
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # Its scaling of pixels stands in the first layer here.
    scale, shift, first = found["Mu_Mulcst"], found["Ad_Addcst"], found["coefficient"]
    constants = {
        "w1": (scale[:, None] * first).T, "b1": found["intercepts"].ravel() + shift @ first,
        "w2": found["coefficient1"].T, "b2": found["intercepts1"].ravel(),
    }  # fmt: skip
    return tflite_file(
        Network(
            {
                "pixels": ("FP32", [-1, 64]), "hidden": ("FP32", [-1, 100]),
                "logits": ("FP32", [-1, 10]), "probabilities": ("FP32", [-1, 10]),
            },
            ["pixels"], ["probabilities"],
            [
                Node("FULLY_CONNECTED", ["pixels", "w1", "b1"], ["hidden"], _options(_DENSE, _RELU)),
                Node("FULLY_CONNECTED", ["hidden", "w2", "b2"], ["logits"], _options(_DENSE)),
                Node("SOFTMAX", ["logits"], ["probabilities"], {"beta": 1.0}),
            ],
            {name: np.ascontiguousarray(value, np.float32) for name, value in constants.items()},
        )
    )  # fmt: skip


def photo_weights() -> dict[str, np.ndarray]:
    """Of `photo_tflite`; the last channel of `first` has next to no weights, and a bias of 3, the first of `second` and
    of `logits` none."""
    rng = np.random.default_rng(3)
    found = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)), "b1": rng.normal(0, 0.1, 8),
        "w2": rng.normal(0, 0.4, (1, 3, 3, 8)), "b2": rng.normal(0, 0.1, 8),
        "w3": rng.normal(0, 0.4, (16, 1, 1, 8)), "b3": rng.normal(0, 0.1, 16),
        "w4": rng.normal(0, 0.4, (CLASSES, 16)), "b4": rng.normal(0, 0.1, CLASSES),
    }  # fmt: skip
    found["w1"][-1], found["b1"][-1] = 1e-13, 3.0
    found["w2"][..., 0], found["w4"][0] = 0, 0
    return {name: value.astype(np.float32) for name, value in found.items()}


def photo_tflite(*, signature: bool = True) -> bytes:
    """Photo bytes [1, 8, 8, 3], (x - 127) / 128, three convolutions, mean, a product, scores [1, 5]."""
    tensors = {
        "image": ("UINT8", [1, SIDE, SIDE, 3]), "floats": ("FP32", [1, SIDE, SIDE, 3]),
        "first": ("FP32", [1, SIDE, SIDE, 8]), "second": ("FP32", [1, SIDE, SIDE, 8]),
        "third": ("FP32", [1, SIDE, SIDE, 16]), "mean": ("FP32", [1, 16]),
        "logits": ("FP32", [1, CLASSES]), "scores": ("FP32", [1, CLASSES]),
    }  # fmt: skip
    conv, depthwise = "Conv2DOptions", "DepthwiseConv2DOptions"
    strides = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    nodes = [
        Node("DEQUANTIZE", ["image"], ["floats"]),
        Node("CONV_2D", ["floats", "w1", "b1"], ["first"], _options(conv, _RELU6) | strides),
        Node(
            "DEPTHWISE_CONV_2D", ["first", "w2", "b2"], ["second"],
            _options(depthwise, _RELU6) | strides | {"depthMultiplier": 1},
        ),
        Node("CONV_2D", ["second", "w3", "b3"], ["third"], _options(conv, _RELU) | strides),
        Node("MEAN", ["third", "axes"], ["mean"], {"type": "ReducerOptions", "keepDims": False}),
        Node("FULLY_CONNECTED", ["mean", "w4", "b4"], ["logits"], _options(_DENSE)),
        Node("SOFTMAX", ["logits"], ["scores"], {"beta": 1.0}),
    ]  # fmt: skip
    constants = photo_weights() | {"axes": np.array([1, 2], np.int32)}
    names: Mapping[str, str] | None = {} if signature else None
    scales = {"image": (1 / 128, 127)}
    return tflite_file(Network(tensors, ["image"], ["scores"], nodes, constants, scales, names))


def write_digits_tflite(root: Path, name: str = "digits-tflite", version: str = "1.0.0") -> Path:
    """digits 1.1.0 as a version of runtime tflite, golden requests and all."""
    directory = root / name / version
    shutil.copytree(ROOT / "models" / "digits" / "1.1.0", directory)
    (directory / "model.onnx").unlink()
    (directory / "model.tflite").write_bytes(digits_tflite())
    content = yaml.safe_load((directory / "model.yaml").read_text(encoding="utf-8"))
    del content["files"]
    write_manifest(directory, content | {"name": name, "version": version, "runtime": "tflite"})
    return directory


def _options(kind: str, activation: int = 0) -> dict[str, Any]:
    return {"type": kind, "fusedActivationFunction": activation}
