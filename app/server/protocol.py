"""HTTP/1.1 on one connection: uvicorn's httptools protocol, with limits and with our error shape.

Adds what the base leaves open: how many bytes of headers, how long they may take, what malformed HTTP is
answered, and how a connection ends when the server does. What is in a request's body, and how long that may
take, is the application's matter. On keep-alive traffic this costs a few attribute look-ups a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.errors import HeadersTooLarge, HeaderTimeout, HeadwayError, MalformedHttp
from app.server.connections import ConnectionState
from app.server.cycle import HeadwayCycle, build_error

# How long what a client still sends is thrown away after its last answer. Closing at once would reset the
# connection, and the client would see that instead of the answer.
LINGER_SECONDS = 2.0

# In a request's scope: what the application wants called when the client leaves before its answer.
LEAVE_KEY = "headway.leave"
# In a request's scope: when its last byte was read, in time.perf_counter() seconds.
READ_KEY = "headway.read"

# A body is handed over in parts of so many bytes, or what has come in so long.
_MOST_HELD_BYTES = 1 << 20
_GATHER_SECONDS = 0.05

logger = logging.getLogger("headway.server")


class AnswerTransport:
    """What a cycle writes to: the transport, except that `close` lets the client read its answer first."""

    __slots__ = ("close", "is_closing", "write", "writelines")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.writelines = transport.writelines
        self.is_closing = transport.is_closing
        self.close = close


class HeadwayProtocol(HttpToolsProtocol):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        is_ours = isinstance(server_state, ConnectionState)  # else it runs in a plain uvicorn
        self.shared = cast(ConnectionState, server_state) if is_ours else ConnectionState()
        self._max_header_bytes = self.shared.limits.max_header_bytes
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_deaf = False  # what comes in is thrown away
        self._read_bytes = 0  # in the newest read
        # Bytes read since the last complete head or byte of a body. `_carried_bytes` of them came in one read
        # with it, and may be from before it: the parser does not say. What is surely too much is refused at
        # once, and a head that may be too long is measured when it is complete.
        self._pending_bytes = 0
        self._carried_bytes = 0
        self._kept_open: RequestResponseCycle | None = None  # would have closed, had no request followed it

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._answers = AnswerTransport(transport, self._finish)
        self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm_head_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.shared.on_connection_lost()
        if self.cycle is not None and not self.cycle.response_complete:
            leave: Any = self.cycle.scope.get(LEAVE_KEY)
            if leave is not None:
                leave()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self._read_bytes = len(data)
        self._pending_bytes += self._read_bytes
        rest: bytes | memoryview = data
        while rest:
            try:
                self.parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as exc:
                # We speak no other protocol, so that request is answered as plain HTTP (RFC 9110, 7.8).
                rest = memoryview(rest)[exc.args[0] :]
            except httptools.HttpParserError as exc:
                self._refuse(self._explain(exc))
                return
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope:  # no head is open
            if cycle.response_complete:  # the rest of a body that nobody wants, or empty lines
                self._arm_head_timer()
                return
            if not cycle.more_body:
                self._pending_bytes = self._carried_bytes = 0
                return
            self._wake_later(cast(HeadwayCycle, cycle))
        else:
            self._arm_head_timer()
        if self._pending_bytes - self._carried_bytes > self._max_header_bytes:  # of a head, or of trailers
            self._refuse(self._describe_too_large())

    # --- the parser's callbacks

    def on_headers_complete(self) -> None:
        if self._pending_bytes > self._max_header_bytes and self._measure_head() > self._max_header_bytes:
            raise self._describe_too_large()
        self._pending_bytes = self._carried_bytes = self._read_bytes
        if self._head_timer is not None:
            self._disarm_head_timer()
        earlier = self.cycle
        self.cycle = cycle = self._create_cycle()
        if self.shared.is_closing:
            self._close_after(cycle, earlier)
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _create_cycle(self) -> HeadwayCycle:
        """As the base does it for HTTP, in a class of our own; it has no hook for that."""
        parser, scope = self.parser, self.scope
        http_version = parser.get_http_version()
        url = httptools.parse_url(self.url)
        raw_path = url.path
        path = raw_path.decode("ascii")
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = http_version
        scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = url.query or b""
        cycle = HeadwayCycle(
            scope=scope,
            transport=self._answers,  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=http_version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        cycle.chunks = []
        return cycle

    def on_body(self, body: bytes) -> None:
        """Gathered: the application is not woken for each part of what comes quickly."""
        self._pending_bytes = self._carried_bytes = self._read_bytes
        cycle = cast(HeadwayCycle, self.cycle)
        if cycle.response_complete:
            return
        cycle.chunks.append(body)
        cycle.held_bytes += len(body)
        if cycle.held_bytes > _MOST_HELD_BYTES:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        self.scope[READ_KEY] = time.monotonic()  # type: ignore[literal-required]
        wake = cast(HeadwayCycle, self.cycle).wake
        if wake is not None:
            wake.cancel()
        super().on_message_complete()

    def _wake_later(self, cycle: HeadwayCycle) -> None:
        """Of a body that comes slowly the application hears now and then: its time is limited."""
        if cycle.wake is None or cycle.wake.when() <= self.loop.time():
            cycle.wake = self.loop.call_later(_GATHER_SECONDS, cycle.message_event.set)

    def _measure_head(self) -> int:
        """Bytes of the head just parsed, for the rare read that may hold too many (or a long body)."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    # --- time

    def timeout_keep_alive_handler(self) -> None:
        if not self._is_head_open:  # else the next request is on its way, and has its own time
            super().timeout_keep_alive_handler()
        else:
            self._arm_head_timer()

    def _arm_head_timer(self) -> None:
        """Unless it runs: it is for the whole head, not for each byte."""
        if self._head_timer is None:
            seconds = self.shared.limits.header_timeout_seconds
            self._head_timer = self.loop.call_later(seconds, self._on_head_timeout)

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self.flow.read_paused:  # it is we who do not read
            self._arm_head_timer()
        elif self._is_head_open or (self._pending_bytes and not self._has_asked):
            seconds = self.shared.limits.header_timeout_seconds
            message = f"the headers were not complete within {seconds:g} s: send the request again"
            self._refuse(HeaderTimeout(message))
        else:
            self.transport.close()

    # --- refusals

    def _describe_too_large(self) -> HeadwayError:
        kib = self._max_header_bytes / 1024
        return HeadersTooLarge(f"the request's headers are over {kib:g} KiB: send less of them")

    def _explain(self, exc: httptools.HttpParserError) -> HeadwayError:
        cause = exc.__context__
        if isinstance(cause, HeadwayError):
            return cause
        return MalformedHttp(f"this is not a valid HTTP/1.1 request ({exc}): check the client, or use https://")

    def _refuse(self, error: HeadwayError) -> None:
        """Answer what cannot be a request, after the answers that are still owed, and hang up."""
        logger.info("refused a connection from %s: %s", self.client, error.code)
        cycle = self.cycle
        self._is_deaf = True
        self._disarm_head_timer()
        if self.is_busy:
            if self._is_head_open:  # those before this one are whole: answer them, then hang up
                cycle.keep_alive = False
                return
            cycle.disconnected = True  # this one's body is broken; the application need not wait for the rest
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
        headers, body = build_error(error)
        lines = [b"%b: %b\r\n" % pair for pair in (*self.server_state.default_headers, *headers)]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        self._linger()

    # --- hanging up

    def _finish(self) -> None:
        """The last answer on this connection is written. An unread body is read to its end, for a while."""
        self.pipeline.clear()
        if self._is_deaf or self._is_head_open or (self._has_asked and self.cycle.more_body):
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        if self.transport.is_closing():
            return
        self._is_deaf = True
        self._disarm_head_timer()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    # --- the server's end

    def announce_close(self) -> None:
        """From now on each answer is the last: the running one says so, if it has not begun."""
        if self.is_busy:
            self._close_after(self.cycle, None)

    def leave(self) -> None:
        """Hang up if idle. One that has not asked anything yet is given time, see `give_up`."""
        if self._has_asked and not (self.is_busy or self._is_head_open or self._is_deaf):
            self.transport.close()

    def give_up(self) -> None:
        """Hang up unless a request is in work."""
        if not self.is_busy:
            self.transport.close()

    @property
    def _has_asked(self) -> bool:
        """Whether a request has come on this connection: the base has no cycle before."""
        return self.cycle is not None

    @property
    def _is_head_open(self) -> bool:
        """A request has begun and its headers are not complete: each has a scope from its first byte."""
        return self.scope is not None and (not self._has_asked or self.cycle.scope is not self.scope)

    @property
    def is_busy(self) -> bool:
        return self._has_asked and not self.cycle.response_complete

    def _close_after(self, cycle: RequestResponseCycle, earlier: RequestResponseCycle | None) -> None:
        """Close after `cycle`, and not after `earlier`, which it follows in the same pipeline."""
        if earlier is not None and earlier is self._kept_open and not earlier.response_started:
            earlier.keep_alive = True
        if cycle.keep_alive:
            cycle.keep_alive = False
            self._kept_open = cycle
