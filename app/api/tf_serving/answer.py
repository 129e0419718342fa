"""An answer of `:predict`: rows as `predictions`, columns as `outputs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pybase64
from pydantic_core import to_json

from app.engine.call import Answer
from app.errors import InvalidContent
from app.registry.servable import Servable
from app.tensors import Array

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
    values = {name: _as_lists(tensors[name], name) for name in names}
    found: Any = values if len(names) > 1 else values[names[0]]
    if rows is not None and len(names) > 1:
        found = [dict(zip(names, row, strict=True)) for row in zip(*values.values(), strict=True)]
    content: dict[str, Any] = {"outputs" if rows is None else "predictions": found}
    if answer.violations:
        content["warnings"] = [violation.message for violation in answer.violations]
    return to_json(content, inf_nan_mode="constants")


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
