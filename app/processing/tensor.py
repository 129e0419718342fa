"""Numbers as JSON or raw bytes carry them to the tensors that a model declares, and outputs back to JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from app.errors import InvalidTensor
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec, describe_shape, object_array, shape_matches

# The product of a shape's sizes but for those that are 0: of no rows, four times a photo of 1024 × 1024; of rows that
# are empty themselves, what is worth an answer.
_MOST_OF_NO_ROWS = 2**24
_MOST_EMPTY_ROWS = 2**16
_MOST_STRINGS = 2**18


class TensorProcessing(BaseModel):
    """The `processing` section of a model that takes its tensors as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["tensor"]


def tensors_from_json(values: Any, specs: Sequence[TensorSpec], *, takes_not_finite: bool = False) -> dict[str, Array]:
    """Build the inputs of a model from nested lists: one list for a single input, else a mapping by name.

    Raises InvalidTensor, naming the input, for a wrong name, shape, datatype, or, unless it `takes_not_finite`, NaN and
    infinities.
    """
    if isinstance(values, Mapping):
        by_name = values
    elif len(specs) == 1:
        by_name = {specs[0].name: values}
    else:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidTensor(f"this model has several inputs: send inputs as an object with the keys {names}")
    check_names(by_name, specs)
    return {spec.name: _array(by_name[spec.name], spec, takes_not_finite) for spec in specs}


def tensors_from_bytes(data: bytes, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The only input of a model from its bytes: little-endian, C order, no header. The array is read-only and keeps
    `data` alive; nothing is copied.

    One free dimension follows from the number of bytes. Values are taken as they are, NaN and infinities too.
    Raises InvalidTensor for several inputs, BYTES, two free dimensions, a wrong number of bytes, a BOOL not 0 or 1.
    """
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidTensor(f"this model has the inputs {names}, and a raw body carries one; send JSON inputs by name")
    spec = specs[0]
    if spec.datatype == "BYTES":
        raise InvalidTensor(f"input {spec.name!r} takes strings, whose ends a raw body does not tell; send JSON inputs")
    shape = _infer_shape(len(data), spec)
    dtype = NUMPY_DTYPES[spec.datatype]
    if dtype.kind == "b":
        flags = np.frombuffer(data, np.uint8)
        if flags.max(initial=0) > 1:
            raise InvalidTensor(f"input {spec.name!r} takes BOOL: each byte is 0 or 1")
        return {spec.name: flags.view(dtype).reshape(shape)}
    array = np.frombuffer(data, dtype.newbyteorder("<"))
    return {spec.name: array.astype(dtype, copy=False).reshape(shape)}


def _infer_shape(size: int, spec: TensorSpec) -> tuple[int, ...]:
    """The shape that makes `size` bytes of a spec with at most one free dimension."""
    free = spec.shape.count(-1)
    if free > 1:
        raise InvalidTensor(
            f"input {spec.name!r} has the shape {describe_shape(spec.shape)}: the number of bytes does not tell its "
            f"{free} free sizes; send JSON inputs"
        )
    unit = math.prod(length for length in spec.shape if length != -1) * NUMPY_DTYPES[spec.datatype].itemsize
    if (free and size and unit and size % unit == 0) or (not free and size == unit):
        return tuple(size // unit if length == -1 else length for length in spec.shape)
    each = "" if not free else " a row" if spec.shape[0] == -1 else " for each n"
    raise InvalidTensor(
        f"input {spec.name!r} takes {unit:,} bytes{each} ({spec.datatype} {describe_shape(spec.shape)}); "
        f"the body has {size:,} bytes"
    )


def array_from_json(values: Any, spec: TensorSpec, *, takes_not_finite: bool = False) -> Array:
    """An array of exactly the spec's shape from its values as one flat list in row-major order, or nested as the shape.

    A list of BYTES holds strings, or bytes. Raises InvalidTensor, naming the input, for another number of values than
    the shape has, a value that is not of the datatype, or, unless it `takes_not_finite`, NaN and infinities.
    """
    free = TensorSpec(spec.name, spec.datatype, ())
    array = _strings(values, free) if spec.datatype == "BYTES" else _numbers(values, free, takes_not_finite)
    if array.shape == spec.shape:
        return array
    if array.ndim > 1 or array.size != math.prod(spec.shape):
        raise InvalidTensor(
            f"input {spec.name!r} says shape {list(spec.shape)}, which is {math.prod(spec.shape):,} values, and has "
            f"{'shape ' + str(list(array.shape)) if array.ndim > 1 else f'{array.size:,}'}"
        )
    return reshape(array, spec)


def reshape(array: Array, spec: TensorSpec) -> Array:
    """Raises InvalidTensor where there is no such shape: one size 0, the others astronomical. What a model makes of
    those, as the sum of no rows, may have values."""
    if not array.size:
        most = _MOST_OF_NO_ROWS if spec.shape[:1] == (0,) else _MOST_EMPTY_ROWS
        if math.prod(size for size in spec.shape if size) > most:
            raise InvalidTensor(f"input {spec.name!r} has an impossible shape: {list(spec.shape)}")
    try:
        return array.reshape(spec.shape)
    except ValueError as exc:
        raise InvalidTensor(f"input {spec.name!r} has an impossible shape: {list(spec.shape)}") from exc


def check_names(given: Mapping[str, Any], specs: Sequence[TensorSpec]) -> None:
    if len(given) == len(specs) and all(spec.name in given for spec in specs):
        return
    wanted = [spec.name for spec in specs]
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if missing or unknown:
        parts = [f"input {name!r} is missing" for name in missing]
        parts += [f"there is no input {name!r}" for name in unknown]
        raise InvalidTensor(f"{'; '.join(parts)}: this model's inputs are {', '.join(wanted)}")


def check_tensors(tensors: Tensors, specs: Sequence[TensorSpec]) -> None:
    """Hold given arrays against what the model declares; raises InvalidTensor naming the input."""
    check_names(tensors, specs)
    for spec in specs:
        array = tensors[spec.name]
        if array.dtype != NUMPY_DTYPES[spec.datatype]:
            raise InvalidTensor(f"input {spec.name!r} has datatype {array.dtype}; it takes {spec.datatype}")
        _check_shape(array, spec)


def _check_shape(array: Array, spec: TensorSpec) -> None:
    if not shape_matches(spec.shape, array.shape):
        raise InvalidTensor(
            f"input {spec.name!r} has shape {describe_shape(array.shape)}; it takes {describe_shape(spec.shape)}"
            + (", where n is any number" if -1 in spec.shape else "")
        )


def _array(values: Any, spec: TensorSpec, takes_not_finite: bool) -> Array:
    array = _strings(values, spec) if spec.datatype == "BYTES" else _numbers(values, spec, takes_not_finite)
    _check_shape(array, spec)
    return array


def check_count_of_strings(count: int, spec: TensorSpec) -> None:
    """Raises InvalidTensor for more than others can wait for: each string is an object, made in the event loop."""
    if count > _MOST_STRINGS:
        raise InvalidTensor(f"input {spec.name!r} has {count:,} strings; send at most {_MOST_STRINGS:,}")


def _strings(values: Any, spec: TensorSpec) -> Array:
    array = np.asarray(values, dtype=object)
    check_count_of_strings(array.size, spec)
    texts = array.reshape(-1).tolist()
    if not all(isinstance(text, str | bytes) for text in texts):
        raise InvalidTensor(f"input {spec.name!r} takes strings (all lists of one length)")
    try:
        return object_array((text.encode() if isinstance(text, str) else text for text in texts), array.shape)
    except UnicodeEncodeError as exc:
        raise InvalidTensor(f"input {spec.name!r} has a string that is no valid Unicode ({exc.reason})") from exc


def _numbers(values: Any, spec: TensorSpec, takes_not_finite: bool = False) -> Array:
    target = NUMPY_DTYPES[spec.datatype]
    if _holds_text(values):
        raise InvalidTensor(f"input {spec.name!r} takes numbers of datatype {spec.datatype}, without null or text")
    try:
        raw = np.asarray(values)
    except (ValueError, OverflowError) as exc:
        raise InvalidTensor(
            f"input {spec.name!r} is ragged or nested too deep: all lists of one depth must have one length"
        ) from exc
    if raw.dtype.kind == "f" and target.kind in "iu" and target.itemsize == 8:
        raw = _exact_integers(values, raw)
    if raw.dtype.kind == "O":
        raw = _large_integers(raw, spec)
    if raw.size == 0:
        return raw.astype(target)
    if isinstance(values, np.ndarray) and raw.dtype == target and target.kind in "iub":
        return raw
    if raw.dtype.kind not in "biuf":
        raise InvalidTensor(f"input {spec.name!r} takes numbers of datatype {spec.datatype}, without null or text")
    return _cast(raw, target, spec, takes_not_finite)


def _exact_integers(values: Any, raw: Array) -> Array:
    """Whole numbers that numpy took for FP64, as some are above 2**63 and some below, or some have a point (1.0); `raw`
    where others are there."""
    numbers = [
        int(number) if type(number) is float and number.is_integer() else number
        for number in np.asarray(values, dtype=object).reshape(-1).tolist()
    ]
    if not all(type(number) is int for number in numbers):
        return raw
    try:
        return np.array(numbers, np.uint64 if min(numbers, default=0) >= 0 else np.int64).reshape(raw.shape)
    except OverflowError:
        return raw


def _holds_text(values: Any) -> bool:
    """Whether numpy would make text of it: each element as long as the longest, which 10 MB can make terabytes."""
    parts = [values]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            return True
        if not isinstance(part, list):
            continue
        try:
            sum(part, 0.0)  # a tenth of what a look at each element takes
        except (TypeError, OverflowError):
            parts.extend(one for one in part if isinstance(one, list | str))
    return False


def _large_integers(raw: Array, spec: TensorSpec) -> Array:
    """Integers that numpy has no type for as FP64 (10**20 is a good FP32); anything else as it is. Raises InvalidTensor
    where one is beyond that too."""
    numbers = raw.reshape(-1).tolist()
    if not all(type(number) in (int, float) for number in numbers):
        return raw
    if NUMPY_DTYPES[spec.datatype].kind != "f":
        return np.full(raw.shape, np.inf)  # beyond 64 bits: beyond every range
    try:
        return np.array([float(number) for number in numbers]).reshape(raw.shape)
    except OverflowError as exc:
        raise InvalidTensor(f"input {spec.name!r} has a value that is too large for {spec.datatype}") from exc


def _cast(raw: Array, target: np.dtype[Any], spec: TensorSpec, takes_not_finite: bool) -> Array:
    kind = target.kind
    if (kind == "b") != (raw.dtype.kind == "b"):
        raise InvalidTensor(f"input {spec.name!r} takes {spec.datatype}, not {raw.dtype.name} values")
    if kind in "iu":
        info = np.iinfo(target)
        if raw.dtype.kind == "f" and not np.array_equal(raw, np.trunc(raw)):
            raise InvalidTensor(f"input {spec.name!r} takes whole numbers ({spec.datatype})")
        # Compared as Python numbers: in FP64 2**63 equals the largest INT64, and the cast would wrap round.
        if raw.min().item() < info.min or raw.max().item() > info.max:
            raise InvalidTensor(f"input {spec.name!r} takes {spec.datatype}: values from {info.min} to {info.max}")
    with np.errstate(over="ignore"):
        array = raw.astype(target)
    if kind == "f" and not (finite := np.isfinite(array)).all():
        if not takes_not_finite:
            raise InvalidTensor(
                f"input {spec.name!r} has a value that is NaN, infinite or too large for {spec.datatype}"
            )
        if np.isfinite(raw[~finite]).any():
            raise InvalidTensor(f"input {spec.name!r} has a value that is too large for {spec.datatype}")
    return array


def tensors_to_json(tensors: Tensors) -> tuple[dict[str, Any], bool]:
    """Nested lists by output name, and whether a value was not finite (JSON has none: it becomes null)."""
    lists: dict[str, Any] = {}
    replaced = False
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            boxed = array.astype(object)
            boxed[~np.isfinite(array)] = None
            lists[name], replaced = boxed.tolist(), True
        elif array.dtype.kind == "O":
            lists[name] = _decode(array.tolist())
        else:
            lists[name] = array.tolist()
    return lists, replaced


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
