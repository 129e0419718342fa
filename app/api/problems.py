"""What is wrong with a JSON body, in one sentence that names the field."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError


def explain_invalid(error: ValidationError, keys: Iterable[str], example: str) -> str:
    """The first problem; `keys` are those that the body may have, `example` is one that is valid."""
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "json_invalid":
        return f"the body is not valid JSON: {message.removeprefix('Invalid JSON: ')}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {field!r}; the keys are {', '.join(keys)}"
    if problem["type"] == "model_type":
        return f"{field or 'the body'} must be a JSON object, as {'in ' if field else ''}{example}"
    return f"{field}: {message[:1].lower()}{message[1:]}" if field else message
