"""Request bodies under limits: size of one, size of all in flight together, and time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from app.api.context import RequestContext, context_of
from app.errors import BodyTimeout, BodyTooLarge, ClientClosed, OutOfBodyMemory, UnsupportedMediaType


class BodyReader:
    """Reads bodies for one process. What it hands out is held in the context and freed by `release`."""

    def __init__(self, max_bytes: int, max_inflight_bytes: int, timeout_seconds: float) -> None:
        self._max_bytes = max_bytes
        # One body must always fit, or a small machine would refuse everything.
        self._max_inflight_bytes = max(max_inflight_bytes, max_bytes)
        self._timeout_seconds = timeout_seconds
        self._inflight_bytes = 0

    async def read(self, request: Request) -> bytes:
        """The whole body.

        Raises BodyTooLarge (from Content-Length, before a byte is read, or once a chunked body passes the limit),
        OutOfBodyMemory, BodyTimeout, ClientClosed or UnsupportedMediaType (a Content-Encoding).
        """
        headers = request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("compressed bodies are not taken here; send the body without Content-Encoding")
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()
        context = context_of(request.scope)
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(self._timeout_seconds):
                while await self._read_chunk(request, context, chunks):
                    pass
        except TimeoutError as exc:
            raise BodyTimeout(
                f"the body was not complete within {self._timeout_seconds:g} seconds; send it faster or smaller"
            ) from exc
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self, context: RequestContext) -> None:
        """The request is over: its body no longer counts."""
        self._inflight_bytes -= context.body_bytes

    async def _read_chunk(self, request: Request, context: RequestContext, chunks: list[bytes]) -> bool:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientClosed("the caller left before its body was complete")
        chunk: bytes = message.get("body", b"")
        self._hold(context, len(chunk))
        chunks.append(chunk)
        return bool(message.get("more_body"))

    def _hold(self, context: RequestContext, size: int) -> None:
        if context.body_bytes + size > self._max_bytes:
            raise self._too_large()
        if self._inflight_bytes + size > self._max_inflight_bytes:
            raise OutOfBodyMemory("the bodies of other requests fill the memory set aside; try again in a second")
        context.body_bytes += size
        self._inflight_bytes += size

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_bytes:,} bytes; scale the image down or send fewer")
