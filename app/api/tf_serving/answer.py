"""An answer of `:predict`: rows as `predictions`, columns as `outputs`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pybase64
from pydantic_core import to_json

from app.api.json_arrays import PIECE, array_to_json, join_parts
from app.engine.call import Answer
from app.errors import InvalidContent
from app.registry.servables.servable import Servable
from app.tensors import Array, Tensors

_BINARY_SUFFIX = "_bytes"


def render_predict(answer: Answer, servable: Servable, rows: int | None) -> bytes:
    """JSON with NaN, Infinity and -Infinity as they are. `rows` None asks for columns.

    Of one output the name is left out. `warnings` says what the policies of the inputs have changed. Raises
    InvalidContent where rows are asked for and an output has not one for each.
    """
    tensors = answer.tensors or {}
    names = [spec.name for spec in servable.manifest.output_specs]
    if rows is not None:
        for name in names:
            if tensors[name].shape[:1] != (rows,):
                raise InvalidContent(
                    f"output {name!r} of shape {list(tensors[name].shape)} has not one row for each of the {rows} "
                    "instances; send inputs instead"
                )
    chosen = {name: tensors[name] for name in names}
    if len(names) == 1:
        found = _render_array(names[0], chosen[names[0]])
    else:
        found = _render_object(chosen) if rows is None else _render_rows(chosen, rows)
    parts = [b'{"outputs":' if rows is None else b'{"predictions":', *found]
    if answer.violations:
        parts += [b',"warnings":', to_json([violation.message for violation in answer.violations])]
    return b"".join([*parts, b"}"])


def _render_array(name: str, array: Array) -> list[bytes]:
    return array_to_json(array, partial(_as_lists, name=name))


def _render_object(tensors: Tensors) -> list[bytes]:
    found = ([to_json(name), b":", *_render_array(name, array)] for name, array in tensors.items())
    return [b"{", *join_parts(found), b"}"]


def _render_rows(tensors: Tensors, rows: int) -> list[bytes]:
    """An object for each row. Small rows are written together, so many as have a piece's values."""
    each = sum(array.size for array in tensors.values()) // max(1, rows)
    if each > PIECE:
        found = [
            _render_object({name: array[row : row + 1].reshape(array.shape[1:]) for name, array in tensors.items()})
            for row in range(rows)
        ]
    else:
        step = PIECE // max(1, each)
        found = [[_render_few(tensors, start, start + step)] for start in range(0, rows, step)]
    return [b"[", *join_parts(found), b"]"]


def _render_few(tensors: Tensors, start: int, stop: int) -> bytes:
    """Without the brackets around."""
    lists = [_as_lists(array[start:stop], name) for name, array in tensors.items()]
    found = [dict(zip(tensors, row, strict=True)) for row in zip(*lists, strict=True)]
    return to_json(found, inf_nan_mode="constants")[1:-1]


def _as_lists(array: Array, name: str) -> Any:
    values = array.tolist()
    if array.dtype.kind != "O":
        return values
    return _map_leaves(values, _encode if name.endswith(_BINARY_SUFFIX) else _as_text)


def _map_leaves(value: Any, change: Callable[[bytes | str], Any]) -> Any:
    return [_map_leaves(item, change) for item in value] if isinstance(value, list) else change(value)


def _encode(value: bytes | str) -> dict[str, str]:
    return {"b64": pybase64.b64encode(value if isinstance(value, bytes) else value.encode()).decode("ascii")}


def _as_text(value: bytes | str) -> Any:
    """What is no UTF-8 JSON has no string for: it comes as binary values do."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return _encode(value)
