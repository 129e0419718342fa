"""After the answer: metrics and the access log. A failure here is counted and never reaches the caller."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from app.api.context import RequestContext
from app.logs import AccessLog
from app.metrics import UNKNOWN, Metrics
from app.monitoring.tallies import Tallies

logger = logging.getLogger(__name__)

# One refusal in this time is logged, in each worker.
_REFUSAL_SECONDS = 0.1

_REJECTIONS = {
    "overloaded": "overload",
    "body_memory": "overload",
    "deadline_exceeded": "deadline",
    "client_closed": "disconnected",
    "body_too_large": "too_large",
    "image_too_large": "too_large",
}
# What speaks against a version; refusals and bad requests do not.
_FAILURES = frozenset({"deadline_exceeded", "internal", "model_failed", "model_quarantined", "run_failed"})


class Recorder:
    """Counts what was answered and writes the access log. `release` frees what the request held."""

    def __init__(
        self,
        metrics: Metrics,
        tallies: Tallies,
        access_log: AccessLog,
        sample: float,
        release: Callable[[RequestContext], None],
    ) -> None:
        self._metrics = metrics
        self._tallies = tallies
        self._access_log = access_log
        self._sample = sample
        self._release = release
        self._next_refusal_at = 0.0

    def __call__(self, context: RequestContext) -> None:
        self._release(context)
        try:
            now = time.perf_counter()
            if context.protocol is not None:
                self._count(context, context.protocol, now - context.started)
            if self._is_logged(context, now):
                self._access_log.record(_access_line(context, now))
        except Exception:
            self._metrics.unrecorded.inc()
            logger.exception("recording request %s failed", context.request_id)

    def _is_logged(self, context: RequestContext, now: float) -> bool:
        """Errors always, but of refusals few: there may be a thousand a second, and the metrics count them all."""
        if context.error_code == "overloaded":
            if now < self._next_refusal_at:
                return False
            self._next_refusal_at = now + _REFUSAL_SECONDS
            return True
        return context.status >= 500 or (self._sample > 0 and random.random() < self._sample)

    def _count(self, context: RequestContext, protocol: str, duration: float) -> None:
        model = context.model or UNKNOWN
        bound = self._metrics.model(model, context.version or UNKNOWN)
        bound.count(protocol, context.status, duration)
        if model in self._tallies.watched and context.version is not None:
            alias = context.alias if context.is_drawn else None
            if context.status < 400:
                self._tallies.count_request(model, context.version, alias, duration)
            elif context.error_code in _FAILURES and not _chose_its_time(context):
                self._tallies.count_request(model, context.version, alias, None)
        reason = _REJECTIONS.get(context.error_code or "")
        if reason is not None:
            self._metrics.rejected.labels(model, reason).inc()
        if (took := context.timings) is not None:
            bound.observe_stages((took.decode, took.preprocess, took.queue, took.inference, took.postprocess))


def _chose_its_time(context: RequestContext) -> bool:
    """Who gives an answer less time than the server does would make any version fail."""
    return context.error_code == "deadline_exceeded" and (
        context.has_own_deadline or b"headway-timeout-ms" in context.headers
    )


def _access_line(context: RequestContext, now: float) -> dict[str, Any]:
    """`duration_ms` runs from the first byte of the request, `after_body_ms` from its last: how long we took."""
    line: dict[str, Any] = {
        "request_id": context.request_id,
        "method": context.method,
        "path": context.path,
        "status": context.status,
        "duration_ms": round((now - context.started) * 1e3, 2),
        "bytes_in": context.body_bytes,
        "bytes_out": context.answer_bytes,
    }
    if context.read_at is not None:  # else the answer did not wait for the body, or another server runs the application
        line["after_body_ms"] = round((time.monotonic() - context.read_at) * 1e3, 3)
    for name in ("trace_id", "model", "version", "alias", "key_id", "error_code"):
        value = getattr(context, name)
        if value is not None:
            line[name] = value
    if context.timings is not None:
        line["stages_ms"] = {stage: round(seconds * 1e3, 2) for stage, seconds in context.timings.stages()}
    return line
