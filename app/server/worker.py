"""A worker process: gunicorn's worker with our uvicorn server in it, its beginning and its end.

The application is built after the fork. The listener is watched only once the lifespan's start-up is done,
so a replacement never answers for models that it has not loaded. A worker always leaves through `os._exit`,
since a thread that hangs in native code would hold up a normal exit for ever: what must be flushed belongs
into the lifespan's shutdown, which always runs, with a bound on its time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

from app.server.lifetime import HeadwayServer, StartFailed
from app.server.options import ConfigurationError, WorkerContext
from app.server.protocol import HeadwayProtocol
from app.server.slots import DrainFlag

# Exit codes of a worker. gunicorn's 3 and 4, at which it stops everything, are never used.
EXIT_FAILED = 1
EXIT_CONFIGURATION = 78

logger = logging.getLogger("headway.server")


class HeadwayWorker(UvicornWorker):  # type: ignore[misc]
    """`app` is the master's HeadwayApplication. `slot` is set by the master before the fork."""

    CONFIG_KWARGS = {  # noqa: RUF012 - the base's own form
        "loop": "auto",
        "http": HeadwayProtocol,
        "ws": "none",
        "lifespan": "on",
        "interface": "asgi3",
        "access_log": False,
        "server_header": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.slot = -1
        self.is_retired = False
        self.is_announced = False
        self.config.proxy_headers = bool(self.cfg.forwarded_allow_ips)
        error_logger = logging.getLogger("uvicorn.error")
        error_logger.handlers = []
        error_logger.propagate = True
        error_logger.setLevel(logging.WARNING)  # its INFO is a line for each step of each worker

    def init_process(self) -> None:
        """Runs the whole life of the process; never returns, and never raises."""
        try:
            super().init_process()
        except BaseException as exc:
            self._end(exc)
        self._leave(0)

    def load_wsgi(self) -> None:
        state = self.app
        context = WorkerContext(
            slot=self.slot,
            workers=state.options.workers,
            draining=DrainFlag(state.slots),
            metrics_dir=state.metrics_dir.path if state.metrics_dir else None,
            shared=state.options.shared,
            also_bound=state.also_bound,
            shared_bound=state.shared_bound,
        )
        self.wsgi = state.factory(context)

    def init_signals(self) -> None:
        """As the base, but SIGUSR1 (reopen the log files) is nothing here: there are none."""
        super().init_signals()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        # After the base, which takes SIGABRT away from it: the master sends that to a worker that hangs.
        self.app.crash_dumps.enable(self.slot)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        """Never returns: the runner would wait for the threads of its executor, however long they hang."""
        self.config.app = self.wsgi
        server = HeadwayServer(
            self.config,
            self.app.options,
            self.app.slots,
            self.slot,
            self.ppid,
            getattr(self.wsgi, "beside", ()),
        )
        try:
            await server.serve(sockets=[listener.sock for listener in self.sockets])
        except BaseException as exc:
            self._end(exc)
        self._leave(0)

    def _end(self, exc: BaseException) -> NoReturn:
        """Log why this worker cannot go on, tell the master, and leave."""
        if isinstance(exc, ConfigurationError):
            self._leave(EXIT_CONFIGURATION, str(exc))
        if isinstance(exc, StartFailed):
            logger.error("worker %d could not start: %s", self.slot, exc)
        elif isinstance(exc, SystemExit):
            logger.error("worker %d: the application called sys.exit(%r)", self.slot, exc.code)
        else:
            logger.error("worker %d failed", self.slot, exc_info=exc)
        self._leave(EXIT_FAILED, "".join(traceback.format_exception_only(exc)).strip())

    def _leave(self, status: int, reason: str = "") -> NoReturn:
        if reason:
            self.app.slots.report(reason)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                continue
        os._exit(status)
