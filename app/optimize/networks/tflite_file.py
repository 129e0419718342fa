"""TFLite files as objects of LiteRT's schema, and back.

Imports LiteRT and numpy alone, so that recipes can use it where nothing else of Headway's is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]
from ai_edge_litert.tools import flatbuffer_utils  # type: ignore[import-untyped]

_ALIGNMENT = 16  # of the weights, as the schema asks (force_align) and Python's flatbuffers do not


def read_tflite(content: bytes) -> Any:
    """The file as a ModelT, with all its weights in `buffers`. LiteRT must have found it valid before."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def write_tflite(model: Any) -> bytes:
    """The file of a ModelT, whose buffers are replaced."""
    model.buffers = [_AlignedBuffer(buffer) for buffer in model.buffers]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


class _AlignedBuffer(schema.BufferT):
    def __init__(self, buffer: Any) -> None:
        super().__init__()
        if buffer.data is not None:
            self.data = np.frombuffer(bytes(buffer.data), np.uint8)

    def Pack(self, builder: Any) -> int:
        if self.data is not None:
            builder.Prep(_ALIGNMENT, len(self.data))
        return int(super().Pack(builder))
