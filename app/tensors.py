"""Tensor datatypes by the names of the Open Inference Protocol, and what numpy calls them.

Tensors inside Headway are numpy arrays. BYTES is an object array of `bytes`; a scalar is a 0-d array
(ONNX Runtime refuses numpy scalars).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Datatype = Literal[
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip
DATATYPES: tuple[str, ...] = get_args(Datatype)

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}


def shape_matches(declared: Sequence[int], actual: Sequence[int]) -> bool:
    """Whether `actual` is a shape of the declared form; -1 in `declared` is any size."""
    return len(declared) == len(actual) and all(want in (-1, have) for want, have in zip(declared, actual, strict=True))


def describe_shape(shape: Sequence[int]) -> str:
    """`[n, 64]`: a shape as people write it, with n for a free dimension."""
    return "[" + ", ".join("n" if size == -1 else str(size) for size in shape) + "]"


def object_array(values: Iterable[Any], shape: Sequence[int]) -> Array:
    """An object array (datatype BYTES) of the given elements in row-major order."""
    flat = np.empty(math.prod(shape), dtype=object)
    for position, value in enumerate(values):
        flat[position] = value
    return flat.reshape(shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model: -1 in `shape` is a free dimension, an empty shape a scalar."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.datatype} {describe_shape(self.shape)}"
