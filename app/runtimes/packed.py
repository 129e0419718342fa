"""Model files that are kept compressed: gzip (RFC 1952), lossless, worth it where many weights are 0."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from app.errors import RuntimeLoadError

SUFFIX = ".gz"
# A file of protobuf holds no more, nor one of flatbuffers.
_MOST_BYTES = 2**31
_LEAST_BYTES = 18


def pack(content: bytes) -> bytes:
    """The same bytes for the same content: no time, no name."""
    return gzip.compress(content, compresslevel=6, mtime=0)


def unpacked_size(path: Path) -> int:
    """The bytes that the end of the file promises. Raises RuntimeLoadError, OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 4))
        end = file.read(4)
    if size < _LEAST_BYTES:
        raise RuntimeLoadError(f"{path}: is too short to be a gzip file")
    return int.from_bytes(end, "little")


def read_model_file(path: Path) -> bytes:
    """The whole file, unpacked where its name ends in `.gz`.

    Never more than it promises is unpacked. Raises RuntimeLoadError where it is damaged, OSError where it is not there.
    """
    if path.suffix != SUFFIX:
        return path.read_bytes()
    promised = unpacked_size(path)
    if promised > _MOST_BYTES:
        raise RuntimeLoadError(f"{path}: says it holds {promised:,} bytes; a model file has at most {_MOST_BYTES:,}")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(path.read_bytes(), promised + 1)
    except zlib.error as exc:
        raise RuntimeLoadError(f"{path}: is a damaged gzip file ({exc}); copy the version again") from exc
    if len(content) != promised or not unpacker.eof or unpacker.unused_data:
        raise RuntimeLoadError(
            f"{path}: does not hold the {promised:,} bytes that its end says; copy the version again"
        )
    return content
