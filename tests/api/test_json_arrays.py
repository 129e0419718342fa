"""Pieces put together are what one piece would be."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from typing import Any

import numpy as np
import pytest

from app.api.json_arrays import PIECE, array_to_json, render_aside, values_to_json
from app.tensors import object_array

SHAPES = [(), (0,), (3,), (2, 0, 4), (PIECE,), (PIECE + 1,), (3, PIECE + 1), (2, 3, PIECE), (PIECE, 3), (2, PIECE, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype=np.float64).reshape(shape) / 2
    parts, not_finite = values_to_json(array)
    assert json.loads(b"".join(parts)) == array.tolist()
    assert not not_finite


@pytest.mark.parametrize("shape", [(3,), (2, PIECE)], ids=str)
def test_what_is_not_finite_is_null(shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    array.reshape(-1)[[0, -1]] = np.nan, np.inf
    parts, not_finite = values_to_json(array)
    found = np.array(json.loads(b"".join(parts)), dtype=object).reshape(-1)
    assert not_finite
    assert [at for at, value in enumerate(found) if value is None] == [0, array.size - 1]
    assert b"".join(array_to_json(array, np.ndarray.tolist)).startswith(b"[" * array.ndim + b"NaN,1.0")


def test_strings_and_flags() -> None:
    texts = object_array((f"ü{number}".encode() for number in range(PIECE + 1)), (PIECE + 1, 1))
    assert json.loads(b"".join(values_to_json(texts)[0])) == [[text.decode()] for text in texts.reshape(-1)]
    assert b"".join(values_to_json(np.array([True, False]))[0]) == b"[true,false]"


def test_what_is_large_is_rendered_in_a_thread() -> None:
    async def threads() -> list[Any]:
        return [await render_aside(values, threading.get_ident) for values in (0, PIECE, PIECE + 1)]

    here = threading.get_ident()
    assert [found == here for found in asyncio.run(threads())] == [True, True, False]
