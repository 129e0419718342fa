"""What the process layer is told, and what it tells the application. Imports no server, so it is portable.

`ServerOptions` is for `master.serve`; `WorkerContext` is handed to the application's factory in each worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class ConfigurationError(Exception):
    """A setting is wrong: the message says which and what to do. Ends the server at its first start."""


def count_slots(workers: int) -> int:
    """The worker slots of a server: spare ones, because a reload runs the old and the new workers side by side."""
    return 2 * workers + 2


class Beside(Protocol):
    """A server of another protocol, which a worker runs in its event loop beside HTTP."""

    async def start(self) -> None:
        """Once the application's lifespan has started. Raises OSError, with what to do, where it cannot be."""

    async def stop(self, seconds: float) -> None:
        """Take no more calls at once; those that run have so long. May be called again with less. Must not raise."""


class Flag(Protocol):
    """Something that can be asked whether it holds, at no cost."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class WorkerContext:
    """What a worker knows of its place; the one argument of the application's factory.

    `slot` is unique among the living workers and is taken over by a dead worker's replacement; it is below
    `workers` except during a reload. `draining` is set in all workers at once when the server was told to
    end: readiness should then answer 503. `metrics_dir` holds prometheus_client's multiprocess files of
    this start. `shared` is that of the ServerOptions, as the fork left it. `also_bound` are the addresses of
    `also_bind`, with the ports that were found, `shared_bound` that of `shared_bind`.
    """

    slot: int
    workers: int
    draining: Flag
    metrics_dir: Path | None
    shared: Any = None
    also_bound: tuple[tuple[str, int], ...] = ()
    shared_bound: tuple[str, int] | None = None


@dataclass(frozen=True)
class WorkerExit:
    """One worker's end. `status` is its exit code, or minus the number of the signal that killed it.

    `was_aborted`: the master ended it, because it hung. `crashed_thread` is the `threading.get_ident()` of the
    thread that crashed; None where it is not known, or was none of Python's.
    """

    slot: int
    pid: int
    status: int
    lived_seconds: float
    is_expected: bool
    was_aborted: bool = False
    crashed_thread: int | None = None


def _ignore(_: object) -> None:
    """The default of the callbacks."""


@dataclass(frozen=True)
class ServerOptions:
    """Everything `serve` needs.

    `app` is "module:function"; the module is imported in the master, the function is called in each worker
    with a WorkerContext and returns the ASGI application, whose lifespan must be done before requests are
    accepted. Its attribute `beside`, if it has one, holds servers of other protocols (`Beside`). `uds` (a path)
    replaces host and port; `also_bind` adds listeners, told apart by the scope's `server`. `shared_bind` is held for a
    server of `beside`: each worker binds it anew (SO_REUSEPORT). `on_bound(addresses)` runs in the master once all
    listeners are bound, in their order, and then that of `shared_bind`;
    `on_ready(address)` once, when the first worker accepts;
    `on_failed(reason)` once, when the server ends because it could not be started (without it the reason is
    printed on stderr); `on_worker_exit` after each worker's end, before its slot is taken again. They must be
    quick: the master does nothing else meanwhile. `shared` is handed to every worker; to be one thing in all
    processes it must lie in memory that a fork shares.
    """

    app: str
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    also_bind: tuple[tuple[str, int], ...] = ()
    shared_bind: tuple[str, int] | None = None
    workers: int = 1
    drain_seconds: float = 5.0
    longest_deadline_seconds: float = 60.0
    graceful_timeout_seconds: float = 75.0
    keepalive_seconds: int = 75
    header_timeout_seconds: float = 10.0
    max_header_bytes: int = 64 * 1024
    worker_timeout_seconds: int = 60
    backlog: int = 2048
    forwarded_allow_ips: str = "127.0.0.1,::1"
    certfile: str | None = None
    keyfile: str | None = None
    log_level: str = "info"
    metric_files: tuple[str, ...] = (
        "counter",
        "histogram",
        "gauge_livesum",
        "gauge_liveall",
        "gauge_livemax",
        "gauge_livemostrecent",
    )
    on_bound: Callable[[tuple[str, ...]], None] = _ignore
    on_ready: Callable[[str], None] = _ignore
    on_failed: Callable[[str], None] | None = None
    on_worker_exit: Callable[[WorkerExit], None] = _ignore
    shared: Any = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if self.drain_seconds < 0:
            raise ValueError(f"the drain window cannot be negative ({self.drain_seconds} s)")
        needed = self.drain_seconds + self.longest_deadline_seconds
        if needed >= self.graceful_timeout_seconds:
            raise ValueError(
                f"the graceful timeout ({self.graceful_timeout_seconds:g} s) must be longer than the drain "
                f"window ({self.drain_seconds:g} s) and the longest deadline "
                f"({self.longest_deadline_seconds:g} s) together, or requests are cut off at a restart: "
                f"raise it above {needed:g} s, or shorten one of the two"
            )
