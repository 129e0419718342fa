"""The tree drawn in app/errors.py is the tree of the classes, and each error is rendered alike."""

from __future__ import annotations

import http
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator

import pytest

import app
from app import errors
from app.errors import HeadwayError, MethodNotAllowed, ModelNotReady, Overloaded, Unauthorized, error_headers, render


def _all_errors(base: type[HeadwayError] = HeadwayError) -> Iterator[type[HeadwayError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _all_errors(kind)


def _drawn() -> dict[str, tuple[str, str, str]]:
    """Class → (parent, status, code) of the drawing; parents by indentation of four characters."""
    found: dict[str, tuple[str, str, str]] = {}
    path = ["HeadwayError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |    )*)[├└]── (\w+)\s*(\d{3})?\s*(\w+)?", line)
        if match:
            depth = len(match[1]) // 4
            path[depth + 1 :] = [match[2]]
            found[match[2]] = (path[depth], match[3] or "", match[4] or "")
    return found


def test_drawing_is_the_tree() -> None:
    for module in pkgutil.walk_packages(app.__path__, "app."):
        if not module.name.startswith(("app.server", "app.cli.main")):
            importlib.import_module(module.name)
    drawn = _drawn()
    classes = {kind.__name__: kind for kind in _all_errors() if kind.__module__.startswith("app.")}
    assert set(drawn) == set(classes)
    for name, (parent, status, code) in drawn.items():
        kind = classes[name]
        assert kind.__base__ is not None
        assert kind.__base__.__name__ == parent, name
        assert (str(kind.status), kind.code) == (status, code), name


def _known() -> list[type[HeadwayError]]:
    return [HeadwayError, *(kind for kind in _all_errors() if kind.__module__ == "app.errors")]


@pytest.mark.parametrize("kind", _known(), ids=lambda kind: kind.__name__)
def test_error_has_a_status_a_code_and_a_grpc_status(kind: type[HeadwayError]) -> None:
    assert kind.status == 499 or http.HTTPStatus(kind.status) >= 400
    assert re.fullmatch(r"[a-z_]+", kind.code)
    assert re.fullmatch(r"[A-Z_]+", kind.grpc)


def test_codes_have_one_status_each() -> None:
    by_code: dict[str, set[int]] = {}
    for kind in _known():
        by_code.setdefault(kind.code, set()).add(kind.status)
    assert {code: statuses for code, statuses in by_code.items() if len(statuses) > 1} == {}


def test_render() -> None:
    body = json.loads(render(Overloaded('say "grün"\n'), "id-1"))
    assert body == {"error": 'say "grün"\n', "code": "overloaded", "request_id": "id-1"}


def test_error_headers() -> None:
    assert error_headers(ModelNotReady("x")) == [("content-type", "application/json"), ("retry-after", "1")]
    assert ("retry-after", "3") in error_headers(Overloaded("x", 2.5))
    assert ("www-authenticate", 'Bearer realm="headway"') in error_headers(Unauthorized("x"))
    assert ("allow", "GET, HEAD") in error_headers(MethodNotAllowed("x", "GET, HEAD"))


def test_one_refusal_in_eight_closes_its_connection() -> None:
    """So that a caller who stays is dealt anew; to close each costs more than the refusal."""
    closed = sum(("connection", "close") in error_headers(Overloaded("full")) for _ in range(4000))
    assert 350 < closed < 650
