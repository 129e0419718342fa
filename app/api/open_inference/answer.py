"""An answer of `infer`: JSON, with binary tensors after it where they were asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic_core import to_json

from app.api.json_arrays import VALUES_OF_AN_ID, array_to_json, join_parts, values_to_json
from app.api.open_inference.request import Wanted
from app.engine.call import Answer
from app.errors import InvalidContent
from app.processing.tensor_bytes import array_to_bytes
from app.registry.manifest import ClassificationAnswer
from app.registry.servables.servable import Servable
from app.tensors import Array, object_array

# Of one answer, over all its rows: each is a text, which takes 60 bytes and a microsecond.
_MOST_CLASSES = 2**18
# In wider rows the best are found before they are sorted: in 10,000 classes in a twentieth of the time.
_FEW_CLASSES = 1000
# So many are copied in the time that one value takes in JSON.
_BYTES_OF_A_VALUE = 400


@dataclass(slots=True)
class InferAnswer:
    """`json_bytes` is the length of the JSON at the beginning of `body`, None where it is all of it."""

    body: bytes
    json_bytes: int | None


def count_work(answer: Answer, outputs: Sequence[Wanted]) -> int:
    """What rendering takes, in values that are written as JSON."""
    arrays = [(wanted, (answer.tensors or {})[wanted.name]) for wanted in outputs]
    return len(answer.items or ()) * VALUES_OF_AN_ID + sum(
        array.nbytes // _BYTES_OF_A_VALUE
        if wanted.is_binary and not wanted.classes and array.dtype.kind != "O"
        else array.size
        for wanted, array in arrays
    )


def render_infer(
    answer: Answer,
    servable: Servable,
    outputs: Sequence[Wanted],
    request_id: str | None,
    prediction_ids: Sequence[str | None],
) -> InferAnswer:
    """`request_id` is the caller's, and comes back. Raises InvalidContent for an output that cannot be so."""
    datatypes = {spec.name: spec.datatype for spec in servable.manifest.output_specs}
    rendered: list[list[bytes]] = []
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
            rendered.append([to_json(output)])
        else:
            data, lost = _render_values(array, wanted.name)
            not_finite |= lost
            rendered.append([to_json(output)[:-1], b',"data":', *data, b"}"])
    content: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if request_id is not None:
        content["id"] = request_id
    content["parameters"] = describe_answer(answer, prediction_ids, not_finite=not_finite)
    parts = [to_json(content)[:-1], b',"outputs":[', *join_parts(rendered), b"]}"]
    return InferAnswer(b"".join([*parts, *blobs]), sum(map(len, parts)) if blobs else None)


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
    """The best classes of each row as `value:index:label`, the largest first (Triton's extension `classification`).

    Raises InvalidContent for an output that has no classes, or where that would be too many texts.
    """
    if array.dtype.kind not in "iuf" or not array.ndim:
        raise InvalidContent(f"output {wanted.name!r} has no classes to choose from; leave classification out")
    answer, known = servable.manifest.answer, servable.classification
    is_labelled = isinstance(answer, ClassificationAnswer) and known is not None and answer.output == wanted.name
    rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
    count = min(wanted.classes, array.shape[-1])
    if len(rows) * count > _MOST_CLASSES:
        raise InvalidContent(
            f"output {wanted.name!r}: classification {wanted.classes} of {len(rows):,} rows is {len(rows) * count:,} "
            f"classes; ask for at most {_MOST_CLASSES:,} in all, or for the tensor itself"
        )
    found = [
        f"{value:f}:{index}".encode()
        + (b":" + known.labels[index].encode() if is_labelled and known is not None else b"")
        for row, indices in zip(rows, _find_best(rows, count), strict=True)
        for value, index in zip(row[indices].tolist(), indices, strict=True)
    ]
    return object_array(found, (*array.shape[:-1], count))


def _find_best(rows: Array, count: int) -> list[list[int]]:
    """The indices of each row's largest values, the largest first, of equal ones the first; NaN is the least."""
    if rows.shape[1] <= _FEW_CLASSES:
        return np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count].tolist()  # type: ignore[no-any-return]
    return [_find_least(-row.astype(np.float64), count) for row in rows]


def _find_least(keys: Array, count: int) -> list[int]:
    limit = np.partition(keys, count - 1)[count - 1]
    if np.isnan(limit):
        return np.argsort(keys, kind="stable")[:count].tolist()  # type: ignore[no-any-return]
    below = np.flatnonzero(keys < limit)
    found = np.concatenate([below, np.flatnonzero(keys == limit)[: count - len(below)]])
    return found[np.argsort(keys[found], kind="stable")].tolist()  # type: ignore[no-any-return]


def _render_values(array: Array, name: str) -> tuple[list[bytes], bool]:
    """Flat, in row-major order; and whether a value was not finite, for which JSON has no number."""
    flat = array.reshape(-1)
    if array.dtype.kind == "O":
        return array_to_json(flat, partial(_as_texts, name=name)), False
    return values_to_json(flat)


def _as_texts(flat: Array, name: str) -> list[str]:
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in flat.tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidContent(
            f"output {name!r} has bytes that are no UTF-8, which JSON cannot carry; ask for binary_data"
        ) from exc
