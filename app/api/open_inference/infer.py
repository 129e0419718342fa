"""POST /v2/models/{name}[/versions/{version}]/infer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.application import RawRoute
from app.api.compression import pack_answer
from app.api.json_arrays import render_aside
from app.api.open_inference.answer import InferAnswer, count_work, render_infer
from app.api.open_inference.request import LENGTH_HEADER, InferRequest, read_request
from app.api.openapi import schema_of
from app.api.prediction_ids import sign_items
from app.api.reception import Reception, server_timing
from app.api.schemas import ErrorResponse
from app.errors import InvalidContent
from app.monitoring.prediction_id import PredictionIds
from app.registry.servables.servable import ContentKind
from app.registry.versions import ModelRef

PROTOCOL = "v2"
PATHS = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")


class InferApi:
    """Without `prediction_ids` answers have none."""

    def __init__(self, reception: Reception, prediction_ids: PredictionIds | None, max_items: int) -> None:
        self._reception = reception
        self._prediction_ids = prediction_ids
        self._max_items = max_items

    def add_routes(self, router: APIRouter) -> None:
        for path in PATHS:
            router.add_api_route(
                path,
                self.infer,
                methods=["POST"],
                tags=["open inference protocol"],
                route_class_override=RawRoute,
                summary="Tensors in, tensors out",
                responses=_RESPONSES,
                openapi_extra=_BODY,
            )

    async def infer(self, request: Request) -> Response:
        """JSON, or JSON and binary tensors, as Inference-Header-Content-Length says."""
        arrival, body = await self._reception.receive(request, PROTOCOL, _peek, takes_compressed=True)
        headers = arrival.context.headers
        content = read_request(body, _read_length(request) if LENGTH_HEADER in headers else None)
        arrival.shorten(content.timeout_ms)
        arrival.routing_key = content.routing_key or arrival.routing_key
        resolved = await self._reception.resolve(_ref_of(request), "tensor", arrival)
        servable = resolved.servable
        wanted = content.outputs_for(servable)
        inputs = content.inputs_for(servable, self._max_items)
        # Labels, which prediction ids are made of, come with all outputs.
        names = tuple(one.name for one in wanted) if servable.manifest.answer.type == "tensor" else None
        answer = await self._reception.answer(arrival, resolved, inputs, outputs=names)

        def render() -> InferAnswer:
            ids = sign_items(answer, self._prediction_ids) if self._prediction_ids is not None else []
            return render_infer(answer, servable, wanted, content.id, ids)

        rendered = await render_aside(count_work(answer, wanted), render)
        return await _respond(rendered, headers.get(b"accept-encoding", b""), server_timing(arrival.context))


def _ref_of(request: Request) -> ModelRef:
    name, version = request.path_params["name"], request.path_params.get("version")
    try:
        return ModelRef.parse(f"{name}@{version}" if version is not None else name)
    except ValueError as exc:
        raise InvalidContent(f"the path names no model: {exc}") from exc


def _read_length(request: Request) -> bytes:
    """Raises InvalidContent where the header is sent twice and does not say the same."""
    found: set[bytes] = {value.strip(b" \t") for name, value in request.scope["headers"] if name == LENGTH_HEADER}
    if len(found) > 1:
        raise InvalidContent("Inference-Header-Content-Length is sent twice, with different values; send it once")
    return found.pop()


def _peek(request: Request, _: bytes) -> tuple[ModelRef | None, ContentKind]:
    return _ref_of(request), "tensor"


async def _respond(answer: InferAnswer, accepted: bytes, timing: bytes) -> Response:
    headers = [(b"server-timing", timing)]
    is_binary = answer.json_bytes is not None
    headers.append((b"content-type", b"application/octet-stream" if is_binary else b"application/json"))
    if is_binary:
        headers.append((LENGTH_HEADER, str(answer.json_bytes).encode()))
    body, more = await pack_answer(answer.body, accepted)
    response = Response()
    response.body = body
    response.raw_headers = [(b"content-length", str(len(body)).encode()), *headers, *more]
    return response


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs; as binary tensors after the JSON where the request asks for it.",
        "content": {
            "application/json": {
                "example": {
                    "model_name": "digits",
                    "model_version": "1.1.0",
                    "parameters": {"alias": "stable"},
                    "outputs": [{"name": "probabilities", "shape": [1, 10], "datatype": "FP32", "data": [0.1] * 10}],
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **{
        status: {"model": ErrorResponse, "description": description}
        for status, description in {
            400: "A tensor that the model does not take, or a request that is none",
            404: "No such model or version",
            503: "Overloaded, or the model is not ready; see Retry-After",
            504: "The deadline has passed",
        }.items()
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schema_of(InferRequest)},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
