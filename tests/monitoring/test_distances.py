"""Distances and their p-values against scipy, on random counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.spatial.distance import jensenshannon

from app.monitoring.distances import (
    EPSILON,
    ChiSquared,
    Distances,
    chi_squared,
    chi_squared_survival,
    gamma_survival,
    jensen_shannon_distance,
    kolmogorov_p_value,
    kolmogorov_smirnov,
    kolmogorov_survival,
    population_stability_index,
)

Array = npt.NDArray[Any]
random_examples = settings(max_examples=200, deadline=None, database=None, derandomize=True)


def _with_rows(pairs: list[tuple[int, int]]) -> bool:
    return all(sum(side) > 0 for side in zip(*pairs, strict=True))


counts = st.integers(0, 1000) | st.just(0)
tables = (
    st.lists(st.tuples(counts, counts), min_size=1, max_size=22).filter(_with_rows).map(lambda rows: np.array(rows).T)
)


@random_examples
@given(tables)
def test_jensen_shannon_equals_scipy(table: Array) -> None:
    expected = jensenshannon(table[0], table[1], base=2)
    # scipy takes the root of what may be -1e-17.
    assert jensen_shannon_distance(*table) == pytest.approx(0.0 if np.isnan(expected) else expected, abs=1e-7)
    assert jensen_shannon_distance(*table) ** 2 == pytest.approx(np.nan_to_num(expected) ** 2, abs=1e-12)


@random_examples
@given(tables)
def test_kolmogorov_smirnov_equals_scipy(table: Array) -> None:
    """Of the binned data: each row stands for its bin's number."""
    reference, current = (np.repeat(np.arange(len(row)), row) for row in table)
    with np.errstate(divide="ignore"):  # its p-value, of one row on each side
        expected = stats.ks_2samp(reference, current, method="asymp").statistic
    assert kolmogorov_smirnov(*table) == pytest.approx(expected, abs=1e-12)


@random_examples
@given(tables)
def test_chi_squared_equals_scipy(table: Array) -> None:
    found = chi_squared(*table)
    seen = table[:, table.sum(axis=0) > 0]
    if seen.shape[1] == 1:
        assert found == ChiSquared(0.0, 0, 1.0)
        return
    expected = stats.chi2_contingency(seen, correction=False)
    assert found.degrees == expected.dof
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-9)


@random_examples
@given(tables)
def test_population_stability_index_by_its_definition(table: Array) -> None:
    p, q = (np.maximum(row / row.sum(), EPSILON) for row in table)
    expected = float(np.sum(special.rel_entr(p, q) - p + q) + np.sum(special.rel_entr(q, p) - q + p))
    assert population_stability_index(*table) == pytest.approx(expected, abs=1e-12)
    assert population_stability_index(*table) >= 0


def test_population_stability_index_by_hand() -> None:
    assert population_stability_index(np.array([1, 1]), np.array([3, 1])) == pytest.approx(
        0.25 * math.log(1.5) - 0.25 * math.log(0.5)
    )
    expected = (1 - 1e-4) * math.log(1 / 1e-4) * 2
    assert population_stability_index(np.array([5, 0, 0]), np.array([0, 7, 0])) == pytest.approx(expected)


def test_equal_and_disjoint_distributions() -> None:
    one, same, other = np.array([1, 2, 3, 0, 0, 0]), np.array([100, 200, 300, 0, 0, 0]), np.array([0, 0, 0, 3, 2, 1])
    equal, disjoint = Distances.between(one, same), Distances.between(one, other)
    assert (equal.population_stability_index, equal.kolmogorov_smirnov) == (0.0, 0.0)
    assert (equal.jensen_shannon, equal.kolmogorov_smirnov_p_value) == (0.0, 1.0)
    assert equal.chi_squared is not None
    assert equal.chi_squared.p_value == 1.0
    assert (disjoint.jensen_shannon, disjoint.kolmogorov_smirnov) == pytest.approx((1.0, 1.0))
    assert (equal.n, disjoint.n) == (600, 6)


def test_shares_and_counts_give_the_same_distance() -> None:
    reference, current = np.array([0.1, 0.2, 0.7]), np.array([30, 30, 40])
    for distance in (population_stability_index, jensen_shannon_distance, kolmogorov_smirnov):
        assert distance(reference, current) == pytest.approx(distance(reference * 1000, current / 100))


@pytest.mark.parametrize("rows", [([0, 0], [1, 2]), ([1, 2], [0, 0]), ([0, 0], [0, 0])])
def test_no_rows_have_no_distance(rows: tuple[list[int], list[int]]) -> None:
    reference, current = map(np.array, rows)
    assert Distances.between(reference, current) == Distances(n=int(current.sum()))


def test_classes_have_no_order() -> None:
    distances = Distances.between(np.array([5, 5, 2]), np.array([2, 5, 5]), is_ordered=False)
    assert (distances.kolmogorov_smirnov, distances.kolmogorov_smirnov_p_value) == (None, None)
    assert distances.jensen_shannon is not None


@pytest.mark.parametrize(
    "rows",
    [
        ([1, 2], [1, 2, 3]),
        ([[1, 2]], [[1, 2]]),
        ([1, -1, 3], [1, 1, 1]),
        ([1, np.nan], [1, 1]),
        ([0, 0], [1, 1]),
        ([], []),
    ],
)
@pytest.mark.parametrize(
    "distance", [population_stability_index, jensen_shannon_distance, kolmogorov_smirnov, chi_squared]
)
def test_what_is_no_distribution_is_refused(distance: Any, rows: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"same bins|not all 0"):
        distance(np.array(rows[0]), np.array(rows[1]))


@random_examples
@given(st.floats(1e-6, 1e4), st.floats(0, 20))
def test_gamma_survival_equals_scipy(shape: float, times: float) -> None:
    expected = float(special.gammaincc(shape, shape * times))
    found = gamma_survival(shape, shape * times)
    assert found == pytest.approx(expected, abs=1e-9)
    if expected > 1e-250 and shape > 0.4:
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 10, 20, 21, 999, 100_000])
def test_chi_squared_survival_equals_scipy(degrees: int) -> None:
    spread = math.sqrt(2 * degrees)
    for statistic in [
        1e-300,
        1e-3,
        0.5,
        1.0,
        degrees - spread,
        degrees,
        degrees + 2,
        degrees + 5 * spread,
        5 * degrees,
    ]:
        if statistic > 0:
            expected = stats.chi2.sf(statistic, degrees)
            assert chi_squared_survival(statistic, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_survival_at_the_ends() -> None:
    assert chi_squared_survival(0.0, 5) == chi_squared_survival(3.0, 0) == gamma_survival(2.0, 0.0) == 1.0
    assert chi_squared_survival(math.inf, 5) == 0.0
    assert chi_squared_survival(1e6, 5) == 0.0
    assert kolmogorov_survival(0.0) == kolmogorov_survival(1e-300) == 1.0
    assert kolmogorov_survival(40.0) == 0.0


def test_kolmogorov_survival_equals_scipy() -> None:
    for value in np.concatenate([np.linspace(0.001, 3, 400), [0.05, 1.0, np.nextafter(1, 0), 5, 10, 18]]):
        assert kolmogorov_survival(float(value)) == pytest.approx(stats.kstwobign.sf(value), rel=1e-12)


def test_kolmogorov_p_value_equals_scipy() -> None:
    """scipy's `asymp` takes the exact distribution of one sample; with many rows both are the same."""
    random = np.random.default_rng(2)
    reference, current = random.normal(size=40_000), random.normal(0.01, 1, 60_000)
    expected = stats.ks_2samp(reference, current, method="asymp")
    assert kolmogorov_p_value(expected.statistic, 40_000, 60_000) == pytest.approx(expected.pvalue, rel=0.01)
