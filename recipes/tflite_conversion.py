"""EfficientNet-Lite0 as a float TFLite file that takes bytes and gives probabilities.

The network goes the way of `headway convert`, whose converter has an environment of its own
(`VENV=.venv-conversion scripts/setup.sh conversion`); one machine gives one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from app.optimize.conversion.from_torch import program_to_tflite
from app.optimize.networks.tflite_file import read_tflite, write_tflite
from app.optimize.networks.torch_export import export_program
from app.tensors import TensorSpec
from recipes.graph import INPUT, OUTPUT, PIXEL_SCALE, PIXEL_ZERO_POINT, SIDE, trained_network

_KINDS = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


def convert_network(path: Path, converter: Path) -> Mapping[str, str]:
    """Write the float32 file, uint8 [1, 224, 224, 3] to probabilities. `converter` is the Python with litert-torch.
    Returns the versions of what made it."""
    shape = (SIDE, SIDE, 3)
    program = export_program(trained_network("NHWC"), np.zeros((1, *shape), np.float32))
    made_with = program_to_tflite(program, (TensorSpec(INPUT, "FP32", (-1, *shape)),), (OUTPUT,), path, converter)
    model = read_tflite(path.read_bytes())
    attach_pixels(model)
    name_inner_tensors(model)
    path.write_bytes(write_tflite(model))
    return made_with


def attach_pixels(model: Any) -> None:
    """uint8 in: (x - 127) / 128 is what dequantisation computes, and what `headway quantize` then leaves out."""
    (graph,) = model.subgraphs
    (first,) = graph.inputs
    pixels = schema.TensorT()
    pixels.shape, pixels.buffer = graph.tensors[first].shape, 0
    pixels.name, pixels.type = INPUT.encode(), schema.TensorType.UINT8
    pixels.quantization = schema.QuantizationParametersT()
    pixels.quantization.scale, pixels.quantization.zeroPoint = [PIXEL_SCALE], [PIXEL_ZERO_POINT]
    graph.tensors.append(pixels)
    graph.inputs = [len(graph.tensors) - 1]
    graph.operators.insert(0, _dequantize(model, graph.inputs[0], first))
    (entry,) = model.signatureDefs[0].inputs
    entry.name, entry.tensorIndex = INPUT.encode(), graph.inputs[0]


def name_inner_tensors(model: Any) -> None:
    """After the operators that make them, by their place in the graph: the converter's names are of its own classes."""
    (graph,) = model.subgraphs
    outside = {*graph.inputs, *graph.outputs}
    names = {tensor: f"t{tensor}" for tensor in range(len(graph.tensors))}
    for place, operator in enumerate(graph.operators):
        kind = _KINDS[model.operatorCodes[operator.opcodeIndex].builtinCode].lower()
        names |= dict.fromkeys(operator.outputs, f"{kind}_{place}")
    for tensor, name in names.items():
        if tensor not in outside:
            graph.tensors[tensor].name = name.encode()
    (output,) = graph.outputs
    graph.tensors[output].name = OUTPUT.encode()


def _dequantize(model: Any, source: int, target: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 1
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes) - 1, [source], [target]
    return operator
