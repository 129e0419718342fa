"""What the OpenAPI document shows for /predict: every way to send content, and every refusal."""

from __future__ import annotations

from typing import Any

from app.api.schemas import EXAMPLE_ID, ErrorResponse, PredictRequest, PredictResponse

# A 1 × 1 GIF: short enough to read, and it can be sent as it stands.
_TINY_IMAGE = "R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="
_DIGIT = [
    0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0, 0, 3, 15, 2, 0, 11, 8, 0, 0, 4, 12, 0, 0, 8, 8, 0,
    0, 5, 8, 0, 0, 9, 8, 0, 0, 4, 11, 0, 1, 12, 7, 0, 0, 2, 14, 5, 10, 12, 0, 0, 0, 0, 6, 13, 10, 0, 0, 0,
]  # fmt: skip
_QUERY = [
    {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "For a raw body."},
    {
        "name": "top_k",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1},
        "description": "For a raw body.",
    },
]

PREDICT_BODY: dict[str, Any] = {
    "parameters": [
        *_QUERY,
        {
            "name": "Headway-Timeout-Ms",
            "in": "header",
            "schema": {"type": "integer", "minimum": 1},
            "description": "Deadline of this request.",
        },
        {
            "name": "Headway-Routing-Key",
            "in": "header",
            "schema": {"type": "string"},
            "description": "Requests with the same key go to the same side of a canary.",
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": PredictRequest.model_json_schema(),
                "examples": {
                    "image": {"summary": "one image", "value": {"image": _TINY_IMAGE, "top_k": 3}},
                    "images": {"summary": "several images", "value": {"images": [_TINY_IMAGE, _TINY_IMAGE]}},
                    "text": {"summary": "one text", "value": {"text": "A warm and funny film."}},
                    "texts": {"summary": "several texts", "value": {"texts": ["A dull film.", "很好看"]}},
                    "inputs": {"summary": "numbers", "value": {"model": "digits", "inputs": [_DIGIT]}},
                },
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "model": {"type": "string"},
                        "top_k": {"type": "integer", "minimum": 1},
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "text/plain": {"schema": {"type": "string", "description": "One text, UTF-8."}},
            "application/octet-stream": {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "The tensor of the model's only input: little-endian, C order, no header. "
                    "Its datatype and shape are those of the manifest; one free size follows from the number of bytes.",
                }
            },
        },
    },
}

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The content cannot be used",
        401: "No valid API key",
        404: "No such model or version",
        408: "The body came too slowly",
        413: "The body or the image is too large",
        415: "Content-Type not taken",
        422: "The request is malformed",
        503: "Overloaded, draining or the model is not ready; see Retry-After",
        504: "Not ready before the deadline",
    }.items()
}

_SERVED = {"alias": "stable", "request_id": "3f0c6d1be2f94a3f8a3c2f6f0d9b7a55"}
_ANSWERS = {
    "image": {
        "summary": "to one image",
        "value": {
            "predictions": [{"label": "tiger cat", "index": 282, "confidence": 0.42}],
            "prediction_id": EXAMPLE_ID,
            "model": "efficientnet-lite0",
            "version": "1.1.0",
            **_SERVED,
        },
    },
    "text": {
        "summary": "to one text",
        "value": {
            "predictions": [
                {"label": "positive", "index": 1, "confidence": 0.88},
                {"label": "negative", "index": 0, "confidence": 0.12},
            ],
            "prediction_id": EXAMPLE_ID,
            "model": "sentiment",
            "version": "1.0.0",
            **_SERVED,
        },
    },
    "inputs": {
        "summary": "to several images or texts, or to rows of numbers",
        "value": {
            "results": [
                {"predictions": [{"label": "0", "index": 0, "confidence": 0.99}], "prediction_id": EXAMPLE_ID},
            ],
            "model": "digits",
            "version": "1.1.0",
            **_SERVED,
        },
    },
}

PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PredictResponse,
        "description": "The answer",
        "content": {"application/json": {"examples": _ANSWERS}},
    },
    **ERROR_RESPONSES,
}
