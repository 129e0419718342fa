"""How a worker serves and how it ends: the uvicorn server of one worker.

    told (SIGTERM to the master)       window over                 all answered, or out of time
      │ accepting, ready says 503,       │ backlog taken, listener    │ rest cancelled, lifespan's
      │ answers say close                │ closed, silent ones 1 s    │ shutdown, exit 0
      └── drain_seconds ─────────────────┴────────────────────────────┘   < graceful_timeout_seconds

A worker that is told alone (replaced at a reload) has a short window: its neighbours accept. SIGINT and SIGQUIT
leave a second for what is running. Which of these it is stands in the shared memory; a signal only says
"look there".
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Generator, Sequence

from uvicorn.config import Config
from uvicorn.server import Server

from app.server.acceptor import Acceptor
from app.server.connections import ConnectionState, ProtocolLimits
from app.server.options import Beside, ServerOptions
from app.server.protocol import HeadwayProtocol
from app.server.slots import Phase, Slots

# An accepted connection that is silent when the listener closes may send its request for so long.
SILENT_SECONDS = 1.0
# At SIGINT and SIGQUIT: for what is running, and for the lifespan's shutdown. The master kills after 2 s.
QUICK_SECONDS = 0.8
QUICK_SHUTDOWN_SECONDS = 0.6
# At SIGTERM, the part of the graceful timeout that is kept for the lifespan's shutdown.
SHUTDOWN_SECONDS = 3.0
# A SIGTERM may reach the workers before the master (a whole process group was told): is it the end of all?
_ALONE_SECONDS = 0.5
_POLL_SECONDS = 0.02

logger = logging.getLogger("headway.server")


class StartFailed(Exception):
    """The application's lifespan did not start; its own message is in the log."""


class HeadwayServer(Server):
    def __init__(
        self,
        config: Config,
        options: ServerOptions,
        slots: Slots,
        slot: int,
        master: int,
        beside: Sequence[Beside] = (),
    ) -> None:
        super().__init__(config)
        limits = ProtocolLimits(options.max_header_bytes, options.header_timeout_seconds)
        self.shared = ConnectionState(limits)
        self.server_state = self.shared
        self.servers = []
        self._options = options
        self._slots = slots
        self._slot = slot
        self._master = master
        self._beside = beside
        self._acceptor: Acceptor | None = None
        self._told_at: float | None = None
        self._is_quick = False

    # --- beginning

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise StartFailed("the application's start-up failed, see the log above")
        # What is loaded now stays: a collection that looks at all of it holds every request up for 10 ms and more.
        gc.freeze()
        # The date header and the first heartbeat must be there for the first request.
        await super().on_tick(0)
        self._acceptor = Acceptor(
            sockets or [],
            self._create_protocol,
            self._slots,
            self._slot,
            self.config.ssl,
            self._options.header_timeout_seconds,
        )
        self.shared.on_connection_lost = self._acceptor.forget_connection
        await self._start_beside()
        self.started = True
        self._acceptor.start()

    async def _start_beside(self) -> None:
        try:
            for each in self._beside:
                await each.start()
        except OSError as exc:
            raise StartFailed(str(exc)) from exc

    def _create_protocol(self) -> HeadwayProtocol:
        return HeadwayProtocol(self.config, self.shared, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_told, False)
        loop.add_signal_handler(signal.SIGINT, self._on_told, True)
        loop.add_signal_handler(signal.SIGQUIT, self._on_told, True)
        yield  # the handlers stay: a late signal must not kill the lifespan's shutdown

    # --- serving

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._is_time_to_leave()

    def _on_told(self, is_quick: bool) -> None:
        self._is_quick = self._is_quick or is_quick
        if self._told_at is None:
            self._told_at = asyncio.get_running_loop().time()
        self._is_time_to_leave()

    def _is_time_to_leave(self) -> bool:
        now = asyncio.get_running_loop().time()
        phase = self._slots.phase
        if self._is_quick or phase == Phase.STOPPING:
            self._is_quick = True
            return True
        if phase != Phase.SERVING:
            if self._told_at is None:
                self._told_at = now
            self._announce_close()
            return phase == Phase.LEAVING or now >= self._told_at + self._options.drain_seconds
        if self._told_at is not None:
            self._announce_close()
            return now >= self._told_at + _ALONE_SECONDS
        return os.getppid() != self._master  # the master was killed: do not hold its port for ever

    def _announce_close(self) -> None:
        if not self.shared.is_closing:
            self.shared.is_closing = True
            for connection in self._list_connections():
                connection.announce_close()

    # --- end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Close the listener, answer what was accepted, run the lifespan's shutdown."""
        assert self._acceptor is not None
        loop = asyncio.get_running_loop()
        began = self._told_at if self._told_at is not None else loop.time()
        limit = began + self._options.graceful_timeout_seconds - SHUTDOWN_SECONDS
        stopping = loop.create_task(self._stop_beside(limit - loop.time()))
        self._acceptor.close()
        self._announce_close()
        await asyncio.sleep(_POLL_SECONDS)  # what has already arrived is read, and is no longer idle
        for connection in self._list_connections():
            connection.leave()
        await self._wait_for_answers(loop.time(), limit, stopping)
        await self._cancel_rest()
        await self._stop_beside(0)  # what is left is out of time
        quick = QUICK_SHUTDOWN_SECONDS
        left = began + self._options.graceful_timeout_seconds - 0.5 - loop.time()
        try:
            await asyncio.wait_for(self.lifespan.shutdown(), quick if self._is_quick else max(quick, left))
        except TimeoutError:
            logger.error("worker %d: the application's shutdown did not end in time", self._slot)

    async def _stop_beside(self, seconds: float) -> None:
        await asyncio.gather(*(each.stop(seconds) for each in self._beside))

    async def _wait_for_answers(self, closed_at: float, limit: float, stopping: asyncio.Task[None]) -> None:
        assert self._acceptor is not None
        loop = asyncio.get_running_loop()
        while self._acceptor.open_connections > 0 or self.shared.tasks or not stopping.done():
            now = loop.time()
            self._is_quick = self._is_quick or self._slots.phase == Phase.STOPPING
            if now >= limit:
                return
            if self._is_quick:
                limit = min(limit, now + QUICK_SECONDS)
            if self._is_quick or now >= closed_at + SILENT_SECONDS:
                for connection in self._list_connections():
                    connection.give_up()
            await asyncio.sleep(_POLL_SECONDS)

    async def _cancel_rest(self) -> None:
        tasks = list(self.shared.tasks)
        if tasks:
            logger.warning("worker %d: %d requests were cut off by the shutdown", self._slot, len(tasks))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.2)
        for connection in self._list_connections():
            connection.transport.close()

    def _list_connections(self) -> list[HeadwayProtocol]:
        return [each for each in self.shared.connections if isinstance(each, HeadwayProtocol)]
