"""POST /predict: JSON, multipart or a raw body to a call, and its answer to JSON.

The route reads the raw body and validates bytes: a pydantic body parameter costs 150 µs more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.application import RawRoute
from app.api.body import BodyReader
from app.api.content import TENSOR_TYPE, PredictContent, parse_content
from app.api.context import READ_KEY, RequestContext, context_of
from app.api.examples import PREDICT_BODY, PREDICT_RESPONSES
from app.api.peek import peek_json, peek_query
from app.engine.call import Answer, Call
from app.engine.inference import Inference
from app.engine.lane import Priority
from app.errors import HeadwayError, InvalidImage, MalformedRequest, ModelNotReady, ModelRequired, Overloaded
from app.metrics import UNKNOWN, Metrics
from app.monitoring.prediction_id import TOP, Prediction, PredictionIds, new_nonce
from app.processing.tensor import tensors_to_json
from app.registry.lifecycle import Resolved
from app.registry.manifest import RegressionAnswer
from app.registry.servable import Item
from app.registry.versions import ModelRef

PROTOCOL = "predict"
_LOOK_AGAIN_SECONDS = 0.05
# As a share of a request's time. What comes while others are refused waits several times as long in its socket, where
# nobody sees it: refusing takes time too.
_MOST_LAG = 1 / 16
_UNFELT_SECONDS = 0.05
# In a request's scope: what the server calls when the client leaves (app/server/protocol.py).
LEAVE_KEY = "headway.leave"


class PredictApi:
    """Without `prediction_ids` answers have none."""

    def __init__(
        self,
        inference: Inference,
        bodies: BodyReader,
        metrics: Metrics,
        prediction_ids: PredictionIds | None,
        *,
        max_items: int,
        deadline_ms: int,
        max_deadline_ms: int,
        trusts_priority: bool,
    ) -> None:
        self._inference = inference
        self._bodies = bodies
        self._metrics = metrics
        self._prediction_ids = prediction_ids
        self._max_items = max_items
        self._deadline_ms = deadline_ms
        self._max_deadline_ms = max_deadline_ms
        self._trusts_priority = trusts_priority

    def add_routes(self, router: APIRouter) -> None:
        router.add_api_route(
            "/predict",
            self.predict,
            methods=["POST"],
            tags=["prediction"],
            route_class_override=RawRoute,
            summary="Labels, values or tensors for images or numbers",
            responses=PREDICT_RESPONSES,
            openapi_extra=PREDICT_BODY,
        )

    async def predict(self, request: Request) -> Response:
        """Takes JSON, a multipart upload (field `image`), or the bytes of an image or of a tensor as the whole body."""
        context = context_of(request.scope)
        context.protocol = PROTOCOL
        deadline_ms = self._requested_ms(context.headers)
        _check_lag(request, deadline_ms / 1e3)
        body = await self._bodies.read(request)
        # Where the event loop is behind, a request has waited before anybody looked at it.
        arrived: float = request.scope.get(READ_KEY) or time.monotonic()
        priority = self._priority(context.headers)
        seconds_left = arrived + deadline_ms / 1e3 - time.monotonic()
        if self._inference.is_busy:
            self._check_room(request, body, seconds_left, priority)
        wire = await self._parse(request, body)
        routing_key = _routing_key(context.headers)
        resolved = await self._resolve(wire, routing_key, arrived + deadline_ms / 1e3)
        _note_model(context, resolved)
        inputs = wire.inputs_for(resolved.servable)
        decoded = time.monotonic()
        limit_ms = resolved.servable.manifest.limits.deadline_ms or deadline_ms
        call = Call(
            inputs=inputs,
            deadline=arrived + min(deadline_ms, limit_ms) / 1e3,
            is_plural=wire.images is not None,
            top_k=wire.top_k,
            routing_key=routing_key,
            request_id=context.request_id,
            priority=priority,
            on_admitted=partial(request.scope.__setitem__, LEAVE_KEY),
        )
        answer = await self._answer(call, resolved)
        answer.timings.decode = decoded - arrived
        context.timings = answer.timings
        kind = resolved.servable.manifest.answer
        unit = kind.unit if isinstance(kind, RegressionAnswer) else None
        content_bytes, status = render_answer(
            answer, context, self._prediction_ids, is_plural=wire.image is None, unit=unit
        )
        return JsonAnswer(content_bytes, status, _server_timing(context))

    async def _parse(self, request: Request, body: bytes) -> PredictContent:
        try:
            return await parse_content(request, body, self._max_items)
        except InvalidImage:
            self._metrics.undecodable_images.labels(UNKNOWN).inc()
            raise

    async def _resolve(self, wire: PredictContent, routing_key: bytes | None, deadline: float) -> Resolved:
        """Waits for a version that is being loaded, as long as there is time."""
        ref = _parse_ref(wire.model)
        while True:
            try:
                return self._inference.resolve(ref, wire.kind, routing_key)
            except ModelRequired as exc:
                raise ModelRequired(f"{exc}{wire.describe_image()}") from exc
            except ModelNotReady:
                if time.monotonic() + _LOOK_AGAIN_SECONDS >= deadline:
                    raise
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def _answer(self, call: Call, resolved: Resolved) -> Answer:
        servable = resolved.servable
        gauge = self._metrics.model(servable.name, servable.version).in_flight
        gauge.inc()
        try:
            return await self._inference.predict(call, resolved)
        finally:
            gauge.dec()

    def _check_room(self, request: Request, body: bytes, seconds_left: float, priority: Priority) -> None:
        """Refuse what cannot be answered in time before it is parsed; what cannot be told yet goes on."""
        headers = context_of(request.scope).headers
        media_type = headers.get(b"content-type", b"").decode("latin-1").lower()
        ref, kind = peek_json(body)
        if media_type.startswith(("image/", TENSOR_TYPE)):
            ref, kind = peek_query(request.query_params), "image" if media_type.startswith("image/") else "tensor"
        try:
            resolved = self._inference.resolve(ref, kind, _routing_key(headers))
        except HeadwayError:
            return
        _note_model(context_of(request.scope), resolved)
        self._inference.check_room(resolved, seconds_left, priority)

    def _priority(self, headers: Mapping[bytes, bytes]) -> Priority:
        text = headers.get(b"headway-priority", b"normal").lower()
        if text not in (b"high", b"normal"):
            raise MalformedRequest("Headway-Priority is high or normal")
        return Priority.HIGH if text == b"high" and self._trusts_priority else Priority.NORMAL

    def _requested_ms(self, headers: Mapping[bytes, bytes]) -> int:
        text = headers.get(b"headway-timeout-ms")
        if text is None:
            return self._deadline_ms
        if not text.isdigit() or not 1 <= int(text) <= self._max_deadline_ms:
            raise MalformedRequest(f"Headway-Timeout-Ms must be a whole number from 1 to {self._max_deadline_ms}")
        return int(text)


def _check_lag(request: Request, seconds: float) -> None:
    """Raises Overloaded where the event loop is so far behind that requests which are still unread would be late."""
    lag = time.monotonic() - request.scope.get(READ_KEY, math.inf)
    if lag > max(seconds * _MOST_LAG, _UNFELT_SECONDS):
        raise Overloaded(
            f"the server is {lag:.1f} s behind with requests that came before; try again later", lag, may_close=False
        )


def _note_model(context: RequestContext, resolved: Resolved) -> None:
    context.model, context.version = resolved.servable.name, resolved.servable.version
    context.alias, context.is_drawn = resolved.alias, resolved.is_drawn


class JsonAnswer(Response):
    """As the base, which takes 6 µs to make headers of what is known beforehand."""

    def __init__(self, body: bytes, status: int, server_timing: str) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-length", str(len(body)).encode("ascii")),
            (b"content-type", b"application/json"),
            (b"server-timing", server_timing.encode("ascii")),
        ]


def _parse_ref(model: str | None) -> ModelRef | None:
    try:
        return ModelRef.parse(model) if model is not None else None
    except ValueError as exc:
        raise MalformedRequest(f"model: {exc}") from exc


def _routing_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    return headers.get(b"headway-routing-key") or None


def render_answer(
    answer: Answer, context: RequestContext, prediction_ids: PredictionIds | None, *, is_plural: bool, unit: str | None
) -> tuple[bytes, int]:
    """The JSON of an answer and its status: 200 if at least one item worked, else the first error's, in its shape."""
    content: dict[str, Any] = {}
    status = 200
    not_finite = False
    if answer.items is None:
        content["outputs"], not_finite = tensors_to_json(answer.tensors or {})
    else:
        items = [_item(item) for item in answer.items]
        if prediction_ids is not None:
            _add_ids(items, answer, prediction_ids)
        not_finite = any(_has_null(item) for item in items)
        content.update({"results": items} if is_plural else items[0])
        errors = [item for item in answer.items if isinstance(item, HeadwayError)]
        if errors and len(errors) == len(items):
            status, context.error_code = errors[0].status, errors[0].code
            content |= {"error": str(errors[0]), "code": errors[0].code}
    if unit is not None:
        content["unit"] = unit
    content |= {
        "model": answer.model,
        "version": answer.version,
        "alias": answer.alias,
        "request_id": context.request_id,
    }
    warnings = [violation.message for violation in answer.violations]
    if not_finite:
        warnings.append("the model gave values that are not finite (NaN or infinity); they are null here")
    if warnings:
        content["warnings"] = warnings
    return to_json(content), status


def _item(item: Item | HeadwayError) -> dict[str, Any]:
    if isinstance(item, HeadwayError):
        return {"error": str(item), "code": item.code}
    if item.value is not None:
        return {"value": item.value if abs(item.value) < float("inf") else None}
    return {
        "predictions": [
            {"label": prediction.label, "index": prediction.index, "confidence": prediction.confidence}
            for prediction in item.predictions
        ]
    }


def _add_ids(rendered: list[dict[str, Any]], answer: Answer, prediction_ids: PredictionIds) -> None:
    """Give each item that is no error an id of its own; all of one request have one time."""
    at_ms = time.time_ns() // 1_000_000
    for content, item in zip(rendered, answer.items or (), strict=True):
        if isinstance(item, Item):
            best = item.predictions[:TOP]
            prediction = Prediction(
                answer.model,
                answer.version,
                answer.alias,
                at_ms,
                new_nonce(),
                indices=tuple(one.index for one in best),
                confidence=best[0].confidence if best else None,
                value=item.value,
            )
            content["prediction_id"] = prediction_ids.sign(prediction)


def _has_null(item: dict[str, Any]) -> bool:
    if "value" in item:
        return item["value"] is None
    return None in [prediction["confidence"] for prediction in item.get("predictions", ())]


def _server_timing(context: RequestContext) -> str:
    """https://www.w3.org/TR/server-timing/, milliseconds; `total` runs from the first byte of the request."""
    timings = context.timings
    assert timings is not None
    total = time.perf_counter() - context.started
    return (
        f"decode;dur={timings.decode * 1e3:.3f}, queue;dur={timings.queue * 1e3:.3f}, "
        f"preprocess;dur={timings.preprocess * 1e3:.3f}, inference;dur={timings.inference * 1e3:.3f}, "
        f"postprocess;dur={timings.postprocess * 1e3:.3f}, total;dur={total * 1e3:.3f}"
    )
