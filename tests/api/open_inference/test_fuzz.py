"""Good requests with a few things made wrong: each is answered, or refused with a 4xx that says what is wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

import httpx
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.open_inference.request import InferContent, read_request
from app.errors import HeadwayError
from tests.infer_wire import LENGTH, Wire, make_request, read_answer, texts

GOOD: dict[str, dict[str, np.ndarray]] = {
    "three": {
        "number": np.arange(3, dtype="<i4"),
        "flag": np.array([True, False, True]),
        "text": texts(b"a", b"", b"b"),
    },
    "pair": {"a": np.ones((2, 2), "<f4"), "b": np.zeros((2, 2), "<f4")},
    "same-fp16": {"x": np.ones((1, 3), "<f2")},
    "one-row": {"x": np.ones((2, 3), "<f4")},
    "scores": {"x": np.eye(3, dtype="<f4")},
    "shades": {"image": np.zeros((1, 4, 4, 3), "u1")},
    "double": {"x": np.array(1, "<f4")},
}
REST: dict[str, Any] = {
    "id": "7",
    "parameters": {"binary_data_output": True, "timeout": 10**7, "routing_key": "k"},
    "outputs": [{"name": "total", "parameters": {"binary_data": False, "classification": 1}}, {"name": "difference"}],
}
ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 2**31, 2**53 + 1, 2**63, 2**64, 10**12, 10**400, 1.0, 1e308, "", "1", "NaN", "FP64"]),
    st.sampled_from(["BYTES", "BOOL", "x", "y", "a", "number", [], {}, [[]], [0, 10**12], [-1], [1] * 40, [None]]),
    st.floats(),
    st.text(max_size=5),
    st.recursive(st.integers() | st.text(max_size=2), lambda inner: st.lists(inner, max_size=3), max_leaves=6),
)


def paths(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, part in inside for found in [(*before, key), *paths(part, (*before, key))]]


@st.composite
def spoilt(draw: st.DrawFn, model: str) -> Wire:
    inputs = GOOD[model]
    rest = REST if model == "pair" else {"parameters": {"binary_data_output": draw(st.booleans())}}
    wire = make_request(inputs, binary=draw(st.lists(st.sampled_from(sorted(inputs)), unique=True)), **rest)
    length = int(wire.headers.get(LENGTH, len(wire.content)))
    tree = spoil_tree(draw, json.loads(wire.content[:length]))
    head = json.dumps(tree).encode()
    content = bytearray(head + wire.content[length:])
    headers = {LENGTH: str(len(head))} if wire.headers else {}
    if draw(st.integers(0, 3)) == 0:
        content, headers = spoil_bytes(draw, content, headers)
    return Wire(bytes(content), headers)


def spoil_tree(draw: st.DrawFn, tree: Any) -> Any:
    """Up to three parts of it are left out, doubled, or something else."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(0, 3))):
        ways = paths(tree)
        if not ways:
            return tree
        *way, last = draw(st.sampled_from(ways))
        place = tree
        for key in way:
            place = place[key]
        match draw(st.integers(0, 3)):
            case 0:
                del place[last]
            case 1 if isinstance(place, list):
                place.append(copy.deepcopy(place[last]))
            case _:
                place[last] = copy.deepcopy(draw(ODD_VALUES))
    return tree


def spoil_bytes(draw: st.DrawFn, content: bytearray, headers: dict[str, str]) -> tuple[bytearray, dict[str, str]]:
    match draw(st.integers(0, 3)):
        case 0:
            return content[: draw(st.integers(0, len(content)))], headers
        case 1:
            return content + draw(st.binary(max_size=9)), headers
        case 2:
            return content, {LENGTH: str(draw(st.integers(-1, len(content) + 1)))}
        case _:
            for _ in range(3):
                content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
            return content, headers


def read(body: bytes, length: str | None) -> InferContent | HeadwayError:
    try:
        return read_request(body, None if length is None else length.encode())
    except HeadwayError as error:
        return error


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(GOOD)).flatmap(spoilt))
def test_spoilt_request_is_read_or_refused(wire: Wire) -> None:
    content = read(wire.content, wire.headers.get(LENGTH))
    if isinstance(content, HeadwayError):
        assert 400 <= content.status < 500
        assert str(content)
        return
    for spec, array in content.tensors.values():
        assert array.shape == spec.shape
        assert array.nbytes <= 16 * len(wire.content)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(-1, 210))
def test_any_bytes_are_read_or_refused(body: bytes, length: int | None) -> None:
    content = read(body, None if length is None else str(length))
    assert not isinstance(content, HeadwayError) or 400 <= content.status < 500


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_spoilt_request_is_answered_or_refused_by_the_server(odd: httpx.Client, data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(sorted(GOOD)))
    wire = data.draw(spoilt(model))
    answer = odd.post(f"/v2/models/{model}/infer", content=wire.content, headers=wire.headers)
    if answer.status_code == 200:
        read_answer(answer)
    else:
        assert 400 <= answer.status_code < 500 or answer.json()["code"] == "deadline_exceeded", answer.text
        assert answer.json()["error"]
