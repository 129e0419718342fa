"""YAML as a configuration wants it: every scalar a string (so `1.10` stays 1.10 and `no` stays no), no tags.

Typing is pydantic's work. `null` and `~` are the one exception. Duplicate keys are refused.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from app.errors import RegistryError

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is eight times faster
_Model = TypeVar("_Model", bound=BaseModel)

MAX_FILE_BYTES = 1_000_000


class _StringLoader(_Base):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {
        key: [(tag, regexp) for tag, regexp in resolvers if tag == "tag:yaml.org,2002:null"]
        for key, resolvers in _Base.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path, model: type[_Model]) -> _Model:
    """Read and validate one file. Raises RegistryError with the file, the field and the fix."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise RegistryError(f"{path}: cannot be read ({exc.strerror}); check that it exists and its rights") from exc
    if len(data) > MAX_FILE_BYTES:
        raise RegistryError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; this cannot be a {path.name}")
    try:
        loaded = yaml.load(data, Loader=_StringLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        raise RegistryError(f"{path}: is not valid YAML ({_one_line(exc)})") from exc
    if not isinstance(loaded, dict):
        raise RegistryError(f"{path}: must hold a mapping of keys to values")
    try:
        return model.model_validate(loaded)
    except ValidationError as exc:
        raise RegistryError(f"{path}: {describe_validation_error(exc, model)}") from exc


def describe_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """The problems of a validation in one line: `field: what is wrong and what to do; field: …`."""
    problems = error.errors(include_url=False, include_context=True)
    lines = [f"{_field(problem['loc'])}: {_problem(dict(problem), model)}" for problem in problems[:5]]
    if len(problems) > 5:
        lines.append(f"and {len(problems) - 5} more")
    return "; ".join(lines)


def _field(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "(whole file)"


def _problem(problem: dict[str, Any], model: type[BaseModel]) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _field_names(model), n=1)
        return "unknown key; " + (f"did you mean {near[0]!r}?" if near else "remove it")
    if kind == "missing":
        return "is missing; add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = problem.get("input")
    return message if isinstance(value, dict | list) or kind == "value_error" else f"{message} (it says {value!r})"


def _field_names(model: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for definition in [model.model_json_schema(), *model.model_json_schema().get("$defs", {}).values()]:
        names += definition.get("properties", {})
    return names


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())
