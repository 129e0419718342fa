"""Requests of the Open Inference Protocol made of arrays, and answers read back: written against the protocol's text,
with nothing of the server's own."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

LENGTH = "inference-header-content-length"
_DTYPES = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2",
    "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BYTES": "O",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


@dataclass
class Wire:
    """A body and its headers."""

    content: bytes
    headers: dict[str, str]


def texts(*values: bytes, shape: Sequence[int] | None = None) -> np.ndarray:
    """A BYTES tensor, one-dimensional unless `shape` says otherwise."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape if shape is not None else -1)


def encode(array: np.ndarray) -> bytes:
    """The bytes of a tensor."""
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(value)) + value for value in array.reshape(-1))
    return array.tobytes()


def decode(data: bytes, datatype: str, shape: Sequence[int]) -> np.ndarray:
    """The tensor of the bytes."""
    if datatype != "BYTES":
        return np.frombuffer(data, _DTYPES[datatype]).reshape(shape)
    values = []
    while data:
        (length,) = struct.unpack("<I", data[:4])
        values.append(data[4 : 4 + length])
        data = data[4 + length :]
    return texts(*values, shape=shape)


def make_request(
    inputs: Mapping[str, np.ndarray], *, binary: Collection[str] = (), nested: bool = False, **rest: Any
) -> Wire:
    """The inputs named in `binary` as bytes, the others as JSON; `rest` stands beside `inputs`."""
    entries, blobs = [], []
    for name, array in inputs.items():
        entry: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": _NAMES[array.dtype]}
        if name in binary:
            blobs.append(encode(array))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif array.dtype == object:
            entry["data"] = [value.decode() for value in array.reshape(-1)]
        else:
            entry["data"] = array.tolist() if nested else array.reshape(-1).tolist()
        entries.append(entry)
    head = json.dumps({"inputs": entries, **rest}).encode()
    return Wire(head + b"".join(blobs), {LENGTH: str(len(head))} if binary else {})


def read_answer(answer: httpx.Response) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON of a good answer, and its outputs in their order; a null is NaN."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    body, rest = json.loads(answer.content[:length]), answer.content[length:]
    found: dict[str, np.ndarray] = {}
    for output in body["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            assert "data" not in output
            found[output["name"]] = decode(rest[:size], output["datatype"], output["shape"])
            rest = rest[size:]
        elif output["datatype"] == "BYTES":
            found[output["name"]] = texts(*(text.encode() for text in output["data"]), shape=output["shape"])
        else:
            values = [np.nan if value is None else value for value in output["data"]]
            found[output["name"]] = np.array(values, _DTYPES[output["datatype"]]).reshape(output["shape"])
    assert not rest
    return body, found
