"""The section `composition` of model.yaml: which other versions answer, and how their answers become one.

A plan says which steps to run next on which rows, and takes what they gave; it runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.processing.combination import average, is_sure, vote
from app.registry.versions import ModelRef
from app.tensors import Array

MAX_STEPS = 16


@dataclass(frozen=True, slots=True)
class StepRun:
    """Run step `number` (from 0) on the rows with these indices; None: on all."""

    number: int
    rows: Array | None = None


class Plan(Protocol):
    """One piece's way through the steps: `take` the confidences ([rows, classes]) of `runs` until there are none."""

    runs: tuple[StepRun, ...]
    confidences: Array
    """The answer, once `runs` is empty."""
    answered_by: Array | None
    """The number of the step that answered each row; None where all did."""

    def take(self, found: Sequence[Array]) -> None: ...


def _reference(text: str) -> str:
    return str(ModelRef.parse(text))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _AnyStep(_Section):
    model: Annotated[str, AfterValidator(_reference)]

    @property
    def ref(self) -> ModelRef:
        return ModelRef.parse(self.model)


class WeightedStep(_AnyStep):
    weight: float = Field(default=1, gt=0, le=1e6)


class CascadeStep(_AnyStep):
    """`confidence`: from which on the answer of this step is the last word."""

    confidence: float | None = Field(default=None, gt=0, le=1)


class JointComposition(_Section):
    """All steps answer each row: the weighted mean of their confidences, or the share of the weights of their votes."""

    type: Literal["average", "vote"]
    steps: tuple[WeightedStep, ...] = Field(min_length=2, max_length=MAX_STEPS)

    def plan(self, rows: int) -> Plan:  # noqa: ARG002, of one form with the cascade's
        return _JointPlan(self)


class CascadeComposition(_Section):
    """One step after the other, each for the rows that those before were not sure of; the last is always believed."""

    type: Literal["cascade"]
    steps: tuple[CascadeStep, ...] = Field(min_length=2, max_length=MAX_STEPS)

    @model_validator(mode="after")
    def _thresholds(self) -> CascadeComposition:
        for number, step in enumerate(self.steps[:-1]):
            if step.confidence is None:
                raise ValueError(
                    f"steps[{number}] needs a confidence, from which on its answer is taken; only the last has none"
                )
        if self.steps[-1].confidence is not None:
            raise ValueError("the last step has no confidence: its answer is always taken")
        return self

    def plan(self, rows: int) -> Plan:
        return _CascadePlan(self, rows)


Composition: TypeAlias = Annotated[JointComposition | CascadeComposition, Field(discriminator="type")]


class _JointPlan:
    def __init__(self, composition: JointComposition) -> None:
        self.runs: tuple[StepRun, ...] = tuple(StepRun(number) for number in range(len(composition.steps)))
        self.confidences = np.empty((0, 0))
        self.answered_by: Array | None = None
        self._combine = average if composition.type == "average" else vote
        self._weights = [step.weight for step in composition.steps]

    def take(self, found: Sequence[Array]) -> None:
        self.confidences = self._combine(found, self._weights)
        self.runs = ()


class _CascadePlan:
    def __init__(self, composition: CascadeComposition, rows: int) -> None:
        self.runs: tuple[StepRun, ...] = (StepRun(0),)
        self.confidences = np.empty((0, 0))
        self._answered_by = np.zeros(rows, np.intp)
        self.answered_by: Array | None = self._answered_by
        self._least = [step.confidence for step in composition.steps]
        self._left = np.arange(rows)

    def take(self, found: Sequence[Array]) -> None:
        ((run,), (confidences,)) = self.runs, found
        if run.number == 0:
            self.confidences = confidences.copy()
        else:
            self.confidences[self._left] = confidences
            self._answered_by[self._left] = run.number
        self.runs = ()
        least = self._least[run.number]
        if least is None:
            return
        self._left = self._left[~is_sure(confidences, least)]
        if len(self._left):
            is_all = len(self._left) == len(self._answered_by)
            self.runs = (StepRun(run.number + 1, None if is_all else self._left),)
