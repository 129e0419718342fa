"""Schemas of bodies that are read raw, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


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
