"""Which model a body is for, guessed without parsing it: a refusal must cost less than the work it refuses."""

from __future__ import annotations

import re

from starlette.datastructures import QueryParams

from app.registry.servables.servable import ContentKind
from app.registry.versions import ModelRef

# A photo fills the middle of a JSON body; the short keys stand before or after it.
_EDGE_BYTES = 400
_KINDS: tuple[tuple[re.Pattern[bytes], ContentKind], ...] = (
    (re.compile(rb'"inputs"\s*:'), "tensor"),
    (re.compile(rb'"texts?"\s*:'), "text"),
)
_MODEL = re.compile(rb'"model"\s*:\s*"([A-Za-z0-9._@+-]{1,130})"')


def peek_json(body: bytes) -> tuple[ModelRef | None, ContentKind]:
    """The reference and the kind of content that a JSON body seems to have; wrong at worst for odd bodies."""
    head, tail = body[:_EDGE_BYTES], body[-_EDGE_BYTES:]
    found = _MODEL.search(head) or _MODEL.search(tail)
    kinds = (kind for key, kind in _KINDS if key.search(head) or key.search(tail))
    return (_parse(found[1].decode("ascii")) if found else None), next(kinds, "image")


def peek_query(query: QueryParams) -> ModelRef | None:
    return _parse(query.get("model", ""))


def _parse(text: str) -> ModelRef | None:
    try:
        return ModelRef.parse(text)
    except ValueError:
        return None
