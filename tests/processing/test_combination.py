"""Mean, votes and certainty: by hand, and against numpy's own weighted mean."""

from __future__ import annotations

import numpy as np
import pytest

from app.processing.combination import average, is_sure, vote


def test_average_equals_that_of_numpy() -> None:
    random = np.random.default_rng(0)
    confidences = [random.random((7, 5)) for _ in range(3)]
    weights = [0.5, 2.0, 3.25]
    np.testing.assert_allclose(average(confidences, weights), np.average(confidences, axis=0, weights=weights))


def test_average_by_hand() -> None:
    found = average([np.array([[0.6, 0.4]]), np.array([[0.2, 0.8]])], [3, 1])
    np.testing.assert_allclose(found, [[0.5, 0.5]])


def test_vote_gives_the_share_of_the_weights() -> None:
    first, second, third = np.array([[0.9, 0.1, 0]]), np.array([[0.1, 0.9, 0]]), np.array([[0.4, 0.35, 0.25]])
    np.testing.assert_array_equal(vote([first, second, third], [1, 1, 1]), np.float32([[2 / 3, 1 / 3, 0]]))
    np.testing.assert_array_equal(vote([first, second, third], [1, 4, 1]), np.float32([[1 / 3, 2 / 3, 0]]))


@pytest.mark.parametrize(("first", "winner"), [(0.6, 1), (0.95, 0), (0.9, 0)])
def test_vote_tie_goes_to_the_highest_mean_confidence(first: float, winner: int) -> None:
    """Equal votes and equal means: the first label."""
    found = vote([np.array([[first, 1 - first]]), np.array([[0.1, 0.9]])], [1, 1])
    np.testing.assert_allclose(found, [[0.5, 0.5]], rtol=2e-7)
    assert found.argmax() == winner
    assert found.max() > found.min()


def test_vote_of_one_row_does_not_depend_on_its_neighbours() -> None:
    random = np.random.default_rng(1)
    confidences = [random.dirichlet(np.ones(3), 50) for _ in range(4)]
    together = vote(confidences, [1, 1, 1, 1])
    for row in range(50):
        np.testing.assert_array_equal(
            together[row : row + 1], vote([one[row : row + 1] for one in confidences], [1] * 4)
        )


def test_vote_of_what_is_not_finite_does_not_count() -> None:
    broken, good = np.array([[np.nan, 0.2], [np.inf, 0]]), np.array([[0.3, 0.7], [0.8, 0.2]])
    np.testing.assert_array_equal(vote([broken, good], [5, 1]), [[0, 1], [1, 0]])
    assert np.isnan(vote([broken, broken], [1, 1])).all()


def test_is_sure() -> None:
    rows = np.array([[0.7, 0.3], [0.69, 0.31], [np.nan, 0.9], [np.inf, 0], [0.2, 0.8]])
    np.testing.assert_array_equal(is_sure(rows, 0.7), [True, False, False, False, True])
