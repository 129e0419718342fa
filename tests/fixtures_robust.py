"""Classifiers whose answers under attack can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper
from PIL import Image

from app.optimize.examples import Examples
from tests.fixtures_models import onnx_file, write_model
from tests.fixtures_tflite import Network, Node, tflite_file

COLOURS = ("red", "green", "blue")


def write_linear(root: Path, weights: np.ndarray, bias: float, version: str = "1.0.0", **overrides: Any) -> Path:
    """Two classes: the logit of the second is weights · x + bias, that of the first 0. FP32."""
    columns = len(weights)
    constants = {
        "weights": np.stack([np.zeros(columns), weights], axis=1).astype(np.float32),
        "bias": np.array([0, bias], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["scores"]),
    ]
    model = onnx_file(nodes, [("x", "FP32", [-1, columns])], [("scores", "FP32", [-1, 2])], constants)
    return write_model(
        root,
        "linear",
        version,
        files={"model.onnx": model, "labels.txt": b"no\nyes\n"},
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, columns]}],
        outputs=[{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
        answer={"activation": "softmax"},
        **overrides,
    )


def write_colour_tflite(root: Path, version: str = "1.0.0") -> Path:
    """The kind `colour` of fixtures_models as TFLite, for photos of 8 × 8, normalised before it."""
    network = Network(
        {"image": ("FP32", [-1, 8, 8, 3]), "scores": ("FP32", [-1, 3])},
        ["image"], ["scores"], [Node("MEAN", ["image", "axes"], ["scores"], {"type": "ReducerOptions"})],
        {"axes": np.array([1, 2], np.int32)},
    )  # fmt: skip
    return write_model(
        root,
        "colour",
        version,
        kind="colour",
        files={"model.tflite": tflite_file(network)},
        runtime="tflite",
        inputs=[{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8, 3]}],
        processing={"resize": 8, "crop": 8, "normalise": {"mean": [0], "scale": [255]}},
    )


def write_colour(root: Path, version: str = "1.0.0", **overrides: Any) -> Path:
    """The kind `colour` of fixtures_models, for photos of 8 × 8: the class is the channel with the highest mean."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=1),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["scores"]),
    ]
    shape = [-1, 8, 8, 3]
    constants = {"white": np.array(255, np.float32)}
    return write_model(
        root,
        "colour",
        version,
        kind="colour",
        files={"model.onnx": onnx_file(nodes, [("image", "UINT8", shape)], [("scores", "FP32", [-1, 3])], constants)},
        inputs=[{"name": "image", "datatype": "UINT8", "shape": shape}],
        processing={"resize": 8, "crop": 8},
        **overrides,
    )


def write_photos(folder: Path, count: int, seed: int = 0) -> np.ndarray:
    """Photos of one colour each, 8 × 8, in a folder a class; returns the colours, [count, 3], in the order of files."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(100, 140, (count, 3)).astype(np.uint8)
    rows = sorted(enumerate(colours), key=lambda item: (COLOURS[int(item[1].argmax())], f"{item[0]:03}"))
    for number, colour in rows:
        place = folder / COLOURS[int(colour.argmax())]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(colour, (8, 8, 3)).copy()).save(place / f"{number:03}.png")
    return np.stack([colour for _, colour in rows])


def rows_as_examples(values: np.ndarray, classes: Sequence[int], name: str = "x") -> Examples:
    return Examples(
        "rows",
        len(values),
        lambda number: f"row {number}",
        lambda number: {name: values[number : number + 1]},
        list(classes),
    )


def no_progress(_name: str, _total: int) -> Callable[[], None]:
    return lambda: None
