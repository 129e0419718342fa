"""Starts the server and stays in it until its end: the one entrance to this package, for the CLI.

`serve` binds the listeners, imports the application's module, makes what the workers share, and runs
gunicorn's arbiter in this process, with no configuration file and no control socket.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import resource
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from app.server.arbiter import HeadwayArbiter
from app.server.crash_dumps import CrashDumps
from app.server.listeners import (
    bind_listeners,
    close_listeners,
    describe_address,
    describe_shared,
    hold_shared,
    remove_unix_socket,
    start_listening,
)
from app.server.metrics_dir import MetricsDir, create_metrics_dir
from app.server.options import ConfigurationError, ServerOptions, WorkerContext
from app.server.server_log import ServerLog
from app.server.slots import Slots
from app.server.worker import HeadwayWorker

__all__ = ["ConfigurationError", "ServerOptions", "WorkerContext", "serve"]

_OPEN_FILES = 65536

logger = logging.getLogger("headway.server")

Factory = Callable[[WorkerContext], Any]


class HeadwayApplication(BaseApplication):  # type: ignore[misc]
    """What gunicorn asks for its settings, and what a worker finds after the fork."""

    def __init__(
        self,
        options: ServerOptions,
        factory: Factory,
        slots: Slots,
        metrics_dir: MetricsDir | None,
        listeners: list[socket.socket],
        holder: socket.socket | None = None,
    ) -> None:
        """`holder` keeps the port of `shared_bind`."""
        self.options = options
        self.factory = factory
        self.slots = slots
        self.metrics_dir = metrics_dir
        self.crash_dumps = CrashDumps(slots.total)
        is_tls = bool(options.certfile)
        self.addresses = tuple(describe_address(listener, is_tls) for listener in listeners)
        self.address = self.addresses[0]
        self.shared_bound = holder.getsockname()[:2] if holder is not None else None
        if holder is not None:
            self.addresses += (describe_shared(holder, is_tls),)
        self.also_bound = tuple(listener.getsockname()[:2] for listener in listeners[1:])
        # gunicorn closes the descriptor that it is given, after having copied it.
        self._descriptors = [os.dup(listener.fileno()) for listener in listeners]
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "bind": [f"fd://{descriptor}" for descriptor in self._descriptors],
            "workers": self.options.workers,
            "worker_class": HeadwayWorker,
            "logger_class": ServerLog,
            "loglevel": self.options.log_level,
            "pre_fork": _seat,
            "timeout": self.options.worker_timeout_seconds,
            "graceful_timeout": int(self.options.graceful_timeout_seconds),
            "keepalive": self.options.keepalive_seconds,
            "backlog": self.options.backlog,
            "forwarded_allow_ips": self.options.forwarded_allow_ips,
            "certfile": self.options.certfile,
            "keyfile": self.options.keyfile,
            "control_socket_disable": True,
            "dirty_workers": 0,
            "proc_name": "headway",
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        raise NotImplementedError("the application is built by the worker, see HeadwayWorker.load_wsgi")

    def report_failure(self, reason: str) -> None:
        """The server ends because it could not be started."""
        _report(self.options, reason)


def serve(options: ServerOptions) -> int:
    """Serve until told to end; returns the exit code of the process.

    0 after SIGTERM, SIGINT and SIGQUIT; 1 when it could not be started: a taken port, a module that cannot
    be imported, or a ConfigurationError of the factory before any worker accepted. Logging
    must be configured by the caller. Must be called in the main thread, with no other thread running.
    """
    try:
        _check_certificate(options)
        listeners = bind_listeners(options)
        holder = _hold_shared(options, listeners)
    except ConfigurationError as exc:
        _report(options, str(exc))
        return 1
    with contextlib.ExitStack() as stack:
        master = os.getpid()
        stack.enter_context(_holding(listeners, options.uds))
        if holder is not None:
            stack.enter_context(holder)
        try:
            factory = import_factory(options.app)
            start_listening(listeners, options.backlog)
            return _run(options, factory, listeners, holder)
        except ConfigurationError as exc:
            _report(options, str(exc))
            return 1
        finally:
            if os.getpid() != master:
                os._exit(1)  # a worker must never come back here
    raise AssertionError("unreachable")


def import_factory(path: str) -> Factory:
    """The function that "module:function" names. Raises ConfigurationError if there is none."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not module_name.startswith(exc.name):
            raise
        raise ConfigurationError(f"the application {path} is not there: no module named {exc.name}") from exc
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ConfigurationError(f"the application {path} is not there: {module_name} has no function {name}")
    found: Factory = factory
    return found


def _hold_shared(options: ServerOptions, listeners: list[socket.socket]) -> socket.socket | None:
    if options.shared_bind is None:
        return None
    try:
        return hold_shared(*options.shared_bind, listeners)
    except ConfigurationError:
        close_listeners(listeners)
        raise


def _run(options: ServerOptions, factory: Factory, listeners: list[socket.socket], holder: socket.socket | None) -> int:
    master = os.getpid()
    _raise_open_files()
    slots = Slots(options.workers)
    metrics_dir = create_metrics_dir(options.metric_files, slots.total)
    try:
        application = HeadwayApplication(options, factory, slots, metrics_dir, listeners, holder)
        close_listeners(listeners)  # the arbiter has its own copies, and closes them when it is told to end
        options.on_bound(application.addresses)
        gc.collect()
        gc.freeze()  # collections in the workers leave the imported modules' pages shared
        HeadwayArbiter(application).run()
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1
    finally:
        if metrics_dir is not None and os.getpid() == master:
            metrics_dir.remove()
    return 0


@contextlib.contextmanager
def _holding(listeners: list[socket.socket], uds: str | None) -> Iterator[None]:
    """Close the listeners, and remove the socket's file, whatever happens; the workers have ended by then."""
    master = os.getpid()
    inode = os.stat(uds).st_ino if uds else 0
    try:
        yield
    finally:
        close_listeners(listeners)
        if uds and os.getpid() == master:
            remove_unix_socket(uds, inode)


def _check_certificate(options: ServerOptions) -> None:
    if options.certfile is None:
        if options.keyfile is not None:
            raise ConfigurationError("a TLS key without a certificate: give the certificate, too")
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.certfile, options.keyfile)
    except OSError as exc:  # ssl.SSLError is one
        names = " and ".join(filter(None, (options.certfile, options.keyfile)))
        raise ConfigurationError(f"cannot use the TLS certificate {names}: {exc}") from exc


def _seat(arbiter: HeadwayArbiter, worker: HeadwayWorker) -> None:
    arbiter.seat(worker)


def _report(options: ServerOptions, reason: str) -> None:
    if options.on_failed is not None:
        options.on_failed(reason)
    else:
        sys.stderr.write(f"headway: {reason}\n")
        sys.stderr.flush()


def _raise_open_files() -> None:
    """A connection is a file; the usual soft limit of 1024 is there for programs that call select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
