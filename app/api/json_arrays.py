"""Large answers to JSON without standing in the way of others: in a thread, and in pieces.

A thread alone does not help: one call of numpy or pydantic keeps the interpreter to itself until it has done it all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from pydantic_core import to_json

from app.processing.tensor import tensors_to_json
from app.tensors import Array

# Takes 5 ms, as long as a thread may keep the interpreter when others want it.
PIECE = 50_000
# What signing a prediction id takes, in values.
VALUES_OF_AN_ID = 50

_Made = TypeVar("_Made")


def array_to_json(array: Array, as_lists: Callable[[Array], Any]) -> list[bytes]:
    """Nested lists, as `as_lists` makes them of the array or of parts of it; NaN and infinities stand as they are.

    In parts, to be joined once: copying 100 MB takes as long as a caller of something small should wait.
    """
    if array.size <= PIECE:
        return [to_json(as_lists(array), inf_nan_mode="constants")]
    each = array.size // len(array)
    if each > PIECE:
        found = [array_to_json(row, as_lists) for row in array]
    else:
        step = PIECE // each
        rows = (array[start : start + step] for start in range(0, len(array), step))
        found = [[to_json(as_lists(some), inf_nan_mode="constants")[1:-1]] for some in rows]
    return [b"[", *join_parts(found), b"]"]


def values_to_json(array: Array) -> tuple[list[bytes], bool]:
    """As `array_to_json`, with null for what is not finite, for which JSON has no number; and whether there was any."""
    not_finite = array.dtype.kind == "f" and not np.isfinite(array).all()
    plain = array.dtype.kind != "O" and not not_finite
    return array_to_json(array, _as_lists if plain else _as_nullable), bool(not_finite)


def _as_lists(array: Array) -> Any:
    return array.tolist()


def _as_nullable(array: Array) -> Any:
    return tensors_to_json({"": array})[0][""]


def join_parts(found: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """With commas between."""
    for number, parts in enumerate(found):
        if number:
            yield b","
        yield from parts


async def render_aside(values: int, render: Callable[[], _Made]) -> _Made:
    """What `render` makes; in a thread where it has more than so many values to write."""
    return render() if values <= PIECE else await asyncio.to_thread(render)
