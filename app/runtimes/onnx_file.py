"""What an ONNX file says of other files: where its weights lie if not in itself. Read without the onnx package.

A walk over the protobuf fields of onnx.proto3 that lead to a TensorProto (https://github.com/onnx/onnx, IR version 13);
weights are skipped, not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from app.errors import RuntimeLoadError
from app.runtimes.packed import SUFFIX, read_model_file

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS = 20_000_000
_MAX_DEPTH = 64

# message: {field: message of that field}
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _ENTRY = range(9)
_FIELDS: Mapping[int, Mapping[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {13: _ENTRY},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
_KEY, _VALUE = 1, 2  # of a StringStringEntryProto


def external_locations(path: Path) -> list[str]:
    """The `location` of every tensor that is kept outside of the file, each once, as it stands there.

    Raises RuntimeLoadError where the file is no protobuf message.
    """
    if path.suffix == SUFFIX:
        return _locations(read_model_file(path), path)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise RuntimeLoadError(f"{path}: is empty; it is no ONNX model")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _locations(data, path)


def _locations(data: mmap.mmap | bytes, path: Path) -> list[str]:
    try:
        return list(dict.fromkeys(_Walk(data).locations(_MODEL, 0, len(data), 0)))
    except (ValueError, IndexError) as exc:
        raise RuntimeLoadError(f"{path}: is no ONNX model ({exc})") from exc


class _Walk:
    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._fields = 0

    def locations(self, message: int, start: int, end: int, depth: int) -> Iterator[str]:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        inner = _FIELDS[message]
        for field, first, last in self._walk(start, end):
            if field not in inner:
                continue
            if inner[field] == _ENTRY:
                entry = {key: self._data[low:high] for key, low, high in self._walk(first, last)}
                if entry.get(_KEY) == b"location":
                    yield entry.get(_VALUE, b"").decode()
            else:
                yield from self.locations(inner[field], first, last, depth + 1)

    def _walk(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(field, first, last) of every field of bytes; the others are passed over."""
        position = start
        while position < end:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise ValueError(f"more than {_MAX_FIELDS} fields")
            tag, position = self._varint(position, end)
            kind = tag & 7
            if kind == _BYTES:
                length, position = self._varint(position, end)
                if position + length > end:
                    raise ValueError("cut off")
                yield tag >> 3, position, position + length
                position += length
            elif kind == _VARINT:
                _, position = self._varint(position, end)
            elif kind in (_FIXED64, _FIXED32):
                position += 8 if kind == _FIXED64 else 4
            else:
                raise ValueError("not a protobuf message")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 70:
            byte = self._data[position]
            value |= (byte & 0x7F) << shift
            position += 1
            if byte < 0x80:
                return value, position
            shift += 7
        raise ValueError("cut off")
