"""What balancers, kubelets and grpcurl ask."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from app.api.open_inference_grpc.stubs.health_pb2 import HealthCheckRequest, HealthCheckResponse
from app.api.open_inference_grpc.stubs.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from tests.running import PATIENCE_SECONDS

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
INFERENCE = "inference.GRPCInferenceService"


def check(channel: Any, service: str) -> Any:
    call = channel.unary_unary(CHECK, HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString)
    return call(HealthCheckRequest(service=service), timeout=PATIENCE_SECONDS).status


def watch(channel: Any, service: str = "") -> Any:
    call = channel.unary_stream(WATCH, HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString)
    return call(HealthCheckRequest(service=service), timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("service", ["", INFERENCE])
def test_the_server_is_serving_p17(channel: Any, service: str) -> None:
    assert check(channel, service) == HealthCheckResponse.SERVING


def test_an_unknown_service_p17(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watching = watch(channel, "nothing")
    assert next(watching).status == HealthCheckResponse.SERVICE_UNKNOWN
    watching.cancel()


def reflect(channel: Any, version: str, **asked: Any) -> Any:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        ServerReflectionRequest.SerializeToString,
        ServerReflectionResponse.FromString,
    )
    (answer,) = call(iter([ServerReflectionRequest(**asked)]), timeout=PATIENCE_SECONDS)
    return answer


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_tells_services_and_their_messages_p17(channel: Any, version: str) -> None:
    listed = reflect(channel, version, list_services="*").list_services_response.service
    assert {INFERENCE, "grpc.health.v1.Health"} <= {one.name for one in listed}
    for asked in ({"file_containing_symbol": INFERENCE}, {"file_by_filename": "open_inference.proto"}):
        (content,) = reflect(channel, version, **asked).file_descriptor_response.file_descriptor_proto
        file = FileDescriptorProto.FromString(content)
        assert file.package == "inference"
        assert "ModelInfer" in [method.name for method in file.service[0].method]
    for asked in ({"file_containing_symbol": "a.B"}, {"file_by_filename": "x"}, {"all_extension_numbers_of_type": "y"}):
        assert reflect(channel, version, **asked).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
