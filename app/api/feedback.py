"""POST /feedback: the truth about answers, one at a time or many."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.application import RawRoute
from app.api.body import BodyReader
from app.api.context import context_of
from app.api.problems import explain_invalid
from app.api.schemas import ErrorResponse
from app.errors import FeedbackUnavailable, HeadwayError, MalformedRequest
from app.monitoring.feedback import Feedback, FeedbackDesk, Taken

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 1000
# Threads of their own: a database that does not answer must hold up nothing else.
_THREADS = 2
_MOST_WAITING = 64


class FeedbackItem(BaseModel):
    """What was true of one answer; at least one of label, value and rating."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(min_length=1, max_length=4096, description="As the answer had it.")
    label: str | None = Field(None, description="The true label, of a model that answers with labels.")
    value: float | None = Field(None, allow_inf_nan=False, description="The true value, of a regression.")
    rating: int | None = Field(None, ge=1, le=5, description="How content the user was, 1 to 5.")

    @model_validator(mode="after")
    def _complete(self) -> FeedbackItem:
        if self.label is None and self.value is None and self.rating is None:
            raise ValueError("send label (or value), rating, or both")
        if self.label is not None and self.value is not None:
            raise ValueError("send label or value, not both")
        return self

    def to_feedback(self) -> Feedback:
        return Feedback(self.prediction_id, self.label, self.value, self.rating)


class FeedbackBatch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    feedback: Annotated[list[FeedbackItem], Field(min_length=1, max_length=MOST_AT_ONCE)]


class FeedbackResult(BaseModel):
    """`status` is recorded, or repeated where the same was recorded before; `outcome` is there where a label was."""

    status: str = Field(examples=["recorded"])
    outcome: str | None = Field(None, examples=["correct"], description="correct or incorrect, of the first label.")
    model: str
    version: str
    alias: str | None = None


class FeedbackResponse(FeedbackResult):
    request_id: str


class FeedbackError(BaseModel):
    error: str
    code: str


class FeedbackResults(BaseModel):
    """Of many, in their order; where none is taken the status is the first error's."""

    results: list[FeedbackResult | FeedbackError]
    request_id: str


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        FeedbackItem.model_json_schema(),
                        {
                            "type": "object",
                            "required": ["feedback"],
                            "additionalProperties": False,
                            "properties": {
                                "feedback": {
                                    "type": "array",
                                    "minItems": 1,
                                    "maxItems": MOST_AT_ONCE,
                                    "items": FeedbackItem.model_json_schema(),
                                }
                            },
                        },
                    ]
                },
                "examples": {
                    "one": {"value": {"prediction_id": "AQB…", "label": "tabby", "rating": 4}},
                    "many": {"value": {"feedback": [{"prediction_id": "AQB…", "label": "tabby"}]}},
                },
            }
        },
    }
}


class FeedbackApi:
    def __init__(self, desk: FeedbackDesk, bodies: BodyReader) -> None:
        self._desk = desk
        self._bodies = bodies
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="feedback")
        self._waiting = 0

    def add_routes(self, router: APIRouter) -> None:
        refusals = {
            400: "The prediction_id was not signed here, or the label is none of the model's",
            409: "The prediction has had another feedback",
            410: "The answer is too old",
            413: "The body is too large",
            422: "The request is malformed",
            503: "The database cannot be reached; send it again",
        }
        router.add_api_route(
            "/feedback",
            self.give_feedback,
            methods=["POST"],
            tags=["quality"],
            route_class_override=RawRoute,
            response_model=FeedbackResponse | FeedbackResults,
            summary="The truth about answers",
            responses={
                status: {"model": ErrorResponse | FeedbackResults, "description": description}
                for status, description in refusals.items()
            },
            openapi_extra=_BODY,
        )

    async def give_feedback(self, request: Request) -> Response:
        """One feedback, or `{"feedback": [...]}`. Sent again it does no harm; each prediction takes one."""
        body = await self._bodies.read(request)
        items, is_plural = _parse(body)
        results = await self._take([item.to_feedback() for item in items])
        request_id = context_of(request.scope).request_id
        if not is_plural:
            (result,) = results
            if isinstance(result, HeadwayError):
                raise result
            return Response(to_json(_describe(result) | {"request_id": request_id}), media_type="application/json")
        errors = [result for result in results if isinstance(result, HeadwayError)]
        content = {"results": [_describe(result) for result in results], "request_id": request_id}
        status = errors[0].status if len(errors) == len(results) else 200
        return Response(to_json(content), status, media_type="application/json")

    def close(self) -> None:
        """Waits for what is being written."""
        self._pool.shutdown()

    async def _take(self, given: Sequence[Feedback]) -> list[Taken | HeadwayError]:
        if self._waiting >= _MOST_WAITING:
            raise FeedbackUnavailable(f"{self._waiting} requests wait for the database; send it again in a second")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._desk.take, given, time.time_ns() // 1_000_000)
        except FeedbackUnavailable as exc:
            # What it says of files and hosts is not for callers.
            logger.error("feedback is refused: %s", exc)
            raise FeedbackUnavailable("feedback cannot be kept now; send it again later") from exc
        finally:
            self._waiting -= 1


def _parse(body: bytes) -> tuple[list[FeedbackItem], bool]:
    """The items, and whether they came as a list."""
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise MalformedRequest(f"the body is not valid JSON: {exc}") from exc
    try:
        if isinstance(content, dict) and "feedback" in content:
            return FeedbackBatch.model_validate(content).feedback, True
        return [FeedbackItem.model_validate(content)], False
    except ValidationError as exc:
        example = '{"prediction_id": "…", "label": "tabby"}'
        raise MalformedRequest(explain_invalid(exc, FeedbackItem.model_fields, example)) from exc


def _describe(result: Taken | HeadwayError) -> dict[str, Any]:
    if isinstance(result, HeadwayError):
        return {"error": str(result), "code": result.code}
    outcome = None if result.is_correct is None else "correct" if result.is_correct else "incorrect"
    found = {
        "status": "repeated" if result.is_repeated else "recorded",
        "outcome": outcome,
        "model": result.model,
        "version": result.version,
        "alias": result.alias,
    }
    return {name: value for name, value in found.items() if value is not None}
