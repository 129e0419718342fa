"""Accepts no more than an even share of the connections that wait, and leaves the rest to the neighbours.

The kernel gives a burst of connections to whichever worker wakes first ([8, 0] on two workers), and keep-
alive clients stay there. So a worker that has its share waits up to 5 ms for the others to take theirs; when
nobody does (one is busy, or was killed), it takes some of them itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Sequence

from app.server.slots import Slots

HOLD_BACK_SECONDS = 0.005
_RECHECK_SECONDS = 0.001
# Many clients never answer TLS's close_notify; the default of 30 s would hold up the server's end as long.
TLS_GOODBYE_SECONDS = 1.0
# Connections taken before the requests that came meanwhile have a turn.
_ACCEPTS_PER_TURN = 32
# Of what its neighbours leave, a worker takes one in so many at a time: a long queue must not wait for a dead one.
_LEFT_OVERS = 64
# struct tcp_info, of a listening socket: tcpi_unacked is how many connections wait to be accepted.
_TCP_INFO = struct.Struct("=8x5I")
_OUT_OF_FILES_PAUSE_SECONDS = 0.2
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

logger = logging.getLogger("headway.server")


class Acceptor:
    """Takes connections from `listeners` and gives each to a protocol from `create_protocol`.

    `open_connections` counts from the accept to `connection_lost`, TLS handshakes included. The protocols
    must call `forget_connection` once each when they have lost theirs. Belongs to the thread of the event
    loop.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        create_protocol: Callable[[], asyncio.Protocol],
        slots: Slots,
        slot: int,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
    ) -> None:
        self.open_connections = 0
        self._listeners = list(listeners)
        self._create_protocol = create_protocol
        self._slots = slots
        self._slot = slot
        self._tls = tls
        self._handshake_seconds = handshake_seconds if tls else None
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._is_accepting = False

    def start(self) -> None:
        self._is_accepting = True
        self._slots.publish_load(self._slot, self.open_connections)
        for listener in self._listeners:
            listener.setblocking(False)
            self._watch(listener)

    def close(self) -> None:
        """Stop accepting. What waits in the queue is taken first: closing the last copy would reset it."""
        if not self._is_accepting:
            return
        self._is_accepting = False
        self._slots.withdraw(self._slot)
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            with contextlib.suppress(OSError):
                while self._accept(listener):
                    pass
            listener.close()

    def forget_connection(self) -> None:
        self.open_connections -= 1
        if self._is_accepting:
            self._slots.publish_load(self._slot, self.open_connections)

    def _watch(self, listener: socket.socket) -> None:
        if self._is_accepting:
            self._loop.add_reader(listener.fileno(), self._on_readable, listener)

    def _on_readable(self, listener: socket.socket) -> None:
        share = self._slots.share(self._slot, count_waiting(listener))
        if share:
            self._take(listener, share)
        else:
            self._loop.remove_reader(listener.fileno())
            self._hold_back(listener, self._loop.time() + HOLD_BACK_SECONDS)

    def _hold_back(self, listener: socket.socket, until: float) -> None:
        if not self._is_accepting:
            return
        waiting = count_waiting(listener)
        share = self._slots.share(self._slot, waiting)
        if not share and self._loop.time() < until:
            self._loop.call_later(_RECHECK_SECONDS, self._hold_back, listener, until)
            return
        self._watch(listener)
        self._take(listener, share or -(-waiting // _LEFT_OVERS))

    def _take(self, listener: socket.socket, count: int) -> None:
        for _ in range(min(count, _ACCEPTS_PER_TURN)):
            if not self._try_accept(listener):
                return

    def _try_accept(self, listener: socket.socket) -> bool:
        try:
            return self._accept(listener)
        except OSError as exc:
            # Out of file descriptors: the queue stays readable, so without a pause this would spin.
            logger.error("cannot accept connections: %s", exc.strerror)
            self._loop.remove_reader(listener.fileno())
            self._loop.call_later(_OUT_OF_FILES_PAUSE_SECONDS, self._watch, listener)
            return False

    def _accept(self, listener: socket.socket) -> bool:
        """Take one connection; False if none waits. Raises OSError if this process has no room for it."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            if exc.errno in _OUT_OF_FILES:
                raise
            return True  # that one has already gone (ECONNABORTED and its like)
        self.open_connections += 1
        if self._is_accepting:
            self._slots.publish_load(self._slot, self.open_connections)
        connection.setblocking(False)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        protocol = self._create_protocol()
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_seconds,
                ssl_shutdown_timeout=TLS_GOODBYE_SECONDS if self._tls else None,
            )
        except (OSError, asyncio.CancelledError) as exc:  # a failed or cut off handshake
            logger.debug("connection not opened: %r", exc)
            connection.close()
            if getattr(protocol, "transport", None) is None:
                self.forget_connection()


def count_waiting(listener: socket.socket) -> int:
    """The connections that wait to be accepted, as far as the kernel says; at least one, or nobody would have asked."""
    if not sys.platform.startswith("linux") or listener.family == socket.AF_UNIX:
        return 1
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    waiting: int = _TCP_INFO.unpack(info)[4]
    return max(1, waiting)
