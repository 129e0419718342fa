"""Server reflection: grpcurl and its like learn the services and messages from the server itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]

from app.api.open_inference_grpc.calls import parse
from app.api.open_inference_grpc.pool import POOL
from app.api.open_inference_grpc.stubs.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse


def reflect(services: Sequence[str]) -> Any:
    """A handler of ServerReflectionInfo over the services of these names."""

    async def handle(_: Any, call: Any) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            await call.write(_answer(await parse(ServerReflectionRequest, message, call), services))

    return grpc.stream_stream_rpc_method_handler(handle)


def _answer(request: ServerReflectionRequest, services: Sequence[str]) -> bytes:
    reply = ServerReflectionResponse(valid_host=request.host, original_request=request)
    asked = request.WhichOneof("message_request")
    try:
        if asked == "list_services":
            for name in services:
                reply.list_services_response.service.add(name=name)
        elif asked == "file_by_filename":
            _add_file(reply, POOL.FindFileByName(request.file_by_filename))
        elif asked == "file_containing_symbol":
            _add_file(reply, POOL.FindFileContainingSymbol(request.file_containing_symbol))
        else:
            raise KeyError("no message of ours has extensions")
    except KeyError:
        reply.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
        reply.error_response.error_message = "not found"
    answer: bytes = reply.SerializeToString()
    return answer


def _add_file(reply: ServerReflectionResponse, file: Any) -> None:
    """None of our files imports another."""
    reply.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
