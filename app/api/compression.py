"""Content-Encoding gzip and deflate, of request bodies and of answers."""

from __future__ import annotations

import asyncio
import zlib

from app.errors import BodyTooLarge, InvalidContent, UnsupportedMediaType

# zlib's window bits: RFC 1952's gzip, and RFC 1950's zlib, which HTTP calls deflate.
_WINDOWS = {"gzip": 31, "deflate": 15}
_ALIASES = {"x-gzip": "gzip"}
_LEVEL = 1
# Less is not worth the time.
_LEAST_BYTES = 1024
# More is packed in a thread.
_MOST_HERE_BYTES = 50_000


def read_encoding(header: bytes, *, takes_compressed: bool) -> str | None:
    """What a Content-Encoding names but for identity, None where that is nothing (RFC 9110, 8.4).

    Raises UnsupportedMediaType for what is not taken, and for more than one.
    """
    names = [name.strip() for name in header.decode("latin-1").lower().split(",")]
    found = [_ALIASES.get(name, name) for name in names if name not in ("", "identity")]
    if found and not takes_compressed:
        raise UnsupportedMediaType("compressed bodies are not taken here; send the body without Content-Encoding")
    if len(found) > 1 or (found and found[0] not in _WINDOWS):
        named = ", ".join(names)
        raise UnsupportedMediaType(f"Content-Encoding {named!r} is not taken; send gzip, deflate or identity")
    return found[0] if found else None


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Of what `read_encoding` found. Raises InvalidContent for a damaged body, BodyTooLarge where it would be larger
    than `max_bytes`; it is never more in memory."""
    inflater = zlib.decompressobj(_WINDOWS[encoding])
    try:
        found = inflater.decompress(body, max_bytes + 1)
    except zlib.error as exc:
        raise InvalidContent(f"the body is not {encoding}: {exc}") from exc
    if len(found) > max_bytes:
        raise BodyTooLarge(f"the body is larger than {max_bytes:,} bytes once it is unpacked; send fewer at a time")
    if not inflater.eof or inflater.unused_data:
        raise InvalidContent(f"the body is not one whole {encoding} stream; send it again")
    return found


def choose_encoding(accepted: str) -> str | None:
    """The encoding for a caller with this Accept-Encoding (RFC 9110, 12.5.3); None for identity."""
    weights: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, parameters = part.partition(";")
        quality = parameters.strip().removeprefix("q=")
        try:
            weights[name.strip()] = float(quality) if quality else 1.0
        except ValueError:
            continue
    found = max(_WINDOWS, key=lambda name: weights.get(name, weights.get("*", 0.0)))
    return found if weights.get(found, weights.get("*", 0.0)) > 0 else None


def compress(body: bytes, encoding: str) -> bytes:
    deflater = zlib.compressobj(_LEVEL, wbits=_WINDOWS[encoding])
    return deflater.compress(body) + deflater.flush()


async def pack_answer(body: bytes, accepted: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body, packed where that is worth it and this Accept-Encoding takes it; and the headers that say so."""
    if not accepted or len(body) < _LEAST_BYTES:
        return body, []
    headers = [(b"vary", b"accept-encoding")]
    encoding = choose_encoding(accepted.decode("latin-1"))
    if encoding is None:
        return body, headers
    headers.append((b"content-encoding", encoding.encode()))
    if len(body) < _MOST_HERE_BYTES:
        return compress(body, encoding), headers
    return await asyncio.to_thread(compress, body, encoding), headers
