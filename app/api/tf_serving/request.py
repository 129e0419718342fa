"""A body of `:predict` to what a model takes: rows (`instances`) or columns (`inputs`), binary values as base64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import pybase64
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from app.api.flags import check_flags, may_hold_flags
from app.api.problems import explain_invalid
from app.errors import BodyTooLarge, InvalidContent, InvalidImage, InvalidTensor
from app.processing.tensor import tensors_from_json
from app.registry.servables.servable import Content, Servable
from app.tensors import Tensors, TensorSpec, describe_shape

SIGNATURE = "serving_default"
_BASE64 = "b64"
_EXAMPLE = '{"instances": [[1.0, 2.0, 5.0]]}'


class ServingRequest(BaseModel):
    """Exactly one of `instances` (rows) and `inputs` (columns)."""

    # Clients of other servers send more keys, which TensorFlow Serving does without, too.
    model_config = ConfigDict(extra="ignore")

    signature_name: str = Field(SIGNATURE, max_length=256, description="A model has one, serving_default.")
    instances: list[Any] | None = Field(
        None,
        min_length=1,
        description="Rows: of a model with one input its values, else objects by input name.",
        examples=[[[1.0, 2.0, 5.0]]],
    )
    inputs: Any = Field(None, description="Columns: the tensor of a model's only input, or an object of them by name.")

    @model_validator(mode="after")
    def _one_format(self) -> ServingRequest:
        if (self.instances is None) == (self.inputs is None):
            raise ValueError("send exactly one of instances (rows) and inputs (columns)")
        if self.signature_name not in ("", SIGNATURE):
            raise ValueError(f"there is no signature {self.signature_name!r}; every model has one, {SIGNATURE}")
        return self


_adapter = TypeAdapter(ServingRequest)


@dataclass(frozen=True, slots=True)
class ServingContent:
    """A request, not yet held against a model. `instances` None: it is in columns, which are `inputs`."""

    instances: list[Any] | None
    inputs: Any
    may_hold_flags: bool = False

    @property
    def rows(self) -> int | None:
        """How many rows the request has, None where it is in columns."""
        return len(self.instances) if self.instances is not None else None

    def inputs_for(self, servable: Servable, max_items: int) -> Content | Tensors:
        """Tensors, or encoded images. Raises InvalidContent and its kin, naming the input or the row."""
        if servable.kind == "image":
            images = self._find_images()
            if len(images) > max_items:
                raise BodyTooLarge(f"{len(images)} images in one request; send at most {max_items}")
            if images:
                return Content("image", tuple(_decode_image(number, image) for number, image in enumerate(images)))
        specs = servable.input_specs
        columns = self._columns(specs)
        for spec in specs:
            if spec.datatype == "BYTES" and spec.name in columns:
                columns[spec.name] = _decode_strings(columns[spec.name], spec.name)
        if self.may_hold_flags:
            for name, values in columns.items():
                check_flags(f"input {name!r}", values)
        return tensors_from_json(columns, specs, takes_not_finite=True)

    def _find_images(self) -> Sequence[Any]:
        """What may be images, one of them at least; nothing where the request has the pixels."""
        if self.instances is not None:
            found = [_unwrap(instance) for instance in self.instances]
        else:
            inner = _unwrap(self.inputs)
            found = inner if isinstance(inner, list) else [inner]
        return found if any(_is_base64(value) or isinstance(value, str) for value in found) else ()

    def _columns(self, specs: Sequence[TensorSpec]) -> dict[str, Any]:
        """Nested lists by input name."""
        if self.instances is not None:
            return _turn_rows(self.instances, specs)
        if isinstance(self.inputs, Mapping) and not _is_base64(self.inputs):
            return dict(self.inputs)
        if len(specs) > 1:
            raise InvalidTensor(f"inputs: this model has several; send an object with the keys {_names(specs)}")
        return {specs[0].name: self.inputs}


def read_predict(body: bytes) -> ServingContent:
    """NaN, Infinity and -Infinity are numbers here. Raises InvalidContent, naming the field."""
    try:
        wire = _adapter.validate_json(body)
    except ValidationError as exc:
        raise InvalidContent(explain_invalid(exc, ServingRequest.model_fields, _EXAMPLE)) from exc
    return ServingContent(wire.instances, wire.inputs, may_hold_flags(body))


def _turn_rows(instances: Sequence[Any], specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Rows to columns. Raises InvalidTensor for a model that has not one row of every input for each answer."""
    for spec in specs:
        if spec.shape[:1] != (-1,):
            raise InvalidTensor(
                f"instances: input {spec.name!r} is {describe_shape(spec.shape)} and has no rows; send inputs instead"
            )
    first = instances[0]
    if not isinstance(first, Mapping) or _is_base64(first):
        if len(specs) > 1:
            raise InvalidTensor(f"instances: each must be an object with the keys {_names(specs)}")
        return {specs[0].name: list(instances)}
    for number, instance in enumerate(instances):
        if not isinstance(instance, Mapping) or instance.keys() != first.keys():
            raise InvalidTensor(f"instances.{number}: must be an object with the keys {_names(specs)}")
    return {name: [instance[name] for instance in instances] for name in first}


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


def _is_base64(value: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(_BASE64), str)


def _unwrap(value: Any) -> Any:
    """The only value of an object, whatever its key: an image's input has another name with every server."""
    if isinstance(value, dict) and len(value) == 1 and not _is_base64(value):
        return next(iter(value.values()))
    return value


def _decode_image(number: int, value: Any) -> bytes:
    if not _is_base64(value):
        raise InvalidImage(f'image {number} (counted from 0) must be {{"b64": "<base64 of the file>"}}')
    try:
        return _decode(value[_BASE64])
    except ValueError as exc:
        raise InvalidImage(f"image {number} (counted from 0) is not base64; encode the file's bytes") from exc


def _decode_strings(value: Any, name: str) -> Any:
    """Nested lists of strings with their binary values decoded."""
    if isinstance(value, list):
        return [_decode_strings(item, name) for item in value]
    if not _is_base64(value):
        return value
    try:
        return _decode(value[_BASE64])
    except ValueError as exc:
        raise InvalidTensor(f"input {name!r} has a b64 that is not base64; encode the bytes") from exc


def _decode(text: str) -> bytes:
    """Padding may be missing and white space be there, as TensorFlow Serving has it. Raises ValueError."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        bare = "".join(text.split()).rstrip("=")
        return pybase64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
