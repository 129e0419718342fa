"""What rounding costs, layer by layer, and which layers had better stay in float."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import InvalidContent

_MOST_KEPT = 8  # of so many layers one


@dataclass(frozen=True, slots=True)
class LayerError:
    """`sqnr_db` is the signal-to-quantisation-noise ratio of the layer's output, 10 log₁₀(Σ y² / Σ (y - ŷ)²), where ŷ
    is computed with its weights and inputs rounded and y with neither, both from the same float inputs: what this layer
    adds, not what came from those before it. None where ŷ = y. `weights` is how many it has.

    The ratio as in D. Lin, S. Talathi, S. Annapureddy, Fixed Point Quantization of Deep Convolutional Networks, ICML
    2016."""

    name: str
    operator: str
    weights: int
    sqnr_db: float | None


def decibels(signal: float, noise: float) -> float | None:
    """10 log₁₀(signal / noise); None where there is no noise. Raises InvalidContent where one is not finite."""
    if not math.isfinite(signal + noise):
        raise InvalidContent(
            "the noise cannot be measured: with these inputs the sums of squares are not finite; leave out those that "
            "are far larger than what callers send"
        )
    if noise == 0:
        return None
    return round(10 * math.log10(signal / noise), 2) if signal else 0.0


def propose_float(errors: Sequence[LayerError]) -> list[str]:
    """The layers that together add half of the noise, worst first; at most an eighth of those that are rounded, and at
    least one. None of a single layer.

    Noise-to-signal ratios of layers in a row add up (Lin et al., as above).
    """
    ratios = {error.name: 10 ** (-error.sqnr_db / 10) for error in errors if error.sqnr_db is not None}
    worst = sorted(ratios, key=lambda name: -ratios[name])
    proposed: list[str] = []
    if len(worst) < 2:
        return proposed
    for name in worst[: max(1, len(worst) // _MOST_KEPT)]:
        if sum(ratios[one] for one in proposed) >= sum(ratios.values()) / 2:
            break
        proposed.append(name)
    return proposed
