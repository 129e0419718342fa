"""ModelInfer: a message to what the engine takes, and its answer to a message.

Answers carry their tensors as raw bytes, whatever the request had: clients read nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from app.api.json_arrays import render_aside
from app.api.open_inference.answer import count_work, describe_answer, rank_classes
from app.api.open_inference.request import (
    SHARED_MEMORY,
    InferContent,
    RequestedOutput,
    Wanted,
    read_outputs,
    read_parameters,
)
from app.api.open_inference_grpc.calls import Incoming
from app.api.open_inference_grpc.raw_contents import parse_request
from app.api.open_inference_grpc.stubs.open_inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from app.api.prediction_ids import sign_items
from app.api.reception import Reception
from app.engine.call import Answer
from app.errors import HeadwayError, InvalidContent, InvalidTensor
from app.monitoring.prediction_id import PredictionIds
from app.processing.tensor import array_from_json
from app.processing.tensor_bytes import array_from_bytes, array_to_bytes
from app.registry.servables.servable import Servable
from app.registry.versions import ModelRef
from app.tensors import DATATYPES, Array, TensorSpec

PROTOCOL = "v2_grpc"
# The field of InferTensorContents that holds a datatype; FP16 has none.
_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# As over HTTP.
_MAX_NAME, _MAX_TENSORS, _MAX_DIMENSIONS = 256, 256, 32


class GrpcInfer:
    """Without `prediction_ids` answers have none."""

    def __init__(self, reception: Reception, prediction_ids: PredictionIds | None, max_items: int) -> None:
        self._reception = reception
        self._prediction_ids = prediction_ids
        self._max_items = max_items

    async def infer(self, incoming: Incoming) -> bytes:
        reply: bytes = (await self._infer(incoming)).SerializeToString()
        return reply

    async def infer_of_stream(self, incoming: Incoming) -> bytes:
        reply: bytes = ModelStreamInferResponse(infer_response=await self._infer(incoming)).SerializeToString()
        return reply

    async def _infer(self, incoming: Incoming) -> ModelInferResponse:
        context = incoming.context
        context.protocol = PROTOCOL
        request, raw = parse_request(incoming.message)
        ref = read_ref(request.model_name, request.model_version)
        arrival = self._reception.admit(context, ref, "tensor", seconds=incoming.seconds)
        content = read_message(request, raw)
        arrival.shorten(content.timeout_ms)
        arrival.routing_key = content.routing_key or arrival.routing_key
        resolved = await self._reception.resolve(ref, "tensor", arrival)
        servable = resolved.servable
        wanted = content.outputs_for(servable)
        inputs = content.inputs_for(servable, self._max_items)
        # Labels, which prediction ids are made of, come with all outputs.
        names = tuple(one.name for one in wanted) if servable.manifest.answer.type == "tensor" else None
        answer = await self._reception.answer(arrival, resolved, inputs, outputs=names)

        def render() -> ModelInferResponse:
            ids = sign_items(answer, self._prediction_ids) if self._prediction_ids is not None else []
            return _render(answer, servable, wanted, request.id, ids)

        return await render_aside(count_work(answer, wanted), render)


def explain_in_stream(message: bytes, error: HeadwayError) -> bytes:
    """An error as the answer to one message of a stream, with the id of that message where it has one."""
    reply = ModelStreamInferResponse(error_message=str(error))
    with contextlib.suppress(DecodeError):
        reply.infer_response.id = ModelInferRequest.FromString(message).id
    explained: bytes = reply.SerializeToString()
    return explained


def read_ref(name: str, version: str) -> ModelRef:
    """The model of a request; `version` is a version, an alias or empty. Raises InvalidContent."""
    try:
        return ModelRef.parse(f"{name}@{version}" if version else name)
    except ValueError as exc:
        raise InvalidContent(f"the request names no model: {exc}") from exc


def read_message(request: ModelInferRequest, raw: Sequence[memoryview]) -> InferContent:
    """`raw` are its raw contents. Raises InvalidContent and its kin, with the name of the tensor."""
    content = InferContent(id=request.id or None, is_binary=True)
    content.tensors = _read_inputs(request.inputs, raw)
    if len(request.outputs) > _MAX_TENSORS:
        raise InvalidContent(f"{len(request.outputs):,} outputs are asked for; ask for at most {_MAX_TENSORS}")
    outputs = [
        RequestedOutput.model_construct(name=_check_name(one.name), parameters=_read_parameters(one.parameters))
        for one in request.outputs
    ]
    content.outputs = read_outputs(outputs, True)
    read_parameters(content, _read_parameters(request.parameters))
    return content


def _read_inputs(inputs: Sequence[Any], raw: Sequence[memoryview]) -> dict[str, tuple[TensorSpec, Array]]:
    if not 1 <= len(inputs) <= _MAX_TENSORS:
        raise InvalidContent(f"the request has {len(inputs):,} inputs; send 1 to {_MAX_TENSORS}")
    if raw and len(raw) != len(inputs):
        raise InvalidContent(f"there are {len(inputs)} inputs and {len(raw)} raw_input_contents; send one for each")
    found: dict[str, tuple[TensorSpec, Array]] = {}
    for position, tensor in enumerate(inputs):
        spec = _read_spec(tensor)
        if spec.name in found:
            raise InvalidTensor(f"input {spec.name!r} stands twice; send each once")
        if raw and tensor.contents.ByteSize():
            raise InvalidTensor(f"input {spec.name!r} has contents beside raw_input_contents; send one of them")
        if raw:
            found[spec.name] = spec, array_from_bytes(raw[position], spec)
        else:
            found[spec.name] = spec, _read_contents(tensor, spec)
    return found


def _read_spec(tensor: Any) -> TensorSpec:
    name, datatype, shape = _check_name(tensor.name), tensor.datatype, tuple(tensor.shape)
    if datatype not in DATATYPES:
        raise InvalidTensor(f"input {name!r} is of datatype {datatype[:40]!r}, which is none of {', '.join(DATATYPES)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise InvalidTensor(f"input {name!r} has {len(shape):,} dimensions; at most {_MAX_DIMENSIONS} are taken")
    if any(size < 0 for size in shape):
        raise InvalidTensor(f"input {name!r} says shape {list(shape)}; sizes are not negative")
    if SHARED_MEMORY in tensor.parameters:
        raise InvalidTensor(f"input {name!r} is in shared memory, which is not read here; send its contents")
    return TensorSpec(name, datatype, shape)


def _read_contents(tensor: Any, spec: TensorSpec) -> Array:
    """Typed contents, in the field of their datatype."""
    if not tensor.HasField("contents"):
        raise InvalidTensor(f"input {spec.name!r} has no contents; send raw_input_contents, or contents")
    wanted = _FIELDS.get(spec.datatype)
    if wanted is None:
        raise InvalidTensor(f"input {spec.name!r} is {spec.datatype}, which has no contents; send raw_input_contents")
    for field, _ in tensor.contents.ListFields():
        if field.name != wanted:
            raise InvalidTensor(f"input {spec.name!r} is {spec.datatype} and has {field.name}; send {wanted}")
    return array_from_json(list(getattr(tensor.contents, wanted)), spec, takes_not_finite=True)


def read_choices(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The values of parameters; None of one that has none."""
    choices = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], choice) if choice is not None else None for name, choice in choices.items()}


def _read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in read_choices(parameters).items() if value is not None}


def _check_name(name: str) -> str:
    if len(name) > _MAX_NAME:
        raise InvalidContent(f"the name {name[:40]!r}… has {len(name):,} characters; at most {_MAX_NAME} are taken")
    return name


def _render(
    answer: Answer, servable: Servable, outputs: Sequence[Wanted], request_id: str, prediction_ids: Sequence[str | None]
) -> ModelInferResponse:
    datatypes = {spec.name: spec.datatype for spec in servable.manifest.output_specs}
    reply = ModelInferResponse(model_name=answer.model, model_version=answer.version, id=request_id)
    tensors = answer.tensors or {}
    for wanted in outputs:
        array, datatype = tensors[wanted.name], datatypes[wanted.name]
        if wanted.classes:
            array, datatype = rank_classes(array, wanted, servable), "BYTES"
        reply.outputs.add(name=wanted.name, datatype=datatype, shape=array.shape)
        reply.raw_output_contents.append(bytes(array_to_bytes(array)))
    for name, value in describe_answer(answer, prediction_ids, not_finite=False).items():
        reply.parameters[name].string_param = value
    return reply
