"""What the OpenAPI document says of routes that read their requests raw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel


def path_parameters(names: Iterable[str]) -> list[dict[str, Any]]:
    """For `openapi_extra`: of other routes the framework finds them in the endpoint's arguments."""
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model, what it refers to written out: where it stands, references lead nowhere."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def write_out(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return write_out(definitions[part["$ref"].rpartition("/")[2]])
            return {key: write_out(value) for key, value in part.items()}
        return [write_out(value) for value in part] if isinstance(part, list) else part

    written: dict[str, Any] = write_out(schema)
    return written
