"""What the samples of a measurement are taken for, before and after each attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.optimize.robustness.engine import Engine
from app.tensors import Array


@dataclass(frozen=True, slots=True)
class Samples:
    """`values` are [n, …] in the units of the space; `labels` those that the version gives, `is_right` whether they
    are."""

    values: Array
    labels: Array
    is_right: Array
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Example:
    """A sample that was right, and is wrong after an attack; arrays in the units of the space."""

    attack: str
    strength: float
    where: str
    before: Array
    after: Array
    labels: tuple[str, str]
    confidences: tuple[float, float]


@dataclass(slots=True)
class Tally:
    """Of one attack at one strength."""

    changed: int = 0
    still_right: int = 0
    example: Example | None = None


class Tallies:
    """`found` are by attack and strength, in the order in which they were counted."""

    def __init__(self, engine: Engine, samples: Samples) -> None:
        self.found: dict[tuple[str, float], Tally] = {}
        self._engine = engine
        self._samples = samples

    def add(self, attack: str, strength: float, start: int, moved: Array) -> None:
        """Count what `moved`, the samples from `start` on after an attack, are taken for."""
        tally = self.found.setdefault((attack, strength), Tally())
        chosen = slice(start, start + len(moved))
        is_same = self._engine.labels(moved) == self._samples.labels[chosen]
        is_right = self._samples.is_right[chosen]
        tally.changed += int((~is_same).sum())
        tally.still_right += int((is_same & is_right).sum())
        lost = np.flatnonzero(is_right & ~is_same)
        if tally.example is None and len(lost):
            number = int(lost[0])
            tally.example = self._example(attack, strength, start + number, moved[number])

    def first_examples(self) -> tuple[Example, ...]:
        """Of each attack that has one, at the least strength."""
        first: dict[str, Example] = {}
        for (attack, _), tally in sorted(self.found.items(), key=lambda item: item[0][1]):
            if tally.example is not None:
                first.setdefault(attack, tally.example)
        attacks = dict.fromkeys(attack for attack, _ in self.found)
        return tuple(first[attack] for attack in attacks if attack in first)

    def _example(self, attack: str, strength: float, number: int, after: Array) -> Example:
        before = self._samples.values[number]
        clean, attacked = self._engine.confidences(np.stack([before, after]))
        old, new = int(clean.argmax()), int(attacked.argmax())
        names = self._engine.classification.labels
        return Example(
            attack,
            strength,
            self._samples.places[number],
            before,
            after,
            (names[old], names[new]),
            (float(clean[old]), float(attacked[new])),
        )
