"""Holds the numbers of a call against what model.yaml says of them (`values`): missing ones, their range, outliers.

It is done before rows share a run, so nobody's policy touches a neighbour. What is changed is a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from app.errors import InvalidTensor
from app.processing.tensor import check_tensors, tensors_from_json
from app.processing.value_policy import MissingValues, Outliers, ValuePolicy, ValueRange
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec

Kind = Literal["missing", "out_of_range", "outlier"]
Action = Literal["reject", "clip", "impute", "flag"]
_DONE = {"clip": "clipped", "impute": "imputed", "flag": "taken as it is"}


@dataclass(frozen=True, slots=True)
class Violation:
    """Values of one kind in one input of one call. `message` names the first of them, and what was done."""

    input: str
    kind: Kind
    action: Action
    count: int
    message: str


@dataclass(frozen=True, slots=True)
class _Limits:
    """`low` and `high` are of the input's datatype, [columns] or [1]; `exact` are they as model.yaml says them."""

    kind: Kind
    action: Action
    low: Array
    high: Array
    exact: tuple[Array, Array]
    note: str

    def allowed(self, column: int) -> str:
        low, high = (float(ends[column if len(ends) > 1 else 0]) for ends in self.exact)
        if math.isinf(low):
            return f"at most {_text(high)}{self.note}"
        return f"{f'at least {_text(low)}' if math.isinf(high) else f'{_text(low)} to {_text(high)}'}{self.note}"


class InputCheck:
    """A policy made ready for its input. Thread-safe."""

    def __init__(self, spec: TensorSpec, policy: ValuePolicy) -> None:
        """Raises ValueError, naming the field, where the two do not fit."""
        self._spec = spec
        self.dtype = NUMPY_DTYPES[spec.datatype]
        if self.dtype.kind not in "iuf":
            raise ValueError(f"values: is for numbers, and input {spec.name!r} takes {spec.datatype}; leave values out")
        self.missing = policy.missing
        self._fill = self._filling(policy.missing) if policy.missing is not None else None
        self._limits = [
            *(self._range_limits(policy.range) if policy.range is not None else ()),
            *(self._outlier_limits(policy.outliers) if policy.outliers is not None else ()),
        ]
        # The narrowest of all: one look at them tells of most calls that nothing is wrong. NaN is never within.
        low, high = self._cast(np.array([-np.inf]), np.ceil), self._cast(np.array([np.inf]), np.floor)
        for limits in self._limits:
            low, high = np.maximum(low, limits.low), np.minimum(high, limits.high)
        self._low, self._high = low, high

    def apply(self, array: Array, nulls: Array | None, found: list[Violation]) -> Array:
        """The array itself where nothing is to be changed, else a changed copy; what is wrong is added to `found`.

        `nulls` (of the array's shape) marks what is missing where the datatype has no NaN. Raises InvalidTensor for
        what is to be rejected, having added that too.
        """
        if nulls is None and ((array >= self._low) & (array <= self._high)).all():
            return array
        if array.ndim == 0:
            nulls = nulls.reshape(1) if nulls is not None else None
            return self._correct(array.reshape(1), nulls, found).reshape(())
        return self._correct(array, nulls, found)

    def _correct(self, array: Array, nulls: Array | None, found: list[Violation]) -> Array:
        missing = nulls
        if missing is None and self.missing is not None and self.dtype.kind == "f":
            missing = np.isnan(array)
        if missing is not None and self.missing is not None and missing.any():
            self._note(found, "missing", self.missing.action, missing, array, None)
        for limits in self._limits:
            outside = (array < limits.low) | (array > limits.high)
            if nulls is not None:
                outside = outside & ~nulls
            if outside.any():
                self._note(found, limits.kind, limits.action, outside, array, limits)
                if limits.action == "clip":
                    array = np.where(outside, np.minimum(np.maximum(array, limits.low), limits.high), array)
        if missing is None or self._fill is None or not missing.any():
            return array
        return np.where(missing, self._fill, array)

    def _note(
        self, found: list[Violation], kind: Kind, action: Action, wrong: Array, array: Array, limits: _Limits | None
    ) -> None:
        index = tuple(map(int, np.unravel_index(wrong.argmax(), wrong.shape)))
        where = f"input {self._spec.name!r}{_place(index, self._spec)}"
        if limits is None:
            message = f"{where}: the value is missing (null or NaN)" + ("; send a number" if action == "reject" else "")
        else:
            what = "out of range" if kind == "out_of_range" else "an outlier"
            allowed = limits.allowed(index[-1] if index else 0)
            message = f"{where}: {_text(array[index].item())} is {what}; allowed is {allowed}"
        count = int(np.count_nonzero(wrong))
        many = f"; there are {count} such values" if count > 1 else ""
        done = f"; {_DONE[action]}" if action != "reject" else ""
        found.append(Violation(self._spec.name, kind, action, count, f"{message}{many}{done}"))
        if action == "reject":
            raise InvalidTensor(f"{message}{many}")

    def _filling(self, missing: MissingValues) -> Array | None:
        if self.dtype.kind != "f" and missing.action == "flag":
            raise ValueError(
                f"values.missing.action: {self._spec.datatype} has no NaN that could stay; write impute or reject"
            )
        if missing.fill is None:
            return None
        numbers = self._columns("missing.fill", missing.fill)
        least, most = _extremes(self.dtype)
        is_whole = self.dtype.kind == "f" or np.array_equal(numbers, np.round(numbers))
        if not is_whole or numbers.min() < least or numbers.max() > most:
            raise ValueError(f"values.missing.fill: must be of the input's datatype, {self._spec.datatype}")
        return self._cast(numbers, np.round)

    def _range_limits(self, section: ValueRange) -> Iterator[_Limits]:
        low = self._columns("range.low", [-math.inf if end is None else end for end in section.low or (None,)])
        high = self._columns("range.high", [math.inf if end is None else end for end in section.high or (None,)])
        yield self._limits_of("range", "out_of_range", section.action, low, high)

    def _outlier_limits(self, section: Outliers) -> Iterator[_Limits]:
        mean, std = self._columns("outliers.mean", section.mean), self._columns("outliers.std", section.std)
        note = f" ({_text(section.z)} standard deviations around the mean)"
        with np.errstate(over="ignore"):
            low, high = mean - section.z * std, mean + section.z * std
        yield self._limits_of("outliers", "outlier", section.action, low, high, note)

    def _limits_of(self, field: str, kind: Kind, action: Action, low: Array, high: Array, note: str = "") -> _Limits:
        ends, most = (self._cast(low, np.ceil), self._cast(high, np.floor)), _extremes(self.dtype)
        is_empty = (ends[0] > ends[1]) | (low > most[1]) | (high < most[0])
        if is_empty.any():
            raise ValueError(
                f"values.{field}: leaves no value of {self._spec.datatype} to column {int(np.argmax(is_empty))}"
            )
        return _Limits(kind, action, *ends, (low, high), note)

    def _columns(self, field: str, numbers: Sequence[float]) -> Array:
        columns = self._spec.shape[-1] if self._spec.shape else 1
        if len(numbers) not in (1, columns):
            has = f"{columns} columns" if columns != -1 else "no fixed number of columns"
            raise ValueError(
                f"values.{field}: has {len(numbers)} numbers, and input {self._spec.name!r} has {has} (its last size); "
                + ("write one for each, or one for all" if columns != -1 else "write one number")
            )
        return np.array(numbers, np.float64)

    def _cast(self, numbers: Array, rounded: Callable[[Array], Array]) -> Array:
        """Numbers (float64, infinities too) as the input's datatype; finite ones stay finite."""
        least, most = _extremes(self.dtype)
        if self.dtype.kind == "f":
            return np.where(np.isinf(numbers), numbers, np.clip(numbers, least, most)).astype(self.dtype)
        return np.array([int(min(max(number, least), most)) for number in rounded(numbers).tolist()], self.dtype)


class Consistency:
    """The policies of a model's inputs, by name. Thread-safe."""

    def __init__(self, policies: Iterable[tuple[TensorSpec, ValuePolicy]]) -> None:
        self._checks = {spec.name: InputCheck(spec, policy) for spec, policy in policies}

    def read(self, values: Any, specs: Sequence[TensorSpec], found: list[Violation]) -> dict[str, Array]:
        """As `tensors_from_json`, but null and NaN are taken where a policy says what to do with missing values.

        What the policies find is added to `found`, also where they reject it. Raises InvalidTensor.
        """
        nulls: dict[str, Array] = {}
        try:
            tensors = tensors_from_json(values, specs)
        except InvalidTensor:
            filled, nulls = self._without_missing(values, specs)
            if not nulls:
                raise
            tensors = tensors_from_json(filled, specs)
        return self._apply(tensors, nulls, found)

    def check(self, tensors: Tensors, specs: Sequence[TensorSpec], found: list[Violation]) -> Tensors:
        """As `app.processing.tensor.check_tensors`, then as `read`."""
        check_tensors(tensors, specs)
        return self._apply(tensors, {}, found)

    def _apply(self, tensors: Tensors, nulls: Mapping[str, Array], found: list[Violation]) -> dict[str, Array]:
        checked = dict(tensors)
        for name, check in self._checks.items():
            marks = nulls.get(name)
            if marks is not None and check.dtype.kind == "f":
                checked[name][marks], marks = np.nan, None  # made by `read`, of nobody else
            checked[name] = check.apply(checked[name], marks, found)
        return checked

    def _without_missing(self, values: Any, specs: Sequence[TensorSpec]) -> tuple[dict[str, Any], dict[str, Array]]:
        """The values by input name with 0 for null and NaN, and where those were."""
        if not isinstance(values, Mapping):
            values = {specs[0].name: values} if len(specs) == 1 else {}
        filled, nulls = dict(values), {}
        for name, check in self._checks.items():
            if check.missing is not None and name in filled:
                found = _find_missing(filled[name])
                if found is not None:
                    filled[name], nulls[name] = found
        return filled, nulls


def _find_missing(values: Any) -> tuple[Any, Array] | None:
    """Nested lists with 0 for null and NaN, and a mask of these; None where there are none, or no array it is."""
    try:
        raw = np.asarray(values)
    except (ValueError, OverflowError):
        return None
    if raw.dtype.kind not in "fO":
        return None
    if raw.dtype.kind == "f":
        missing = np.isnan(raw)
    else:
        flat = raw.reshape(-1).tolist()
        missing = np.array([value is None or _is_nan(value) for value in flat], np.bool_).reshape(raw.shape)
    if not missing.any():
        return None
    filled = raw.copy()
    filled[missing] = 0
    return filled.tolist(), missing


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _extremes(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the greatest finite value of a datatype."""
    info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return (float(info.min), float(info.max)) if dtype.kind == "f" else (info.min, info.max)


def _place(index: tuple[int, ...], spec: TensorSpec) -> str:
    """Where a value stands, for people who have lists before them: counted from 0, as these are."""
    if not spec.shape:
        return ""
    if len(index) == 1:
        return f", {'row' if spec.shape[0] == -1 else 'column'} {index[0]} (counted from 0)"
    between = "".join(f", {place}" for place in index[1:-1])
    return f", row {index[0]}{between}, column {index[-1]} (counted from 0)"


def _text(number: float) -> str:
    is_whole = isinstance(number, int) or (abs(number) < 1e15 and number == int(number))
    return str(int(number)) if is_whole else f"{number:.6g}"
