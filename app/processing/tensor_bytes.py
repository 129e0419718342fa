"""Tensors as the Open Inference Protocol has them in bytes: little-endian, row-major, without padding; of BYTES each
element is its length (unsigned, 32 bits) and its bytes.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import struct

import numpy as np

from app.errors import InvalidTensor
from app.processing.tensor import check_count_of_strings, reshape
from app.tensors import NUMPY_DTYPES, Array, TensorSpec, object_array

_LENGTH = struct.Struct("<I")


def array_from_bytes(data: memoryview, spec: TensorSpec) -> Array:
    """An array of exactly the spec's shape. It is read-only and keeps `data` alive; numbers are copied only where they
    do not lie on a multiple of their size, which kernels may not take.

    Raises InvalidTensor, naming the input, for another number of bytes, a BOOL not 0 or 1, a length past the end. It
    allocates nothing that the bytes are not there for.
    """
    if spec.datatype == "BYTES":
        return _strings(data, spec)
    dtype = NUMPY_DTYPES[spec.datatype]
    size = math.prod(spec.shape) * dtype.itemsize
    if len(data) != size:
        raise InvalidTensor(
            f"input {spec.name!r} has {len(data):,} bytes; {spec.datatype} of shape {list(spec.shape)} is {size:,}"
        )
    if dtype.kind == "b":
        flags = np.frombuffer(data, np.uint8)
        if flags.max(initial=0) > 1:
            raise InvalidTensor(f"input {spec.name!r} takes BOOL: each byte is 0 or 1")
        return reshape(flags.view(dtype), spec)
    array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)
    if not array.flags.aligned:
        array = array.copy()
    return reshape(array, spec)


def array_to_bytes(array: Array) -> bytes | memoryview:
    """Of a contiguous array of numbers its own memory, uncopied."""
    if array.dtype.kind == "O":
        return b"".join(_LENGTH.pack(len(value)) + value for value in map(_as_bytes, array.reshape(-1).tolist()))
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    # A view of no bytes cannot be cast.
    return little.reshape(-1).view(np.uint8).data if little.size else b""


def _as_bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _strings(data: memoryview, spec: TensorSpec) -> Array:
    count = math.prod(spec.shape)
    if count * _LENGTH.size > len(data):
        raise InvalidTensor(
            f"input {spec.name!r} has {len(data):,} bytes, too few for the lengths of the {count:,} elements of its "
            f"shape {list(spec.shape)}"
        )
    check_count_of_strings(count, spec)
    found: list[bytes] = []
    offset = 0
    for _ in range(count):
        begin = offset + _LENGTH.size
        if begin > len(data):
            raise InvalidTensor(f"input {spec.name!r} ends after {len(found):,} of {count:,} elements")
        offset = begin + _LENGTH.unpack_from(data, begin - _LENGTH.size)[0]
        if offset > len(data):
            raise InvalidTensor(f"input {spec.name!r}: element {len(found)} is longer than the bytes that are left")
        found.append(bytes(data[begin:offset]))
    if offset != len(data):
        raise InvalidTensor(f"input {spec.name!r} has {len(data) - offset:,} bytes after its last element")
    return reshape(object_array(found, (count,)), spec)
