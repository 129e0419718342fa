"""An answer of `infer`: JSON, with binary tensors after it where they were asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_json

from app.api.open_inference.request import Wanted
from app.engine.call import Answer
from app.errors import InvalidContent
from app.processing.tensor import tensors_to_json
from app.processing.tensor_bytes import array_to_bytes
from app.registry.manifest import ClassificationAnswer
from app.registry.servable import Servable
from app.tensors import Array, object_array


@dataclass(slots=True)
class InferAnswer:
    """`json_bytes` is the length of the JSON at the beginning of `body`, None where it is all of it."""

    body: bytes
    json_bytes: int | None


def render_infer(
    answer: Answer,
    servable: Servable,
    outputs: Sequence[Wanted],
    request_id: str | None,
    prediction_ids: Sequence[str | None],
) -> InferAnswer:
    """`request_id` is the caller's, and comes back. Raises InvalidContent for an output that cannot be so."""
    datatypes = {spec.name: spec.datatype for spec in servable.manifest.output_specs}
    rendered: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    tensors = answer.tensors or {}
    not_finite = False
    for wanted in outputs:
        array, datatype = tensors[wanted.name], datatypes[wanted.name]
        if wanted.classes:
            array, datatype = rank_classes(array, wanted, servable), "BYTES"
        output: dict[str, Any] = {"name": wanted.name, "shape": array.shape, "datatype": datatype}
        if wanted.is_binary:
            blob = array_to_bytes(array)
            blobs.append(blob)
            output["parameters"] = {"binary_data_size": len(blob)}
        else:
            output["data"], lost = _as_list(array, wanted.name)
            not_finite |= lost
        rendered.append(output)
    content: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if request_id is not None:
        content["id"] = request_id
    content["parameters"] = describe_answer(answer, prediction_ids, not_finite=not_finite)
    content["outputs"] = rendered
    head = to_json(content)
    return InferAnswer(b"".join([head, *blobs]), len(head)) if blobs else InferAnswer(head, None)


def describe_answer(answer: Answer, prediction_ids: Sequence[str | None], *, not_finite: bool) -> dict[str, str]:
    """The parameters of an answer: the alias that led to the version, ids for feedback, warnings."""
    parameters: dict[str, str] = {}
    if answer.alias is not None:
        parameters["alias"] = answer.alias
    signed = [one for one in prediction_ids if one is not None]
    if signed:
        parameters["prediction_id"] = ",".join(signed)
    warnings = [violation.message for violation in answer.violations]
    if not_finite:
        warnings.append("values that are not finite (NaN or infinity) are null here; binary outputs have them")
    if warnings:
        parameters["warnings"] = "; ".join(warnings)
    return parameters


def rank_classes(array: Array, wanted: Wanted, servable: Servable) -> Array:
    """The best classes of each row as `value:index:label`, the largest first (Triton's extension `classification`)."""
    if array.dtype.kind not in "iuf" or not array.ndim:
        raise InvalidContent(f"output {wanted.name!r} has no classes to choose from; leave classification out")
    answer, known = servable.manifest.answer, servable.classification
    is_labelled = isinstance(answer, ClassificationAnswer) and known is not None and answer.output == wanted.name
    rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
    count = min(wanted.classes, array.shape[-1])
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    found = [
        f"{row[index]:f}:{index}".encode()
        + (b":" + known.labels[index].encode() if is_labelled and known is not None else b"")
        for row, indices in zip(rows, best.tolist(), strict=True)
        for index in indices
    ]
    return object_array(found, (*array.shape[:-1], count))


def _as_list(array: Array, name: str) -> tuple[list[Any], bool]:
    """Flat, in row-major order; and whether a value was not finite, for which JSON has no number."""
    flat = array.reshape(-1)
    if array.dtype.kind == "O":
        try:
            return [value.decode() if isinstance(value, bytes) else value for value in flat.tolist()], False
        except UnicodeDecodeError as exc:
            raise InvalidContent(
                f"output {name!r} has bytes that are no UTF-8, which JSON cannot carry; ask for binary_data"
            ) from exc
    lists, not_finite = tensors_to_json({name: flat})
    return lists[name], not_finite
