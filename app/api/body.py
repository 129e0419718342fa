"""Request bodies under limits: size of one, size of all in flight together, and time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Receive

from app.api.body_clock import BodyClock
from app.api.compression import decompress, read_encoding
from app.api.context import READ_KEY, RequestContext, context_of
from app.errors import BodyTooLarge, ClientClosed, OutOfBodyMemory


class BodyReader:
    """Reads bodies for one process. What it hands out is held in the context and freed by `release`."""

    def __init__(self, max_bytes: int, max_inflight_bytes: int, clock: BodyClock) -> None:
        self._max_bytes = max_bytes
        # One body must always fit, or a small machine would refuse everything.
        self._max_inflight_bytes = max(max_inflight_bytes, max_bytes)
        self._clock = clock
        self._inflight_bytes = 0

    async def read(self, request: Request, *, takes_compressed: bool = False) -> bytes:
        """The whole body; unpacked, where it `takes_compressed`.

        Raises BodyTooLarge (from Content-Length, before a byte is read, or once a chunked body passes the limit),
        OutOfBodyMemory, BodyTimeout, ClientClosed, UnsupportedMediaType (a Content-Encoding), or InvalidContent (a
        compressed body that is damaged).
        """
        context = context_of(request.scope)
        header = context.headers.get(b"content-encoding")
        encoding = read_encoding(header, takes_compressed=takes_compressed) if header is not None else None
        announced = context.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()
        if READ_KEY in request.scope:  # it is there already, as that of most small requests
            chunks = await self._read_chunks(request.receive, context)
        else:
            with self._clock.watch(context):
                chunks = await self._read_chunks(request.receive, context)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if encoding is None:
            return body
        unpacked = await asyncio.to_thread(decompress, body, encoding, self._max_bytes)
        self.hold(context, max(0, len(unpacked) - len(body)))
        return unpacked

    def release(self, context: RequestContext) -> None:
        """The request is over: its body no longer counts."""
        self._inflight_bytes -= context.body_bytes

    async def _read_chunks(self, receive: Receive, context: RequestContext) -> list[bytes]:
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientClosed("the caller left before its body was complete")
            chunk: bytes = message.get("body", b"")
            self.hold(context, len(chunk))
            chunks.append(chunk)
            if not message.get("more_body"):
                return chunks

    def hold(self, context: RequestContext, size: int) -> None:
        """Count so many bytes more. Raises BodyTooLarge or OutOfBodyMemory where there is no room for them."""
        if context.body_bytes + size > self._max_bytes:
            raise self._too_large()
        if self._inflight_bytes + size > self._max_inflight_bytes:
            raise OutOfBodyMemory("the bodies of other requests fill the memory set aside; try again in a second")
        context.body_bytes += size
        self._inflight_bytes += size

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_bytes:,} bytes; scale the image down or send fewer")
