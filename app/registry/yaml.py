"""YAML as a configuration wants it: every scalar a string (so `1.10` stays 1.10 and `no` stays no), no tags.

Typing is pydantic's work. `null`, `~` and an empty value are the one exception. Duplicate keys, anchors and tags are
refused. Built from the parser's events: PyYAML's C loader composes by recursion in C, without a limit and without
asking an override (900,000 opening brackets end the process).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from app.errors import RegistryError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is eight times faster
_Model = TypeVar("_Model", bound=BaseModel)

MAX_FILE_BYTES = 1_000_000
MAX_DEPTH = 32
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


def read_yaml(path: Path, model: type[_Model]) -> _Model:
    """Read and validate one file. Raises RegistryError with the file, the field and the fix."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise RegistryError(f"{path}: cannot be read ({exc.strerror}); check that it exists and its rights") from exc
    return parse_yaml(data, path, model)


def parse_yaml(data: bytes, path: Path, model: type[_Model]) -> _Model:
    """Validate what was read from `path`. Raises RegistryError as `read_yaml` does."""
    if len(data) > MAX_FILE_BYTES:
        raise RegistryError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; this cannot be a {path.name}")
    try:
        loaded = _construct(data)
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise RegistryError(f"{path}: is not valid YAML ({_one_line(exc)})") from exc
    if not isinstance(loaded, dict):
        raise RegistryError(f"{path}: must hold a mapping of keys to values")
    try:
        return model.model_validate(loaded)
    except ValidationError as exc:
        raise RegistryError(f"{path}: {describe_validation_error(exc, model, loaded)}") from exc


def _construct(data: bytes) -> Any:
    """The one document of `data` as dicts, lists, strings and None. Raises YAMLError."""
    top: list[Any] = []
    open_nodes: list[list[Any] | _Mapping] = [top]
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.NodeEvent):
            _check_node(event, len(open_nodes))
        if isinstance(event, yaml.ScalarEvent):
            is_null = event.implicit[0] and event.value in _NULLS  # implicit[0]: written without quotes
            _add(open_nodes[-1], None if is_null else event.value, event)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append(_Mapping() if isinstance(event, yaml.MappingStartEvent) else [])
        elif isinstance(event, yaml.CollectionEndEvent):
            node = open_nodes.pop()
            _add(open_nodes[-1], node.content if isinstance(node, _Mapping) else node, event)
    if len(top) > 1:
        raise yaml.YAMLError("holds more than one document")
    return top[0] if top else None


class _Mapping:
    """A mapping in the making: a key waits for its value."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self.key: str | None = None


def _add(node: list[Any] | _Mapping, value: Any, event: Any) -> None:
    if isinstance(node, list):
        node.append(value)
    elif node.key is not None:
        node.content[node.key], node.key = value, None
    elif not isinstance(value, str):
        raise _refusal("a key must be text", event)
    elif value in node.content:
        raise _refusal(f"the key {value!r} stands twice", event)
    else:
        node.key = value


def _check_node(event: Any, depth: int) -> None:
    if event.anchor is not None:
        raise _refusal("anchors and aliases are not allowed", event)
    if getattr(event, "tag", None) is not None:
        raise _refusal(f"the tag {event.tag!r} is not allowed; write the value alone", event)
    if depth > MAX_DEPTH:
        raise _refusal(f"is nested more than {MAX_DEPTH} deep", event)


def _refusal(what: str, event: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, event.start_mark)


def describe_validation_error(error: ValidationError, model: type[BaseModel], loaded: Any) -> str:
    """The problems of a validation in one line: `field: what is wrong and what to do; field: …`."""
    # A misspelt key comes before the key that is missing because of it.
    problems = sorted(
        error.errors(include_url=False, include_context=True), key=lambda problem: problem["type"] != "extra_forbidden"
    )
    lines = [
        f"{_field(problem['loc'], loaded, problem['type'])}: {_problem(dict(problem), model)}"
        for problem in problems[:5]
    ]
    if len(problems) > 5:
        lines.append(f"and {len(problems) - 5} more")
    return "; ".join(lines)


def _field(loc: tuple[int | str, ...], loaded: Any, kind: str) -> str:
    text, here = "", loaded
    for position, part in enumerate(loc):
        if kind != "missing" or position < len(loc) - 1:
            try:
                here = here[part]
            except (LookupError, TypeError):
                continue  # pydantic's name for a member of a union, not a key of the file
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
    if isinstance(value, dict | list) or kind == "value_error":
        return message
    says = repr(value)
    return f"{message} (it says {says if len(says) <= 80 else says[:80] + '…'})"


def _field_names(model: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for definition in [model.model_json_schema(), *model.model_json_schema().get("$defs", {}).values()]:
        names += definition.get("properties", {})
    return names


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())
