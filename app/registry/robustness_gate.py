"""The section `min_robust_accuracy` of model.yaml: what a release asks for. robustness.py holds versions against it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class RobustnessGate(BaseModel):
    """The least share of samples that are right before and after an attack of this strength, on so many or more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attack: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    strength: float = Field(gt=0, allow_inf_nan=False)
    value: float = Field(ge=0, le=1)
    samples: int = Field(default=1, ge=1)


def _listed(value: object) -> object:
    return [value] if isinstance(value, dict) else value


# One, or a list.
RobustnessGates = Annotated[tuple[RobustnessGate, ...], BeforeValidator(_listed)]
