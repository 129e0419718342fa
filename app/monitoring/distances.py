"""How far the distribution of now is from the reference's: distances and tests over the same bins.

All work on counts a bin, or shares. Alert on how large a difference is (population stability index, Jensen-Shannon),
not on p-values: with a million rows every difference is significant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from app.tensors import Array

# Of the population stability index: a smaller share counts as this.
EPSILON = 1e-4
_PRECISION = 1e-14
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class ChiSquared:
    statistic: float
    degrees: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Distances:
    """The rows of now, and all distances of them; None where there are none on either side.

    The Kolmogorov-Smirnov figures are None also where the bins have no order.
    """

    n: int
    population_stability_index: float | None = None
    jensen_shannon: float | None = None
    kolmogorov_smirnov: float | None = None
    kolmogorov_smirnov_p_value: float | None = None
    chi_squared: ChiSquared | None = None

    @classmethod
    def between(cls, reference: Array, current: Array, *, is_ordered: bool = True) -> Self:
        """`reference` and `current` are counts of the same bins, [bins]; those of missing values have no order."""
        n_reference, n = int(np.sum(reference)), int(np.sum(current))
        if n_reference == 0 or n == 0:
            return cls(n)
        statistic = kolmogorov_smirnov(reference, current) if is_ordered else None
        return cls(
            n=n,
            population_stability_index=population_stability_index(reference, current),
            jensen_shannon=jensen_shannon_distance(reference, current),
            kolmogorov_smirnov=statistic,
            kolmogorov_smirnov_p_value=None if statistic is None else kolmogorov_p_value(statistic, n_reference, n),
            chi_squared=chi_squared(reference, current),
        )


def population_stability_index(reference: Array, current: Array) -> float:
    """Σ (q - p) ln(q / p) over the bins, each share p and q at least 1e-4; from 0.

    The shares are not made to sum to 1 again, so that `clamp_min` of PromQL gives the same figure. For n and m rows
    of one distribution it is on average about (bins - 1) (1 / n + 1 / m) (Yurdakul, "Statistical properties of
    population stability index", 2018): for 100 rows in ten bins that is 0.09 already.
    """
    p, q = _shares(reference, current)
    p, q = np.maximum(p, EPSILON), np.maximum(q, EPSILON)
    return float(np.sum((q - p) * np.log(q / p)))


def jensen_shannon_distance(reference: Array, current: Array) -> float:
    """The square root of the Jensen-Shannon divergence in bits, 0…1 (Endres and Schindelin, 2003). Not smoothed."""
    p, q = _shares(reference, current)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return math.sqrt(min(1.0, max(0.0, divergence)))


def kolmogorov_smirnov(reference: Array, current: Array) -> float:
    """The largest distance of the two cumulative distributions at the bins' edges, 0…1."""
    p, q = _shares(reference, current)
    return min(1.0, float(np.abs(np.cumsum(p - q)).max()))


def kolmogorov_p_value(statistic: float, n_reference: int, n_current: int) -> float:
    """How likely two samples of one distribution are so far apart, by Kolmogorov's limit (1933; Smirnov, 1948).

    Too high for binned data (the maximum is taken at the edges alone) and for few rows: it errs on the side of silence.
    """
    return kolmogorov_survival(statistic * math.sqrt(n_reference * n_current / (n_reference + n_current)))


def kolmogorov_survival(value: float) -> float:
    """1 - K(value) of Kolmogorov's distribution: 2 Σ (-1)^(k-1) exp(-2 k² value²).

    Below 1, where that converges slowly, by the other form of the same theta function, as in Marsaglia, Tsang and Wang,
    "Evaluating Kolmogorov's distribution", 2003.
    """
    if value <= 0.05:  # 1 - 1e-213
        return 1.0
    if value < 1:
        terms = (math.exp(-((k * math.pi / value) ** 2) / 8) for k in (1, 3, 5, 7))
        return 1 - math.sqrt(2 * math.pi) / value * math.fsum(terms)
    return 2 * math.fsum(math.copysign(math.exp(-2 * (k * value) ** 2), k) for k in (1, -2, 3, -4, 5))


def chi_squared(reference: Array, current: Array) -> ChiSquared:
    """Pearson's test of homogeneity (1900) of two rows of counts; bins that are empty in both have no part in it."""
    _shares(reference, current)
    table = np.array([reference, current], np.float64)
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=1, keepdims=True) * (table.sum(axis=0) / table.sum())
    statistic = float(np.sum((table - expected) ** 2 / expected))
    degrees = table.shape[1] - 1
    return ChiSquared(statistic, degrees, chi_squared_survival(statistic, degrees))


def chi_squared_survival(statistic: float, degrees: int) -> float:
    """How likely a chi-squared variable of so many degrees of freedom is above `statistic`; 1 for no degrees."""
    if degrees <= 0 or statistic <= 0:
        return 1.0
    return gamma_survival(degrees / 2, statistic / 2)


def gamma_survival(shape: float, x: float) -> float:
    """The regularised upper incomplete gamma function Q(shape, x) for shape > 0 and x ≥ 0.

    Its power series (DLMF 8.7.1) below shape + 1, else its continued fraction (DLMF 8.9.2): each where it converges
    quickly.
    """
    if x <= 0:
        return 1.0
    if math.isinf(x):
        return 0.0
    factor = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        return max(0.0, 1 - factor * _gamma_series(shape, x))
    return factor * _gamma_fraction(shape, x)


def _gamma_series(shape: float, x: float) -> float:
    """Σ x^k / (shape (shape + 1) … (shape + k))."""
    term = total = 1 / shape
    denominator = shape
    while term > total * _PRECISION:
        denominator += 1
        term *= x / denominator
        total += term
    return total


def _gamma_fraction(shape: float, x: float) -> float:
    """1 / (x + 1 - shape + 1 (shape - 1) / (x + 3 - shape + 2 (shape - 2) / …)), by Lentz's method as modified by
    Thompson and Barnett, "Coulomb and Bessel functions of complex arguments and order", 1986.
    """
    denominator = x + 1 - shape
    ratio_c, ratio_d = 1 / _TINY, 1 / denominator
    value, step, k = ratio_d, 0.0, 0
    while abs(step - 1) > _PRECISION:
        k += 1
        numerator = k * (shape - k)
        denominator += 2
        ratio_d = 1 / _not_zero(numerator * ratio_d + denominator)
        ratio_c = _not_zero(denominator + numerator / ratio_c)
        step = ratio_c * ratio_d
        value *= step
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _relative_entropy(p: Array, q: Array) -> float:
    """Σ p log2(p / q) over the bins that p has; q has all of them."""
    there = p > 0
    return float(np.sum(p[there] * np.log2(p[there] / q[there])))


def _shares(reference: Array, current: Array) -> tuple[Array, Array]:
    """Both as shares that sum to 1. Raises ValueError for what is no distribution over the same bins."""
    p, q = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    if p.ndim != 1 or p.shape != q.shape:
        raise ValueError(f"distances are between two rows of the same bins, not of shapes {p.shape} and {q.shape}")
    for row in (p, q):
        if not np.isfinite(row).all() or row.min(initial=0.0) < 0 or row.sum() <= 0:
            raise ValueError("counts and shares are finite, not negative, and not all 0")
    return p / p.sum(), q / q.sum()
