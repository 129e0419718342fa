"""Rows of several outputs, which are written in pieces."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from app.api.json_arrays import PIECE
from app.api.tf_serving.answer import _render_rows
from app.tensors import object_array


@pytest.mark.parametrize(("rows", "width"), [(0, 2), (3, 2), (PIECE, 2), (3, PIECE)])
def test_rows_of_two_outputs(rows: int, width: int) -> None:
    numbers = np.arange(rows * width, dtype=np.float64).reshape(rows, width) / 4
    texts = object_array((f"ü{row}".encode() for row in range(rows)), (rows,))
    found: list[dict[str, Any]] = json.loads(b"".join(_render_rows({"n": numbers, "t": texts}, rows)))
    assert found == [{"n": numbers[row].tolist(), "t": f"ü{row}"} for row in range(rows)]
