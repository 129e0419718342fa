"""POST /predict: JSON, multipart or a raw body to a call, and its answer to JSON.

The route reads the raw body and validates bytes: a pydantic body parameter costs 150 µs more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.application import RawRoute
from app.api.content import TENSOR_TYPE, TEXT_TYPE, PredictContent, parse_content
from app.api.context import RequestContext, context_of
from app.api.examples import PREDICT_BODY, PREDICT_RESPONSES
from app.api.json_arrays import VALUES_OF_AN_ID, join_parts, render_aside, values_to_json
from app.api.peek import peek_json, peek_query
from app.api.prediction_ids import sign_items
from app.api.reception import Arrival, Reception, server_timing
from app.engine.call import Answer
from app.errors import HeadwayError, InvalidImage, MalformedRequest, ModelRequired
from app.metrics import UNKNOWN, Metrics
from app.monitoring.prediction_id import PredictionIds
from app.registry.manifest import RegressionAnswer
from app.registry.servables.servable import ContentKind, Item
from app.registry.serving.lifecycle import Resolved
from app.registry.versions import ModelRef
from app.tensors import Tensors

PROTOCOL = "predict"
_RAW_KINDS: Mapping[str, ContentKind] = {"image/": "image", TEXT_TYPE: "text", TENSOR_TYPE: "tensor"}


class PredictApi:
    """Without `prediction_ids` answers have none."""

    def __init__(
        self, reception: Reception, metrics: Metrics, prediction_ids: PredictionIds | None, max_items: int
    ) -> None:
        self._reception = reception
        self._metrics = metrics
        self._prediction_ids = prediction_ids
        self._max_items = max_items

    def add_routes(self, router: APIRouter) -> None:
        router.add_api_route(
            "/predict",
            self.predict,
            methods=["POST"],
            tags=["prediction"],
            route_class_override=RawRoute,
            summary="Labels, values or tensors for images, texts or numbers",
            responses=PREDICT_RESPONSES,
            openapi_extra=PREDICT_BODY,
        )

    async def predict(self, request: Request) -> Response:
        """Takes JSON, a multipart upload (field `image`), or the bytes of an image, a text or a tensor as the whole
        body."""
        arrival, body = await self._reception.receive(request, PROTOCOL, _peek)
        wire = await self._parse(request, body)
        resolved = await self._resolve(wire, arrival)
        inputs = wire.inputs_for(resolved.servable)
        answer = await self._reception.answer(arrival, resolved, inputs, is_plural=wire.is_plural, top_k=wire.top_k)
        context = arrival.context
        kind = resolved.servable.manifest.answer
        unit = kind.unit if isinstance(kind, RegressionAnswer) else None
        ids, is_plural = self._prediction_ids, not wire.is_single
        content_bytes, status = await render_aside(
            _count_work(answer), lambda: render_answer(answer, context, ids, is_plural=is_plural, unit=unit)
        )
        return JsonAnswer(content_bytes, status, server_timing(context))

    async def _parse(self, request: Request, body: bytes) -> PredictContent:
        try:
            return await parse_content(request, body, self._max_items)
        except InvalidImage:
            self._metrics.undecodable_images.labels(UNKNOWN).inc()
            raise

    async def _resolve(self, wire: PredictContent, arrival: Arrival) -> Resolved:
        try:
            return await self._reception.resolve(_parse_ref(wire.model), wire.kind, arrival)
        except ModelRequired as exc:
            raise ModelRequired(f"{exc}{wire.describe_image()}") from exc


def _peek(request: Request, body: bytes) -> tuple[ModelRef | None, ContentKind]:
    media_type = context_of(request.scope).headers.get(b"content-type", b"").decode("latin-1").lower()
    for beginning, kind in _RAW_KINDS.items():
        if media_type.startswith(beginning):
            return peek_query(request.query_params), kind
    return peek_json(body)


class JsonAnswer(Response):
    """As the base, which takes 6 µs to make headers of what is known beforehand."""

    def __init__(self, body: bytes, status: int, timing: bytes) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-length", str(len(body)).encode("ascii")),
            (b"content-type", b"application/json"),
            (b"server-timing", timing),
        ]


def _parse_ref(model: str | None) -> ModelRef | None:
    try:
        return ModelRef.parse(model) if model is not None else None
    except ValueError as exc:
        raise MalformedRequest(f"model: {exc}") from exc


def render_answer(
    answer: Answer, context: RequestContext, prediction_ids: PredictionIds | None, *, is_plural: bool, unit: str | None
) -> tuple[bytes, int]:
    """The JSON of an answer and its status: 200 if at least one item worked, else the first error's, in its shape."""
    content: dict[str, Any] = {}
    outputs: list[bytes] = []
    status = 200
    not_finite = False
    if answer.items is None:
        outputs, not_finite = _render_outputs(answer.tensors or {})
    else:
        items = [_item(item) for item in answer.items]
        if prediction_ids is not None:
            for item, prediction_id in zip(items, sign_items(answer, prediction_ids), strict=True):
                if prediction_id is not None:
                    item["prediction_id"] = prediction_id
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
    return b"".join([b"{", *outputs, to_json(content)[1:]]), status


def _render_outputs(tensors: Tensors) -> tuple[list[bytes], bool]:
    """The member of that name, with a comma after it; and whether a value was not finite."""
    found, not_finite = [], False
    for name, array in tensors.items():
        parts, lost = values_to_json(array)
        found.append([to_json(name), b":", *parts])
        not_finite |= lost
    return [b'"outputs":{', *join_parts(found), b"},"], not_finite


def _count_work(answer: Answer) -> int:
    """What `render_answer` takes, in values that are written as JSON."""
    if answer.items is not None:
        return len(answer.items) * VALUES_OF_AN_ID
    return sum(array.size for array in (answer.tensors or {}).values())


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


def _has_null(item: dict[str, Any]) -> bool:
    if "value" in item:
        return item["value"] is None
    return None in [prediction["confidence"] for prediction in item.get("predictions", ())]
