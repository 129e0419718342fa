"""The description of the protocol, held against that of a client which other servers' users have."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from app.api.open_inference_grpc.pool import POOL
from app.api.open_inference_grpc.stubs import health_pb2, open_inference_pb2, reflection_pb2
from app.errors import HeadwayError
from tests.running import ROOT

OURS = open_inference_pb2.DESCRIPTOR
STUBS = ROOT / "app" / "api" / "open_inference_grpc" / "stubs"


def _theirs(name: str) -> Any:
    for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
        if name in file.message_types_by_name:
            return file.message_types_by_name[name]
    raise AssertionError(f"{name} is in no description of theirs")


def _describe(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    return field.name, field.number, field.type, field.is_repeated, kind and kind.full_name


def _check_message(ours: Any, theirs: Any) -> None:
    known = {_describe(field) for field in theirs.fields}
    assert {_describe(field) for field in ours.fields} <= known, ours.full_name
    for nested in ours.nested_types:
        _check_message(nested, theirs.nested_types_by_name[nested.name])


def test_every_field_is_on_the_wire_what_clients_take_it_for() -> None:
    assert len(OURS.message_types_by_name) > 30
    for name, message in OURS.message_types_by_name.items():
        _check_message(message, _theirs(name))


def test_every_datatype_of_a_configuration_has_the_number_that_clients_know() -> None:
    theirs = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"]
    ours = OURS.enum_types_by_name["DataType"]
    assert {value.name: value.number for value in ours.values} == {value.name: value.number for value in theirs.values}


def test_every_call_has_the_messages_of_the_client() -> None:
    (service,) = OURS.services_by_name.values()
    theirs = service_pb2.DESCRIPTOR.services_by_name[service.name]
    assert service.full_name == theirs.full_name
    for method in service.methods:
        other = theirs.methods_by_name[method.name]
        assert (method.input_type.full_name, method.output_type.full_name, method.client_streaming) == (
            other.input_type.full_name,
            other.output_type.full_name,
            other.client_streaming,
        )


@pytest.mark.parametrize("source", sorted((ROOT / "protocol").glob("*.proto")), ids=lambda path: path.name)
def test_stubs_are_those_of_the_description(source: Path) -> None:
    """Where this fails: `make stubs`."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    for kind in ("py", "pyi"):
        first = (STUBS / f"{source.stem}_pb2.{kind}").read_text().splitlines()[0]
        assert first == f"# Made by `make stubs` from protocol/{source.name}, SHA-256 {digest}."


def test_messages_live_beside_those_of_a_client_in_one_process() -> None:
    """Both have the same names; in one pool the second import would fail."""
    for module in (open_inference_pb2, health_pb2, reflection_pb2):
        assert module.DESCRIPTOR.pool is POOL
    ours, theirs = open_inference_pb2.ModelInferRequest, service_pb2.ModelInferRequest
    assert ours.DESCRIPTOR.full_name == theirs.DESCRIPTOR.full_name
    assert ours.FromString(theirs(id="7").SerializeToString()).id == "7"


def _errors(kind: type[HeadwayError] = HeadwayError) -> list[type[HeadwayError]]:
    return [kind, *(found for each in kind.__subclasses__() for found in _errors(each))]


@pytest.mark.parametrize("kind", _errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_that_fits_its_http_status_p16(kind: type[HeadwayError]) -> None:
    fitting = {
        400: {"INVALID_ARGUMENT"},
        401: {"UNAUTHENTICATED"},
        403: {"PERMISSION_DENIED"},
        404: {"NOT_FOUND", "UNIMPLEMENTED"},
        405: {"UNIMPLEMENTED"},
        408: {"DEADLINE_EXCEEDED"},
        409: {"FAILED_PRECONDITION", "ABORTED", "ALREADY_EXISTS"},
        410: {"FAILED_PRECONDITION"},
        413: {"INVALID_ARGUMENT"},
        415: {"INVALID_ARGUMENT"},
        422: {"INVALID_ARGUMENT"},
        429: {"RESOURCE_EXHAUSTED"},
        431: {"INVALID_ARGUMENT"},
        499: {"CANCELLED"},
        500: {"INTERNAL"},
        501: {"UNIMPLEMENTED"},
        503: {"UNAVAILABLE", "FAILED_PRECONDITION"},
        504: {"DEADLINE_EXCEEDED"},
        507: {"RESOURCE_EXHAUSTED"},
    }
    assert kind.grpc in fitting[kind.status]
    assert grpc.StatusCode[kind.grpc]
