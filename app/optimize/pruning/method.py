"""What is asked of a pruning: by which criterion, how much, of which structure. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.errors import InvalidContent

By = Literal["magnitude", "gradient", "entropy"]
Kind = Literal["sparsity", "percentile", "threshold", "fewer_flops"]
Structure = Literal["weight", "channel"]
Schedule = Literal["once", "gradual"]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much goes. `sparsity`: the share in 0…1 of all weights (or channels) together with the lowest scores;
    `percentile`: so many percent of each layer; `threshold`: what scores below it; `fewer_flops`, of channels: as
    few as save this share of the multiply-adds."""

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        limit = {"sparsity": 1.0, "fewer_flops": 1.0, "percentile": 100.0, "threshold": float("inf")}[self.kind]
        if not 0 < self.value < limit:
            words = "above 0" if self.kind == "threshold" else f"between 0 and {limit:g}"
            raise InvalidContent(f"--{self.kind.replace('_', '-')} must be {words}, and is {self.value:g}")

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Method:
    """`keep` are layers, by the names of their ONNX nodes, that stay whole; single weights of depthwise convolutions go
    only with `depthwise`, for they are few and each output hangs on a handful of them. `multiple`, of channels: as many
    as are left of a layer are a multiple of it. `schedule`, of weights that are fine-tuned: all go at once and what is
    left is refitted by least squares, or they go step by step."""

    by: By
    amount: Amount
    structure: Structure = "weight"
    keep: tuple[str, ...] = ()
    depthwise: bool = False
    multiple: int = 8
    schedule: Schedule = "once"

    def __post_init__(self) -> None:
        if self.by == "entropy" and self.structure == "weight":
            raise InvalidContent(
                "--by entropy scores the activations of channels, of which weights have none: say --structure channel"
            )
        if self.amount.kind == "fewer_flops" and self.structure == "weight":
            raise InvalidContent("zeros save no multiply-adds on a CPU: --fewer-flops takes --structure channel")
        if self.schedule == "gradual" and self.structure == "channel":
            raise InvalidContent("channels are cut once: --schedule gradual is for --structure weight")

    def __str__(self) -> str:
        kept = f", whole: {' '.join(self.keep)}" if self.keep else ""
        return f"{self.structure}s by {self.by}, {self.amount}{kept}"


def partial(amount: Amount, share: float) -> Amount:
    """The amount after `share` (0 < share ≤ 1) of a gradual schedule: S·(1 - (1 - t)³), of Zhu and Gupta 2017
    (https://arxiv.org/abs/1710.01878). A threshold rises in the same way."""
    return Amount(amount.kind, amount.value * (1 - (1 - share) ** 3))
