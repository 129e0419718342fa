"""One request and its answer: uvicorn's, with our error shape for what the application lets through."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.errors import Draining, HeadwayError, Internal, error_headers, render

logger = logging.getLogger("headway.server")

Headers = list[tuple[bytes, bytes]]


def _forget() -> None:
    """Stands in for `on_response` once the answer is done, so that cycle and protocol can be freed."""


class HeadwayCycle(RequestResponseCycle):
    """A bug in the application gives `internal` (500); a request cut off at shutdown `draining` (503).

    The body is gathered in `chunks`, which have `held_bytes`; `wake` hands over what there is of one that comes slowly.
    """

    chunks: list[bytes]
    held_bytes = 0
    wake: asyncio.TimerHandle | None = None

    async def receive(self) -> Any:
        """As the base, which copies each part of a body twice, and is called for each."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        chunks, self.chunks, self.held_bytes = self.chunks, [], 0
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """As the base, but the headers leave with the first of the body: a system call less, and a packet."""
        if not self.response_started and self.scope["method"] != "HEAD":
            self.transport = _HeldHead(self.transport)  # type: ignore[assignment]
        await super().send(message)

    async def run_asgi(self, app: Any) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            await self._answer_instead(Draining("the server is shutting down: send the request again"))
        except BaseException as exc:
            logger.error("unhandled error in %s %s", self.scope["method"], self.scope["path"], exc_info=exc)
            await self._answer_instead(Internal("internal error: the server's log has the details"))
        else:
            if not self.response_complete and not self.disconnected:
                logger.error("no complete answer to %s %s", self.scope["method"], self.scope["path"])
                await self._answer_instead(Internal("internal error: the server's log has the details"))
        finally:
            self.on_response = _forget

    async def _answer_instead(self, error: HeadwayError) -> None:
        if self.response_started:
            # Half an answer cannot be mended: the cut connection says that it is not whole.
            self.transport.close()
            return
        request_id = (self.scope.get("state") or {}).get("request_id")
        head, body = build_error(error, request_id if isinstance(request_id, str) else None)
        await self.send({"type": "http.response.start", "status": error.status, "headers": head})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


class _HeldHead:
    """The transport of one answer: what is written first waits for what is written second."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
            return
        head, self._head = self._head, b""
        self._transport.writelines([head, data] if head else [data])

    def close(self) -> None:
        if self._head:
            self._transport.write(self._head)
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def build_error(error: HeadwayError, request_id: str | None = None) -> tuple[Headers, bytes]:
    """The headers and the body of an answer after which the connection is closed."""
    request_id = request_id or uuid.uuid4().hex
    body = render(error, request_id)
    headers = [
        *error_headers(error),
        ("content-length", str(len(body))),
        ("x-request-id", request_id),
        ("connection", "close"),
    ]
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers], body
