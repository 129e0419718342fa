"""What a drift report holds: immutable, and free of where the counts come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from app.monitoring.binning import Bins, ClassBins
from app.monitoring.distances import Distances, population_stability_index
from app.tensors import Array


class Baseline(Protocol):
    """What `n` inputs of `data` looked like; `all_bins` by the names that counts have."""

    @property
    def data(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def all_bins(self) -> Mapping[str, Bins | ClassBins]: ...


def chance_index(reference: Array, current: Array) -> float | None:
    """The population stability index that as many rows of one distribution have on average (see distances.py).

    (bins - 1) (1 / n + 1 / m), of the bins in which the reference has anything; None where either has no rows.
    """
    n, m = int(np.sum(reference)), int(np.sum(current))
    if n == 0 or m == 0:
        return None
    return (int(np.count_nonzero(reference)) - 1) * (1 / n + 1 / m)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All distances of one feature; `expected_by_chance` is its `chance_index`."""

    distances: Distances
    expected_by_chance: float | None

    @classmethod
    def between(cls, reference: Array, current: Array, *, is_ordered: bool) -> Self:
        """Counts of the same bins, without those of missing values."""
        return cls(Distances.between(reference, current, is_ordered=is_ordered), chance_index(reference, current))


@dataclass(frozen=True, slots=True)
class StabilityIndex:
    """`value` is the population stability index, and `expected_by_chance` its `chance_index`."""

    value: float
    expected_by_chance: float

    @classmethod
    def between(cls, reference: Array | None, current: Array) -> Self | None:
        """As of Comparison; None where there is nothing on either side."""
        chance = None if reference is None else chance_index(reference, current)
        if reference is None or chance is None:
            return None
        return cls(population_stability_index(reference, current), chance)


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """`counts` of now are [bins + 1], the last of missing values; `bins` is None where the baseline is gone.

    `from_baseline` is δ. `from_release` is Δ, of the part of the window that is after the version's first hours.
    """

    name: str
    counts: tuple[int, ...]
    bins: Bins | ClassBins | None
    from_baseline: Comparison | None
    from_release: Comparison | None

    @property
    def n(self) -> int:
        """Values that are not missing."""
        return sum(self.counts[:-1])

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each bin in the values that are not missing, [bins]; all 0 where all are."""
        return tuple(count / self.n if self.n else 0.0 for count in self.counts[:-1])

    @property
    def missing_share(self) -> float | None:
        """Of all values; None where there are none."""
        return self.counts[-1] / sum(self.counts) if any(self.counts) else None


@dataclass(frozen=True, slots=True)
class FeatureStep:
    """`n` values that are not missing, and how far they are from either reference."""

    n: int
    from_baseline: StabilityIndex | None
    from_release: StabilityIndex | None


@dataclass(frozen=True, slots=True)
class Step:
    """The part of the window that begins at `from_ms`, with `n` inputs; there is none where nothing was counted."""

    from_ms: int
    n: int
    features: Mapping[str, FeatureStep]


@dataclass(frozen=True, slots=True)
class FirstHours:
    """Of a version: from the whole hour in which it was first counted; `n` inputs up to now."""

    from_ms: int
    until_ms: int
    n: int
    is_running: bool


@dataclass(frozen=True, slots=True)
class VersionDrift:
    """`n` inputs were counted in the window. Not `is_counted`: it has no baseline, and never was counted.

    `fault` says what is wrong with a baseline that is there and cannot be used.
    """

    version: str
    is_counted: bool
    n: int = 0
    baseline: Baseline | None = None
    first_hours: FirstHours | None = None
    features: tuple[FeatureDrift, ...] = ()
    series: tuple[Step, ...] = ()
    fault: str | None = None
