"""Tensors in bytes and back, and bytes that lie."""

from __future__ import annotations

import math
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from app.errors import InvalidTensor
from app.processing.tensor_bytes import array_from_bytes, array_to_bytes
from app.tensors import NUMPY_DTYPES, TensorSpec, object_array

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def read(data: bytes, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    return array_from_bytes(memoryview(data), TensorSpec("x", datatype, shape))


@given(st.data(), st.sampled_from([name for name in NUMPY_DTYPES if name != "BYTES"]), SHAPES)
def test_numbers_there_and_back(data: st.DataObject, datatype: str, shape: tuple[int, ...]) -> None:
    array = data.draw(numpy_strategies.arrays(NUMPY_DTYPES[datatype], shape))
    sent = bytes(array_to_bytes(array))
    assert sent == array.astype(array.dtype.newbyteorder("<")).tobytes()
    found = read(sent, datatype, shape)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


@given(st.lists(st.binary(max_size=20), max_size=12), st.sampled_from([1, 2, 3]))
def test_strings_there_and_back(values: list[bytes], columns: int) -> None:
    values = values[: len(values) // columns * columns]
    array = object_array(values, (len(values) // columns, columns))
    sent = bytes(array_to_bytes(array))
    assert sent == b"".join(struct.pack("<I", len(value)) + value for value in values)
    found = read(sent, "BYTES", array.shape)
    assert found.shape == array.shape
    assert found.tolist() == array.tolist()


def test_transposed_array_is_written_in_row_major_order() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3).T
    assert bytes(array_to_bytes(array)) == np.array([0, 3, 1, 4, 2, 5], "<i2").tobytes()


def test_numbers_are_not_copied_where_they_are_aligned() -> None:
    data = bytearray(16)
    array = array_from_bytes(memoryview(data), TensorSpec("x", "INT32", (4,)))
    data[0] = 7
    assert array[0] == 7
    assert not array.flags.owndata


def test_numbers_that_lie_askew_are_moved() -> None:
    data = b"\0" + np.arange(4, dtype="<f8").tobytes()
    array = array_from_bytes(memoryview(data)[1:], TensorSpec("x", "FP64", (4,)))
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2, 3]


@given(st.binary(max_size=64), st.sampled_from(sorted(NUMPY_DTYPES)), st.lists(st.integers(0, 10**12), max_size=4))
def test_any_bytes_are_an_array_or_refused(data: bytes, datatype: str, sizes: list[int]) -> None:
    try:
        array = read(data, datatype, tuple(sizes))
    except InvalidTensor:
        return
    assert array.size == math.prod(sizes)


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "message"),
    [
        (b"\0" * 7, "FP32", (2,), "input 'x' has 7 bytes; FP32 of shape [2] is 8"),
        (b"", "FP32", (10**12,), "is 4,000,000,000,000"),
        (b"\0\2", "BOOL", (2,), "each byte is 0 or 1"),
        (b"", "BYTES", (10**12,), "too few for the lengths"),
        (bytes(4 * 262_145), "BYTES", (262_145,), "has 262,145 strings; send at most 262,144"),
        (b"\4\0\0\0abc\0", "BYTES", (2,), "ends after 1 of 2"),
        (b"\xff\xff\xff\xffabc", "BYTES", (1,), "element 0 is longer than the bytes that are left"),
        (b"\1\0\0\0ab", "BYTES", (1,), "has 1 bytes after its last element"),
        (b"\0\0\0\0", "BYTES", (0,), "has 4 bytes after its last element"),
        (b"", "INT8", (2**40, 2**40, 0), "has an impossible shape"),
        (b"", "BYTES", (2**40, 2**40, 0), "has an impossible shape"),
    ],
)
def test_bytes_that_lie(data: bytes, datatype: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidTensor, match=re.escape(message)):
        read(data, datatype, shape)
