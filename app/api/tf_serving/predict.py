"""POST /v1/models/{name}[/versions/{version}|/labels/{label}]:predict, and the verbs that there are not."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.application import RawRoute
from app.api.compression import pack_answer
from app.api.examples import ERROR_RESPONSES
from app.api.json_arrays import render_aside
from app.api.openapi import schema_of
from app.api.prediction_ids import sign_items
from app.api.reception import Arrival, Reception, server_timing
from app.api.tf_serving.answer import render_predict
from app.api.tf_serving.request import SIGNATURE, ServingRequest, read_predict
from app.api.tf_serving.versions import ServingVersions
from app.engine.call import Answer
from app.errors import InvalidContent, MethodNotAllowed
from app.monitoring.prediction_id import PredictionIds
from app.registry.servables.servable import ContentKind
from app.registry.versions import ModelRef

PROTOCOL = "tf_serving"
SUBJECTS = ("/v1/models/{name}", "/v1/models/{name}/versions/{version}", "/v1/models/{name}/labels/{label}")
# Of answers: what their body has no place for.
VERSION_HEADER, ALIAS_HEADER, IDS_HEADER = "headway-model-version", "headway-model-alias", "headway-prediction-id"
SERVING_HEADERS = (VERSION_HEADER, ALIAS_HEADER, IDS_HEADER)
_SIGNATURE_VERBS = ("classify", "regress")
# Proxies and clients have room for a few KiB of headers (nginx: 4 KiB of all of them, unless told otherwise).
_MOST_ID_BYTES = 3000
# What no id is shorter than: more rows than fit are not signed for nothing.
_LEAST_ID_BYTES = 48


class ServingPredictApi:
    """Without `prediction_ids` answers have none."""

    def __init__(
        self, reception: Reception, versions: ServingVersions, prediction_ids: PredictionIds | None, max_items: int
    ) -> None:
        self._reception = reception
        self._versions = versions
        self._prediction_ids = prediction_ids
        self._max_items = max_items

    def add_routes(self, router: APIRouter) -> None:
        for subject in SUBJECTS:
            router.add_api_route(
                f"{subject}:predict",
                self.predict,
                methods=["POST"],
                tags=["TensorFlow Serving"],
                route_class_override=RawRoute,
                summary="Rows or columns of tensors in JSON",
                responses=_RESPONSES,
                openapi_extra=_BODY,
            )
            for method, endpoint in (("POST", self.refuse_verb), ("GET", self.refuse_method)):
                router.add_api_route(
                    f"{subject}:{{verb}}",
                    endpoint,
                    methods=[method],
                    route_class_override=RawRoute,
                    include_in_schema=False,
                )

    async def predict(self, request: Request) -> Response:
        """`instances` in, `predictions` out; `inputs` in, `outputs` out."""
        arrival, body = await self._reception.receive(request, PROTOCOL, self._peek, takes_compressed=True)
        content = read_predict(body)
        resolved = await self._reception.resolve(self._versions.parse(request.path_params), "tensor", arrival)
        servable = resolved.servable
        answer = await self._reception.answer(arrival, resolved, content.inputs_for(servable, self._max_items))
        headers = self._headers(answer, arrival)
        values = sum(array.size for array in (answer.tensors or {}).values())
        rendered = await render_aside(values, partial(render_predict, answer, servable, content.rows))
        packed, more = await pack_answer(rendered, arrival.context.headers.get(b"accept-encoding", b""))
        response = Response()
        response.body = packed
        response.raw_headers = [(b"content-length", str(len(packed)).encode()), *headers, *more]
        return response

    async def refuse_verb(self, request: Request) -> Response:
        verb = request.path_params["verb"]
        if verb in _SIGNATURE_VERBS:
            raise InvalidContent(f"no model has a signature for {verb}; {SIGNATURE} is for predict, send :predict")
        raise InvalidContent(f"there is no :{verb[:40]}; send :predict")

    async def refuse_method(self, request: Request) -> Response:
        path, method = request.scope["path"], request.scope["method"]
        raise MethodNotAllowed(f"{path} does not take {method}; use POST", "POST")

    def _peek(self, request: Request, _: bytes) -> tuple[ModelRef | None, ContentKind]:
        return self._versions.parse(request.path_params), "tensor"

    def _headers(self, answer: Answer, arrival: Arrival) -> list[tuple[bytes, bytes]]:
        """What has no place in the body, which holds the answer and nothing else."""
        headers = [
            (b"content-type", b"application/json"),
            (b"server-timing", server_timing(arrival.context)),
            (VERSION_HEADER.encode(), answer.version.encode()),
        ]
        if answer.alias is not None:
            headers.append((ALIAS_HEADER.encode(), answer.alias.encode()))
        if self._prediction_ids is not None and len(answer.items or ()) * _LEAST_ID_BYTES <= _MOST_ID_BYTES:
            signed = [one for one in sign_items(answer, self._prediction_ids) if one is not None]
            ids = ",".join(signed).encode()
            if 0 < len(ids) <= _MOST_ID_BYTES:
                headers.append((IDS_HEADER.encode(), ids))
        return headers


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs in the format of the request; of one output without its name.",
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "examples": {
                    "instances": {"summary": "rows", "value": {"predictions": [3.5, 4.0, 5.5]}},
                    "inputs": {"summary": "columns", "value": {"outputs": {"total": [3.5], "is_large": [False]}}},
                },
            }
        },
    },
    **ERROR_RESPONSES,
}
_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(ServingRequest)}}}
}
