"""A body of `infer` to arrays: JSON, JSON with binary tensors after it, or one tensor as the whole body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from app.api.content import decode_base64
from app.api.flags import check_flags, may_hold_flags
from app.api.problems import explain_invalid
from app.errors import BodyTooLarge, InvalidContent, InvalidImage, InvalidTensor
from app.processing.tensor import array_from_json, tensors_from_bytes
from app.processing.tensor_bytes import array_from_bytes
from app.registry.servables.servable import Content, Servable
from app.tensors import DATATYPES, Array, Tensors, TensorSpec

LENGTH_HEADER = b"inference-header-content-length"
# The parameter of a tensor that is elsewhere.
SHARED_MEMORY = "shared_memory_region"
_EXAMPLE = '{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'
Parameter = bool | int | float | str
# Whole numbers as JSON has them: no bool, no text, no 1.0.
_Size = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
# Some clients send null for what they leave out.
_Parameters = Annotated[dict[str, Any], BeforeValidator(lambda given: {} if given is None else given)]
_LONGEST_MS = 1e12


class _Part(BaseModel):
    # What other servers take besides, ours does without.
    model_config = ConfigDict(extra="ignore")


class InputTensor(_Part):
    """`data` is flat or nested, in row-major order; parameter `binary_data_size` says that it stands after the JSON."""

    name: str = Field(max_length=256)
    shape: Annotated[list[_Size], Field(max_length=32)]
    datatype: str = Field(examples=["FP32"], max_length=16)
    parameters: _Parameters = {}
    data: Any = None


class RequestedOutput(_Part):
    """Parameters `binary_data` (a bool) and `classification` (a number of classes)."""

    name: str = Field(max_length=256)
    parameters: _Parameters = {}


class InferRequest(_Part):
    """Parameters `binary_data_output`, `timeout` (in microseconds) and `routing_key`."""

    id: str | None = Field(None, max_length=256)
    parameters: _Parameters = {}
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=256)]
    outputs: list[RequestedOutput] | None = Field(None, max_length=256)


_adapter = TypeAdapter(InferRequest)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for. `classes` 0 asks for the tensor itself."""

    name: str
    is_binary: bool = False
    classes: int = 0


@dataclass(slots=True)
class InferContent:
    """A request, not yet held against a model. `outputs` None asks for all, as `is_binary` says.

    Where the whole body is one tensor `raw` holds it, and `tensors` nothing. BYTES of JSON are in `texts`.
    """

    id: str | None = None
    tensors: dict[str, tuple[TensorSpec, Array]] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()
    outputs: tuple[Wanted, ...] | None = None
    is_binary: bool = False
    raw: bytes | None = None
    timeout_ms: float | None = None
    routing_key: bytes | None = None

    def inputs_for(self, servable: Servable, max_items: int) -> Content | Tensors:
        """What the model gets of it: tensors, or encoded images. Raises InvalidContent and its kin, with the name."""
        if self.raw is not None:
            return self._raw_inputs(servable, self.raw)
        specs = {spec.name: spec for spec in servable.input_specs}
        if servable.kind == "image" and len(self.tensors) == 1:
            ((name, (sent, array)),) = self.tensors.items()
            if name in specs and sent.datatype == "BYTES" != specs[name].datatype:
                return Content("image", self._read_images(name, array, max_items))
        for name, (sent, _) in self.tensors.items():
            if name in specs and specs[name].datatype != sent.datatype:
                raise InvalidTensor(f"input {name!r} is of datatype {sent.datatype}; it takes {specs[name].datatype}")
        return {name: array for name, (_, array) in self.tensors.items()}

    def outputs_for(self, servable: Servable) -> tuple[Wanted, ...]:
        """All outputs in the model's order, or those asked for in theirs. Raises InvalidContent with the name."""
        names = [spec.name for spec in servable.manifest.output_specs]
        if self.outputs is None:
            return tuple(Wanted(name, self.is_binary) for name in names)
        for wanted in self.outputs:
            if wanted.name not in names:
                raise InvalidContent(f"there is no output {wanted.name!r}; {servable.name} has {', '.join(names)}")
        return self.outputs

    def _raw_inputs(self, servable: Servable, raw: bytes) -> Content | Tensors:
        if servable.kind == "image":
            return Content("image", (raw,))
        if len(servable.input_specs) == 1 and servable.input_specs[0].datatype == "BYTES":
            spec = servable.input_specs[0]
            one = TensorSpec(spec.name, spec.datatype, tuple(1 if size == -1 else size for size in spec.shape))
            return {spec.name: array_from_bytes(memoryview(raw), one)}
        return tensors_from_bytes(raw, servable.input_specs)

    def _read_images(self, name: str, array: Array, max_items: int) -> tuple[bytes, ...]:
        if array.size > max_items:
            raise BodyTooLarge(f"{array.size} images in one request; send at most {max_items}")
        if array.ndim not in (1, 2) or not array.size or array.shape[1:] not in ((), (1,)):
            raise InvalidTensor(f"input {name!r} takes images as BYTES of shape [n] or [n, 1], not {list(array.shape)}")
        found = array.reshape(-1).tolist()
        if name not in self.texts:
            return tuple(found)
        try:
            return tuple(decode_base64(text.decode()) for text in found)
        except InvalidImage as exc:
            raise InvalidImage(f"input {name!r}: {exc}") from exc


def read_request(body: bytes, header_length: bytes | None) -> InferContent:
    """`header_length` is what Inference-Header-Content-Length says. Raises InvalidContent and its kin."""
    length = _parse_length(header_length, len(body))
    if length == 0 and header_length is not None:
        return InferContent(raw=body, is_binary=True)
    try:
        wire = _adapter.validate_json(body if length == len(body) else body[:length])
    except ValidationError as exc:
        raise InvalidContent(explain_invalid(exc, InferRequest.model_fields, _EXAMPLE)) from exc
    content = InferContent(id=wire.id)
    if may_hold_flags(body if length == len(body) else body[:length]):
        for tensor in wire.inputs:
            check_flags(f"input {tensor.name!r}", tensor.data)
    content.tensors, content.texts = _read_inputs(wire.inputs, memoryview(body)[length:])
    content.is_binary = _read_flag(wire.parameters, "binary_data_output", "parameters", default=False)
    content.outputs = read_outputs(wire.outputs, content.is_binary)
    read_parameters(content, wire.parameters)
    return content


def _parse_length(text: bytes | None, total: int) -> int:
    if text is None:
        return total
    if not text.isdigit() or len(text) > 19 or int(text) > total:
        shown = text.decode("latin-1")[:40]
        raise InvalidContent(
            f"Unable to parse Inference-Header-Content-Length, got: {shown}; it is the number of bytes of the JSON "
            f"that begins the body, which has {total:,}"
        )
    return int(text)


def _read_inputs(
    inputs: Sequence[InputTensor], rest: memoryview
) -> tuple[dict[str, tuple[TensorSpec, Array]], frozenset[str]]:
    found: dict[str, tuple[TensorSpec, Array]] = {}
    texts = set()
    for tensor in inputs:
        spec = TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape))
        if spec.name in found:
            raise InvalidTensor(f"input {spec.name!r} stands twice; send each once")
        if spec.datatype not in DATATYPES:
            raise InvalidTensor(
                f"input {spec.name!r} is of datatype {spec.datatype!r}, which is none of {', '.join(DATATYPES)}"
            )
        if SHARED_MEMORY in tensor.parameters:
            raise InvalidTensor(f"input {spec.name!r} is in shared memory, which is not read here; send its contents")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            if tensor.data is None:
                raise InvalidTensor(f"input {spec.name!r} has no data; send data, or binary_data_size and the bytes")
            found[spec.name] = spec, array_from_json(tensor.data, spec, takes_not_finite=True)
            texts.add(spec.name)
            continue
        if tensor.data is not None:
            raise InvalidTensor(f"input {spec.name!r} has both data and binary_data_size; send one of them")
        if type(size) is not int or not 0 <= size <= len(rest):
            raise InvalidTensor(
                f"input {spec.name!r}: binary_data_size is {str(size)[:40]}, and {len(rest):,} bytes are left"
            )
        found[spec.name] = spec, array_from_bytes(rest[:size], spec)
        rest = rest[size:]
    if rest:
        raise InvalidContent(
            f"{len(rest):,} bytes of the body belong to no input; correct binary_data_size or "
            "Inference-Header-Content-Length"
        )
    return found, frozenset(texts)


def read_outputs(outputs: Sequence[RequestedOutput] | None, is_binary: bool) -> tuple[Wanted, ...] | None:
    """None where none is asked for. Raises InvalidContent with the name."""
    if not outputs:
        return None
    found: dict[str, Wanted] = {}
    for output in outputs:
        where = f"output {output.name!r}"
        if output.name in found:
            raise InvalidContent(f"{where} stands twice; ask for each once")
        if SHARED_MEMORY in output.parameters:
            raise InvalidContent(f"{where} is wanted in shared memory, which is not written; take it from the answer")
        classes = output.parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidContent(f"{where}: classification is a number of classes, not {str(classes)[:40]}")
        flag = _read_flag(output.parameters, "binary_data", where, default=is_binary)
        found[output.name] = Wanted(output.name, flag, classes)
    return tuple(found.values())


def _read_flag(parameters: dict[str, Any], name: str, where: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidContent(f"{where}: {name} is true or false, not {str(value)[:40]}")
    return value


def read_parameters(content: InferContent, parameters: dict[str, Any]) -> None:
    """What a request's parameters ask for, into `content`."""
    if parameters.get("sequence_id") not in (None, 0, ""):
        raise InvalidContent(
            "parameters: sequence_id is for models that keep a state between requests; there are none here"
        )
    timeout = parameters.get("timeout")
    if timeout is not None:
        if type(timeout) is not int or timeout < 0:
            raise InvalidContent(f"parameters: timeout is a number of microseconds, not {str(timeout)[:40]}")
        content.timeout_ms = min(timeout, _LONGEST_MS) / 1e3 or None
    key = parameters.get("routing_key")
    if type(key) not in (str, int, type(None)):
        raise InvalidContent(f"parameters: routing_key is text, not {str(key)[:40]}")
    content.routing_key = str(key).encode() if key is not None else None
