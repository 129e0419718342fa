"""Nested lists to arrays and back; every wrong value is refused with the input's name."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import InvalidTensor
from app.processing.tensor import array_from_json, check_tensors, tensors_from_bytes, tensors_from_json, tensors_to_json
from app.tensors import DATATYPES, NUMPY_DTYPES, Array, TensorSpec, object_array


def _read(values: Any, datatype: str = "FP32", shape: tuple[int, ...] = (-1,)) -> Array:
    return tensors_from_json(values, [TensorSpec("x", datatype, shape)])["x"]


def _nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def test_tensors_from_json_one_input_as_list_or_by_name() -> None:
    spec = TensorSpec("x", "FP32", (-1, 2))
    for values in ([[1, 2], [3, 4.5]], {"x": [[1, 2], [3, 4.5]]}):
        array = tensors_from_json(values, [spec])["x"]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, [[1, 2], [3, 4.5]])


def test_tensors_from_json_several_inputs_need_names() -> None:
    specs = [TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT64", (-1,))]
    made = tensors_from_json({"b": [2], "a": [1]}, specs)
    assert {name: array.dtype for name, array in made.items()} == {"a": np.float32, "b": np.int64}
    with pytest.raises(InvalidTensor, match="several inputs: send inputs as an object with the keys a, b"):
        tensors_from_json([[1], [2]], specs)


def test_tensors_from_json_wrong_and_missing_name() -> None:
    with pytest.raises(InvalidTensor, match="input 'x' is missing; there is no input 'y': this model's inputs are x"):
        tensors_from_json({"y": [1]}, [TensorSpec("x", "FP32", (-1,))])
    with pytest.raises(InvalidTensor, match="there is no input 'y'"):
        tensors_from_json({"x": [1], "y": [1]}, [TensorSpec("x", "FP32", (-1,))])


REFUSED: dict[str, tuple[Any, str, tuple[int, ...], str]] = {
    "ragged": ([[1], [2, 3]], "FP32", (-1, 1), "ragged"),
    "a number beside a list": ([[1], 2], "FP32", (-1, 1), "ragged"),
    "null": ([1, None], "FP32", (-1,), "without null or text"),
    "only null": (None, "FP32", (), "without null or text"),
    "text": (["1"], "FP32", (-1,), "without null or text"),
    "one text": ("1", "FP32", (), "without null or text"),
    "text beside a number": ([1, "2"], "INT64", (-1,), "without null or text"),
    "an object": ([{"a": 1}], "FP32", (-1,), "without null or text"),
    "NaN": ([math.nan], "FP32", (-1,), "NaN, infinite or too large for FP32"),
    "Infinity": ([math.inf], "FP64", (-1,), "NaN, infinite or too large for FP64"),
    "1e400": (json.loads("[1e400]"), "FP64", (-1,), "infinite"),
    "1e39 for FP32": ([1e39], "FP32", (-1,), "too large for FP32"),
    "70000 for FP16": ([70_000], "FP16", (-1,), "too large for FP16"),
    "10**400 for FP64": ([10**400], "FP64", (-1,), "too large for FP64"),
    "NaN for an integer": ([math.nan], "INT8", (-1,), "whole numbers"),
    "Infinity for an integer": ([math.inf], "INT64", (-1,), "values from"),
    "a fraction for an integer": ([1.5], "INT64", (-1,), r"whole numbers \(INT64\)"),
    "negative for UINT8": ([-1], "UINT8", (-1,), "UINT8: values from 0 to 255"),
    "256 for UINT8": ([256], "UINT8", (-1,), "values from 0 to 255"),
    "2**63 for INT64": ([2**63], "INT64", (-1,), "values from -9223372036854775808"),
    "2.0**63 for INT64": ([2.0**63], "INT64", (-1,), "values from -9223372036854775808"),
    "2**63 beside -1 for INT64": ([2**63, -1], "INT64", (-1,), "values from -9223372036854775808"),
    "2.0**64 for UINT64": ([2.0**64], "UINT64", (-1,), "to 18446744073709551615"),
    "2**64 for UINT64": ([2**64], "UINT64", (-1,), "to 18446744073709551615"),
    "10**400 for INT64": ([10**400], "INT64", (-1,), "values from"),
    "true for a number": ([True], "FP32", (-1,), "takes FP32, not bool"),
    "a number for BOOL": ([1], "BOOL", (-1,), "takes BOOL, not int64"),
    "null for BOOL": ([None], "BOOL", (-1,), "BOOL"),
    "too few dimensions": ([1, 2], "FP32", (-1, 2), r"has shape \[2\]; it takes \[n, 2\], where n is any number"),
    "too many dimensions": ([[[1]]], "FP32", (-1, 1), r"has shape \[1, 1, 1\]; it takes \[n, 1\]"),
    "wrong size": ([[1, 2, 3]], "FP32", (-1, 2), r"has shape \[1, 3\]"),
    "no rows, and no columns": ([], "FP32", (-1, 2), r"has shape \[0\]; it takes \[n, 2\]"),
    "a list for a scalar": ([1], "FP32", (), r"has shape \[1\]; it takes \[\]"),
    "a scalar for a list": (1, "FP32", (-1,), r"has shape \[\]; it takes \[n\]"),
    "a number for BYTES": ([1], "BYTES", (-1,), "takes strings"),
    "null for BYTES": ([None], "BYTES", (-1,), "takes strings"),
    "ragged for BYTES": ([["a"], ["b", "c"]], "BYTES", (-1,), "takes strings"),
    "half a surrogate pair": (["\ud800"], "BYTES", (-1,), "no valid Unicode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_from_json_refuses(name: str) -> None:
    values, datatype, shape, message = REFUSED[name]
    with pytest.raises(InvalidTensor, match=message) as caught:
        _read(values, datatype, shape)
    assert "input 'x'" in str(caught.value)


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "BYTES"])
@pytest.mark.parametrize("depth", [2, 32, 33, 64, 65, 900])
def test_tensors_from_json_refuses_deep_lists(depth: int, datatype: str) -> None:
    with pytest.raises(InvalidTensor, match="input 'x'"):
        _read(_nested(depth, {"BYTES": "a", "BOOL": True}.get(datatype, 1)), datatype)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("BOOL", "BYTES")])
def test_tensors_from_json_whole_numbers(datatype: str) -> None:
    array = _read([0, 1, 100.0], datatype)
    assert array.dtype == NUMPY_DTYPES[datatype]
    assert array.tolist() == [0, 1, 100]


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"])
def test_tensors_from_json_ends_of_the_range(datatype: str) -> None:
    info = np.iinfo(NUMPY_DTYPES[datatype])
    assert _read([info.max], datatype).tolist() == [info.max]
    assert _read([info.min], datatype).tolist() == [info.min]
    for beyond in (info.max + 1, info.min - 1):
        with pytest.raises(InvalidTensor, match="values from"):
            _read([beyond], datatype)


def test_tensors_from_json_integers_that_numpy_has_no_type_for() -> None:
    assert _read([10**20, 0.5], "FP64").tolist() == [1e20, 0.5]


def test_tensors_from_json_booleans_and_strings() -> None:
    assert _read([[True, False]], "BOOL", (-1, 2)).tolist() == [[True, False]]
    strings = _read([["a", "grün"], ["", "\0"]], "BYTES", (-1, 2))
    assert strings.dtype == object
    assert strings.tolist() == [[b"a", "grün".encode()], [b"", b"\0"]]


def test_tensors_from_json_scalar() -> None:
    array = _read(5, "FP32", ())
    assert isinstance(array, np.ndarray)
    assert array.shape == ()
    assert array.dtype == np.float32
    assert _read("a", "BYTES", ()).tolist() == b"a"


def test_tensors_from_json_empty_batch_where_the_size_is_free() -> None:
    assert _read([], "FP32").shape == (0,)
    assert _read([], "BYTES").shape == (0,)
    assert _read(np.zeros((0, 3)), "FP32", (-1, 3)).shape == (0, 3)


def test_tensors_from_json_takes_arrays() -> None:
    assert _read(np.array([1.0, 2.0]), "FP32").dtype == np.float32
    given = np.array([1, 2], np.uint8)
    assert _read(given, "UINT8").tolist() == [1, 2]
    assert _read(np.array(["a", "b"]), "BYTES").tolist() == [b"a", b"b"]
    with pytest.raises(InvalidTensor, match="NaN"):
        _read(np.array([np.nan], np.float32), "FP32")


def test_check_tensors() -> None:
    specs = [TensorSpec("x", "FP32", (-1, 2))]
    check_tensors({"x": np.zeros((5, 2), np.float32)}, specs)
    with pytest.raises(InvalidTensor, match="datatype float64; it takes FP32"):
        check_tensors({"x": np.zeros((5, 2))}, specs)
    with pytest.raises(InvalidTensor, match=r"shape \[5\]"):
        check_tensors({"x": np.zeros(5, np.float32)}, specs)
    with pytest.raises(InvalidTensor, match="'x' is missing"):
        check_tensors({}, specs)


def test_tensors_to_json_replaces_what_json_has_not() -> None:
    lists, replaced = tensors_to_json({"y": np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float32)})
    assert lists == {"y": [[1.5, None], [None, None]]}
    assert replaced
    assert tensors_to_json({"y": np.array(np.nan)}) == ({"y": None}, True)


def test_tensors_to_json_other_kinds() -> None:
    lists, replaced = tensors_to_json(
        {
            "flags": np.array([True, False]),
            "words": object_array([b"a", "grün".encode(), b"\xff"], (3,)),
            "word": object_array([b"a"], ()),
            "scalar": np.array(3, np.int64),
            "none": np.zeros((0, 2), np.float32),
        }
    )
    assert lists == {"flags": [True, False], "words": ["a", "grün", "\ufffd"], "word": "a", "scalar": 3, "none": []}
    assert not replaced
    json.dumps(lists, allow_nan=False)


_shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)
_round_trips = settings(deadline=None, database=None, derandomize=True)


@_round_trips
@given(st.data(), st.sampled_from([name for name in DATATYPES if name != "BYTES"]), _shapes)
def test_round_trip_of_numbers(data: st.DataObject, datatype: str, shape: tuple[int, ...]) -> None:
    dtype = NUMPY_DTYPES[datatype]
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    array = data.draw(hnp.arrays(dtype, shape, elements=elements))
    lists, replaced = tensors_to_json({"x": array})
    assert not replaced
    again = _read(json.loads(json.dumps(lists["x"])), datatype, tuple(-1 for _ in shape))
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, array)


@_round_trips
@given(st.data(), _shapes)
def test_round_trip_of_strings(data: st.DataObject, shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    texts = data.draw(st.lists(st.text(st.characters(codec="utf-8")), min_size=count, max_size=count))
    array = object_array((text.encode() for text in texts), shape)
    lists, _ = tensors_to_json({"x": array})
    again = _read(json.loads(json.dumps(lists["x"])), "BYTES", shape)
    assert again.shape == shape
    assert again.reshape(-1).tolist() == array.reshape(-1).tolist()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(_json, st.sampled_from(DATATYPES), st.sampled_from([(), (-1,), (-1, 2), (-1, -1)]))
def test_any_json_gives_a_good_array_or_invalid_tensor(values: Any, datatype: str, shape: tuple[int, ...]) -> None:
    try:
        array = _read(values, datatype, shape)
    except InvalidTensor:
        return
    check_tensors({"x": array}, [TensorSpec("x", datatype, shape)])


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("BYTES", "BOOL")])
@pytest.mark.parametrize(("shape", "actual"), [((-1, 3), (2, 3)), ((3, -1), (3, 2)), ((2, 3), (2, 3)), ((), ())])
def test_tensors_from_bytes_gives_the_array_without_a_copy(
    datatype: str, shape: tuple[int, ...], actual: tuple[int, ...]
) -> None:
    expected = np.arange(math.prod(actual)).reshape(actual).astype(NUMPY_DTYPES[datatype])
    data = expected.astype(expected.dtype.newbyteorder("<")).tobytes()
    array = tensors_from_bytes(data, [TensorSpec("x", datatype, shape)])["x"]
    assert array.dtype == NUMPY_DTYPES[datatype]
    np.testing.assert_array_equal(array, expected)
    assert array.flags.c_contiguous
    if sys.byteorder == "little":
        assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_tensors_from_bytes_booleans_are_0_or_1() -> None:
    spec = TensorSpec("x", "BOOL", (-1, 2))
    array = tensors_from_bytes(b"\0\1\1\0", [spec])["x"]
    np.testing.assert_array_equal(array, [[False, True], [True, False]])
    assert array.dtype == np.bool_
    with pytest.raises(InvalidTensor, match="each byte is 0 or 1"):
        tensors_from_bytes(b"\0\2", [spec])


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "words"),
    [
        ("FP32", (-1, 3), 13, r"takes 12 bytes a row \(FP32 \[n, 3\]\); the body has 13 bytes"),
        ("FP32", (-1, 3), 0, "the body has 0 bytes"),
        ("FP64", (3, -1), 23, r"takes 24 bytes for each n \(FP64 \[3, n\]\)"),
        ("UINT8", (-1, 224, 224, 3), 150_527, "takes 150,528 bytes a row"),
        ("INT64", (2,), 24, r"takes 16 bytes \(INT64 \[2\]\); the body has 24 bytes"),
        ("FP32", (), 3, r"takes 4 bytes \(FP32 \[\]\)"),
        ("FP32", (-1, 3, -1, -1), 12, "does not tell its 3 free sizes; send JSON inputs"),
        ("BYTES", (-1,), 3, "takes strings"),
        ("FP32", (-1, 0), 8, "the body has 8 bytes"),
    ],
)
def test_tensors_from_bytes_refuses(datatype: str, shape: tuple[int, ...], size: int, words: str) -> None:
    with pytest.raises(InvalidTensor, match=words):
        tensors_from_bytes(b"\0" * size, [TensorSpec("x", datatype, shape)])


def test_tensors_from_bytes_takes_one_input_only() -> None:
    specs = [TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT64", (-1,))]
    with pytest.raises(InvalidTensor, match="the inputs a, b, and a raw body carries one"):
        tensors_from_bytes(b"\0" * 8, specs)


@pytest.mark.parametrize("values", [[2**64 - 1, 0], [[2**63 + 1], [1]], [2**63, 2**63 - 1]])
def test_whole_numbers_on_both_sides_of_2_to_the_63_stay_exact(values: Any) -> None:
    """numpy takes such a list for FP64, which has no such numbers."""
    shape = tuple(-1 for _ in np.shape(values))
    assert _read(values, "UINT64", shape).tolist() == values
    with pytest.raises(InvalidTensor):
        _read(values, "INT64", shape)


def test_strings_are_so_many_at_most() -> None:
    spec = TensorSpec("text", "BYTES", (2**18 + 1,))
    with pytest.raises(InvalidTensor, match="input 'text' has 262,145 strings; send at most 262,144"):
        array_from_json([""] * (2**18 + 1), spec)
    assert array_from_json([""] * 4, TensorSpec("text", "BYTES", (2, 2))).tolist() == [[b"", b""], [b"", b""]]
