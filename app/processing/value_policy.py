"""The section `values` of an input in model.yaml: what to do with numbers that are missing, out of range or outliers.

app/processing/consistency.py does it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _listed(value: object) -> object:
    return value if value is None or isinstance(value, list | tuple) else (value,)


_Number = Annotated[float, Field(allow_inf_nan=False)]
# One number for all columns, or one for each.
_Numbers = Annotated[tuple[_Number, ...], Field(min_length=1), BeforeValidator(_listed)]
_OpenNumbers = Annotated[tuple[_Number | None, ...], Field(min_length=1), BeforeValidator(_listed)]
_Deviations = Annotated[
    tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1), BeforeValidator(_listed)
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MissingValues(_Section):
    """NaN, and null in JSON. `fill` is what `impute` puts in its place, and may lie outside the range (a sentinel)."""

    action: Literal["reject", "impute", "flag"]
    fill: _Numbers | None = None

    @model_validator(mode="after")
    def _fill_is_used(self) -> MissingValues:
        if (self.action == "impute") != (self.fill is not None):
            raise ValueError("action: impute and fill go together; write both, or neither")
        return self


class ValueRange(_Section):
    """Both ends are allowed values; null: open."""

    action: Literal["reject", "clip", "flag"]
    low: _OpenNumbers | None = None
    high: _OpenNumbers | None = None

    @model_validator(mode="after")
    def _has_an_end(self) -> ValueRange:
        if self.low is None and self.high is None:
            raise ValueError("needs low or high")
        return self


class Outliers(_Section):
    """Values further than `z` standard deviations from the mean, both of the training data."""

    action: Literal["reject", "clip", "flag"]
    mean: _Numbers
    std: _Deviations
    z: float = Field(gt=0, allow_inf_nan=False)


class ValuePolicy(_Section):
    """The section `values` of an input. Checked in this order; each sees what the one before has left."""

    missing: MissingValues | None = None
    range: ValueRange | None = None
    outliers: Outliers | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ValuePolicy:
        if self.missing is None and self.range is None and self.outliers is None:
            raise ValueError("says nothing; write missing, range or outliers, or leave values out")
        return self
