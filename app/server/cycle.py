"""One request and its answer: uvicorn's, with our error shape for what the application lets through."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.errors import Draining, HeadwayError, Internal, error_headers, render

logger = logging.getLogger("headway.server")

Headers = list[tuple[bytes, bytes]]

_UNUSUAL = frozenset({b"connection", b"transfer-encoding"})
# All bytes that a line of a head may have (RFC 9110, 5.5).
_VISIBLE = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
# Shorter bodies are copied behind their head; of longer ones the copy would cost more than a second buffer.
_JOINED_BYTES = 1 << 16


def _forget() -> None:
    """Stands in for `on_response` once the answer is done, so that cycle and protocol can be freed."""


class HeadwayCycle(RequestResponseCycle):
    """A bug in the application gives `internal` (500); a request cut off at shutdown `draining` (503).

    The body is gathered in `chunks`, which have `held_bytes`; `wake` hands over what there is of one that comes slowly.
    """

    chunks: list[bytes]
    held_bytes = 0
    wake: asyncio.TimerHandle | None = None
    _start: Any = None  # of an answer, until the first of its body is there

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
        """As the base; an answer that is whole leaves at once: a write less, and half of the time."""
        start, self._start = self._start, None
        if start is not None:
            if self.flow.write_paused and not self.disconnected:
                await self.flow.drain()
            if self.disconnected or self._send_whole(start, message):
                return
            await super().send(start)
        elif message["type"] == "http.response.start" and not self.response_started and not self.access_log:
            self._start = message
            return
        await super().send(message)

    def _send_whole(self, start: Any, message: Any) -> bool:
        """Whether it could: of what is unusual the base knows what to do."""
        if message.get("more_body") or message["type"] != "http.response.body" or self.scope["method"] == "HEAD":
            return False
        body = message.get("body", b"")
        headers = [*self.default_headers, *start["headers"]]
        parts = [STATUS_LINE[start["status"]]]
        length = None
        is_last = not self.keep_alive
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name == b"connection" and value == b"close":
                is_last = True
                continue
            elif name in _UNUSUAL:
                return False
            parts += (name, b": ", value, b"\r\n")
        if is_last:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        # Else a value would end its line, and another begin.
        if (
            length is None
            or int(length) != len(body)
            or head.translate(None, _VISIBLE) != b"\r\n" * (len(parts) // 4 + 2 + is_last)
        ):
            return False
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.keep_alive = not is_last
        if len(body) < _JOINED_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.writelines([head, body])
        self.message_event.set()
        if is_last:
            self.transport.close()
        self.on_response()
        return True

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
        self._start = None
        if self.response_started:
            # Half an answer cannot be mended: the cut connection says that it is not whole.
            self.transport.close()
            return
        request_id = (self.scope.get("state") or {}).get("request_id")
        head, body = build_error(error, request_id if isinstance(request_id, str) else None)
        await self.send({"type": "http.response.start", "status": error.status, "headers": head})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


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
