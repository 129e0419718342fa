"""The one place that builds the parts and joins them. `uvicorn app.main:app` serves `app`, built on first access."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import app as package
from app.api.admin import AdminToken, ManagementListener, RepositoryCalls
from app.api.application import Application
from app.api.body import BodyReader
from app.api.body_clock import BodyClock
from app.api.canary import CanaryApi
from app.api.catalog import CatalogApi
from app.api.drift import DriftApi
from app.api.feedback import FeedbackApi
from app.api.management import ManagementApi
from app.api.middleware import KeyRing, RequestMiddleware
from app.api.open_inference.describe import Description
from app.api.open_inference.infer import InferApi
from app.api.open_inference.repository import Repository
from app.api.open_inference.routes import ProtocolApi
from app.api.open_inference.statistics import Statistics
from app.api.operations import OperationsApi
from app.api.predict import PredictApi
from app.api.quality import QualityApi
from app.api.reception import Reception
from app.api.record import Recorder
from app.api.tf_serving.predict import SERVING_HEADERS, ServingPredictApi
from app.api.tf_serving.status import ServingStatusApi
from app.api.tf_serving.versions import ServingVersions
from app.engine.batcher import Batcher
from app.engine.cpu import available_memory_bytes, choose_sizing, cpu_allowance, cpu_features, memory_limit_bytes
from app.engine.inference import Inference
from app.engine.readiness import Flag, Readiness
from app.errors import FeedbackUnavailable
from app.logs import AccessLog, configure_logging
from app.metrics import Metrics
from app.monitoring.keys import load_keys
from app.monitoring.prediction_id import PredictionIds
from app.production import Production
from app.registry.releases.editor import ReleaseEditor
from app.registry.serving.lifecycle import Registry
from app.registry.serving.quarantine import Quarantine, WorkerQuarantine
from app.registry.serving.reconciler import Reconciler
from app.registry.serving.states import ModelStates
from app.registry.serving.wishes import Wishes
from app.registry.serving.worker_states import StateFile
from app.registry.store import Store
from app.registry.storing.intake import Intake
from app.server.options import WorkerContext
from app.settings import Settings
from app.ui import UiApi

logger = logging.getLogger(__name__)

_DESCRIPTION = "Send an image or numbers to `/predict`; read labels with confidences. Every error has one shape."


def create_app(
    settings: Settings,
    *,
    threads: int = 1,
    workers: int = 1,
    metrics: Metrics | None = None,
    draining: Flag | None = None,
    quarantine: WorkerQuarantine | None = None,
    on_stuck: Callable[[str], None] | None = None,
    run_dir: Path | None = None,
    slot: int = 0,
    management: ManagementListener | None = None,
    grpc_address: tuple[str, int] | None = None,
) -> Application:
    """An application of one process; its lifespan loads the models before the first request is accepted.

    `threads` run models at one time. With a `grpc_address` it has a server for that beside it. The rest comes from the
    process layer where there is one.
    """
    metrics = metrics or Metrics()
    store = Store(settings.models, settings.releases)
    wishes = Wishes(run_dir)
    registry = Registry(
        store,
        cpu_features=cpu_features(),
        quarantine=quarantine,
        available_bytes=available_memory_bytes,
        wishes=wishes,
    )
    states = ModelStates(registry, metrics, StateFile(run_dir, slot) if run_dir is not None else None)
    batcher = Batcher(threads, metrics, on_stuck)
    inference = Inference(registry, batcher, metrics)
    reconciler = Reconciler(registry, states.publish, inference.forget, run_dir)
    editor = ReleaseEditor(store)
    prediction_ids = _open_prediction_ids(settings, slot)
    production = Production(settings, registry, editor, prediction_ids, metrics, run_dir)
    access_log = AccessLog(settings.log_format)
    clock = BodyClock(settings.body_timeout_seconds, settings.body_min_bytes_per_second)
    bodies = BodyReader(settings.max_body_bytes, _inflight_bytes(settings) // workers, clock)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        access_log.start()
        await asyncio.to_thread(registry.load)
        states.publish()
        reconciler.start()
        production.start()
        try:
            yield
        finally:
            await asyncio.to_thread(feedback.close)
            await asyncio.to_thread(production.close)
            await asyncio.to_thread(reconciler.close)
            await asyncio.to_thread(inference.close)
            await asyncio.to_thread(batcher.close)
            registry.close()
            metrics.deferred.flush()
            access_log.close()

    # Whether an OpenTelemetry SDK was set up before; looking at each request costs 5 µs.
    is_traced = "opentelemetry.sdk" in sys.modules
    application = Application(
        title="Headway",
        version=package.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        telemetry={"auto_configure": False, "tracing": is_traced, "metrics": is_traced, "logs": is_traced},
    )
    reception = Reception(
        inference,
        bodies,
        metrics,
        deadline_ms=settings.deadline_ms,
        max_deadline_ms=settings.max_deadline_ms,
        trusts_priority=settings.trust_priority,
    )
    predict = PredictApi(reception, metrics, prediction_ids, settings.max_items)
    readiness = Readiness(registry, draining or threading.Event(), strict=settings.strict)
    manage = ManagementApi(editor, Intake(store, bin_days=settings.bin_days), run_dir, settings.max_upload_bytes)
    feedback = FeedbackApi(production.desk, bodies)
    description = Description(registry, run_dir)
    statistics = Statistics(metrics, registry)
    repository = Repository(registry, wishes, run_dir, workers=workers)
    repository_calls = _open_repository_calls(settings)
    serving_versions = ServingVersions(registry)
    apis = (
        predict,
        InferApi(reception, prediction_ids, settings.max_items),
        ServingPredictApi(reception, serving_versions, prediction_ids, settings.max_items),
        ServingStatusApi(registry, serving_versions, description, run_dir),
        ProtocolApi(readiness, description, statistics, repository, repository_calls, bodies),
        manage,
        feedback,
        QualityApi(production.quality_reports, registry),
        DriftApi(production.drift_reports, registry),
        CanaryApi(production.canary_judge, registry),
        CatalogApi(registry, run_dir),  # last of those below /models: it takes what follows a name for a version
        OperationsApi(readiness, metrics),
        UiApi(),
    )
    for api in apis:
        api.add_routes(application.router)
    recorder = Recorder(metrics, production.tallies, access_log, settings.access_log_sample, bodies.release)
    keys = KeyRing([key.get_secret_value() for key in settings.api_keys], repository_calls.token)
    _add_middleware(application, settings, keys, recorder, management)
    if grpc_address is not None:
        # gRPC has threads, which no fork keeps: it is imported in the worker.
        from app.api.open_inference_grpc.server import GrpcListener, build_server

        application.beside = (
            build_server(
                GrpcListener(*grpc_address, settings.max_body_bytes, settings.ssl_certfile, settings.ssl_keyfile),
                keys=keys,
                bodies=bodies,
                record=recorder,
                reception=reception,
                prediction_ids=prediction_ids,
                max_items=settings.max_items,
                readiness=readiness,
                description=description,
                statistics=statistics,
                repository=repository,
                repository_calls=repository_calls,
            ),
        )
    return application


def _open_prediction_ids(settings: Settings, slot: int) -> PredictionIds | None:
    """None where there is no key; predictions go on without, and the first worker says so for all."""
    try:
        keys = load_keys([entry.get_secret_value() for entry in settings.secret], settings.data_dir)
    except FeedbackUnavailable as exc:
        if slot == 0:
            logger.warning("answers have no prediction_id, and no feedback can be given: %s", exc)
        return None
    return PredictionIds(keys, settings.feedback_days * 86_400)


def _add_middleware(
    application: FastAPI,
    settings: Settings,
    keys: KeyRing,
    recorder: Recorder,
    management: ManagementListener | None,
) -> None:
    application.add_middleware(
        RequestMiddleware, keys=keys, root_path=settings.root_path, record=recorder, management=management
    )
    if settings.cors_origins:
        application.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "server-timing", "retry-after", *SERVING_HEADERS],
        )


def _inflight_bytes(settings: Settings) -> int:
    return settings.max_inflight_bytes or (memory_limit_bytes() or 4 * 2**30) // 4


def worker_app(context: WorkerContext) -> ASGIApp:
    """The application of one worker of `headway serve`; settings come from the environment."""
    settings = Settings()
    configure_logging(settings.log_level, settings.log_format)
    prepare_process()
    return create_app(
        settings,
        threads=settings.threads or 1,
        workers=context.workers,
        metrics=Metrics(context.metrics_dir, context.slot),
        draining=context.draining,
        quarantine=context.shared.join(context.slot) if isinstance(context.shared, Quarantine) else None,
        on_stuck=_retire,
        run_dir=context.metrics_dir,
        slot=context.slot,
        management=_open_management(settings, context),
        grpc_address=context.shared_bound,
    )


def _open_management(settings: Settings, context: WorkerContext) -> ManagementListener | None:
    if not context.also_bound:
        return None
    # The listener is there: what cannot be known must not be guessed either.
    return ManagementListener(context.also_bound[0], _read_admin_token(settings) or AdminToken(secrets.token_hex()))


def _open_repository_calls(settings: Settings) -> RepositoryCalls:
    if not settings.repository_calls:
        return RepositoryCalls()
    return RepositoryCalls(are_open=True, token=_read_admin_token(settings))


def _read_admin_token(settings: Settings) -> AdminToken | None:
    """None where none is set. Where it cannot be read, one that nobody has."""
    try:
        token = settings.read_admin_token()
    except ValueError as exc:
        logger.error("%s; the management API refuses everybody", exc)
        token = secrets.token_hex()
    return AdminToken(token) if token is not None else None


def _retire(model: str) -> None:
    """This worker has lost a thread and a core to a run that does not end: it drains, and the master replaces it."""
    logger.error("a run of %s cannot be ended; this worker answers what it has, and is replaced", model)
    os.kill(os.getpid(), signal.SIGTERM)


def _application_from_environment() -> ASGIApp:
    """For `uvicorn app.main:app`: one process, all CPUs as threads."""
    settings = Settings()
    configure_logging(settings.log_level, settings.log_format)
    prepare_process()
    if settings.admin_token is not None or settings.admin_token_file is not None:
        logger.warning("the management API is closed: it has a listener of its own, which `headway serve` opens")
    if settings.open_calls_warning is not None:
        logger.warning(settings.open_calls_warning)
    if settings.grpc_port is not None:
        logger.warning("HEADWAY_GRPC_PORT is closed: `headway serve` opens it")
    sizing = choose_sizing(cpu_allowance(settings.cpus), workers=1, threads=settings.threads)
    return create_app(settings, threads=sizing.threads)


def prepare_process() -> None:
    """What belongs to a server process, but not to a program that merely imports the package."""
    # ImageProcessor has tighter limits of its own, which name the size; Pillow's would warn of JPEGs that `draft`
    # makes harmless.
    Image.MAX_IMAGE_PIXELS = None
    # Each distinct warning of a damaged file would be remembered for ever.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def __getattr__(name: str) -> Any:
    if name == "app":
        application = globals()["app"] = _application_from_environment()
        return application
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
