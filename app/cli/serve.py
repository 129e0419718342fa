"""`headway serve`: sizes the server, starts it, and tells how to reach it."""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.banner import Banner
from app.cli.console import FAILURE, MISUSE, ModelsOption, print_error, read_settings
from app.engine.cpu import Sizing, choose_sizing, cpu_allowance, memory_limit_bytes
from app.errors import RegistryError
from app.logs import configure_logging
from app.monitoring.keys import SigningKeys
from app.registry.serving.quarantine import Quarantine
from app.registry.store import Store
from app.registry.versions import Version
from app.settings import Settings

if TYPE_CHECKING:
    from app.server.options import WorkerExit

# Measured after the imports of a worker, before a model is loaded; half of it is shared with the master.
_BASE_BYTES = 120_000_000
# Of it no page is shared: gRPC is imported after the fork.
_GRPC_BYTES = 20_000_000

logger = logging.getLogger(__name__)


def serve(
    host: Annotated[str | None, typer.Option(help="Address. [env: HEADWAY_HOST; default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one. [env: HEADWAY_PORT; default: 8000]")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Port for gRPC too; 0 takes a free one. [env: HEADWAY_GRPC_PORT]")
    ] = None,
    uds: Annotated[Path | None, typer.Option(help="Unix socket instead. [env: HEADWAY_UDS]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes. [env: HEADWAY_WORKERS; default: one a CPU]")] = None,
    threads: Annotated[int | None, typer.Option(help="Inference threads a worker. [env: HEADWAY_THREADS]")] = None,
    models: ModelsOption = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict", help="Not ready while a model has failed. [env: HEADWAY_STRICT]"),
    ] = None,
) -> None:
    """Serve every released model of the registry over HTTP, and over gRPC where it has a port."""
    if sys.platform == "win32":
        print_error("headway serve needs a POSIX system; on Windows run: uvicorn app.main:app")
        raise typer.Exit(MISUSE)
    settings = read_settings(
        host=host,
        port=port,
        grpc_port=grpc_port,
        uds=uds,
        workers=workers,
        threads=threads,
        models=models,
        strict=strict,
    )
    configure_logging(settings.log_level, settings.log_format)
    if not settings.models.is_dir():
        print_error(f"{settings.models}: there is no such registry directory; name it with --models or HEADWAY_MODELS")
        raise typer.Exit(MISUSE)
    if settings.grpc_port is not None and find_spec("grpc") is None:
        print_error("gRPC needs grpcio and protobuf: pip install 'headway[grpc]', or leave HEADWAY_GRPC_PORT unset")
        raise typer.Exit(MISUSE)
    sizing = choose_sizing(
        cpu_allowance(settings.cpus),
        workers=settings.workers,
        threads=settings.threads,
        worker_bytes=_worker_bytes(settings),
        memory_bytes=memory_limit_bytes(),
    )
    if settings.open_calls_warning is not None:
        logger.warning(settings.open_calls_warning)
    _hand_down(settings, sizing)
    raise typer.Exit(_run(settings, sizing))


def _check_secret(settings: Settings) -> None:
    """Raises ValueError; a worker would go on without prediction ids."""
    try:
        if settings.secret:
            SigningKeys.parse([entry.get_secret_value() for entry in settings.secret])
    except ValueError as exc:
        raise ValueError(f"HEADWAY_SECRET: {exc}") from exc


def _run(settings: Settings, sizing: Sizing) -> int:
    from app.server.master import serve as run_server
    from app.server.options import ServerOptions, count_slots

    quarantine = Quarantine(count_slots(sizing.workers), sizing.threads)
    drain = settings.drain_seconds
    if drain is None:
        drain = 0.0 if sys.stdin.isatty() or sys.stderr.isatty() else 5.0
    banner = Banner(settings, sizing)
    try:
        _check_secret(settings)
        options = ServerOptions(
            app="app.main:worker_app",
            host=settings.host,
            port=settings.port,
            uds=str(settings.uds) if settings.uds else None,
            also_bind=(settings.management_address,) if settings.read_admin_token() is not None else (),
            shared_bind=(settings.host, settings.grpc_port) if settings.grpc_port is not None else None,
            workers=sizing.workers,
            drain_seconds=drain,
            longest_deadline_seconds=settings.max_deadline_ms / 1e3,
            graceful_timeout_seconds=settings.graceful_timeout_seconds,
            keepalive_seconds=settings.keepalive_seconds,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            certfile=str(settings.ssl_certfile) if settings.ssl_certfile else None,
            keyfile=str(settings.ssl_keyfile) if settings.ssl_keyfile else None,
            log_level=settings.log_level,
            on_bound=banner.note_addresses,
            on_ready=banner.show,
            on_failed=print_error,
            on_worker_exit=partial(_record_exit, quarantine),
            shared=quarantine,
        )
    except ValueError as exc:
        print_error(str(exc))
        return FAILURE
    return run_server(options)


def _record_exit(quarantine: Quarantine, end: WorkerExit) -> None:
    """A worker that the master ended because it hung did not crash: which model was at fault cannot be told."""
    signal_number = -end.status if end.status < 0 and not end.was_aborted else None
    quarantine.record_exit(end.slot, signal_number, end.crashed_thread, time.monotonic())


def _hand_down(settings: Settings, sizing: Sizing) -> None:
    """Workers build their settings from the environment; flags must be in it."""
    for name in settings.model_fields_set & {"host", "port", "grpc_port", "uds", "models", "strict"}:
        os.environ[f"HEADWAY_{name.upper()}"] = str(getattr(settings, name))
    os.environ["HEADWAY_WORKERS"] = str(sizing.workers)
    os.environ["HEADWAY_THREADS"] = str(sizing.threads)
    # numpy's BLAS would start a thread a core in every worker.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _worker_bytes(settings: Settings) -> int:
    """What one worker needs: the code, and each released model twice, for the moment of a change."""
    store = Store(settings.models, settings.releases)
    total = _BASE_BYTES + (_GRPC_BYTES if settings.grpc_port is not None else 0)
    for name in store.model_names():
        try:
            release, _ = store.release(name)
        except RegistryError:
            continue  # not served; the workers say why
        for version in release.versions if release is not None else ():
            manifest = store.version(name, Version.parse(version)).manifest
            if manifest is not None:
                total += 2 * manifest.needed_bytes
    return total
