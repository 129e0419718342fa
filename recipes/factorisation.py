"""Matrix factorisation with biases, r̂ = μ + b_u + b_i + q_iᵀp_u, by stochastic gradient descent.

The model and its loss Σ (r - r̂)² + λ (b_u² + b_i² + ‖q_i‖² + ‖p_u‖²) are those of Koren, Bell and Volinsky, "Matrix
factorization techniques for recommender systems", Computer 42(8), 2009; the descent is Funk's (2006). Seed, starting
values and order of updates are those of scikit-surprise's SVD, so that both give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.errors import InvalidContent
from app.tensors import Array
from recipes.ratings import Ratings


@dataclass(frozen=True, slots=True)
class Descent:
    """`rate` is that of learning, `regularisation` λ; factors start normally distributed with `start_std`."""

    factors: int
    epochs: int
    rate: float
    regularisation: float
    seed: int
    start_std: float = 0.1


@dataclass(frozen=True, slots=True)
class Factorisation:
    """`users` [u] and `items` [i] are ids in the order of their first rating; all else is in that order, float64.

    `user_bias` [u], `item_bias` [i], `user_factors` [u, f], `item_factors` [i, f].
    """

    users: Array
    items: Array
    mean: float
    user_bias: Array
    item_bias: Array
    user_factors: Array
    item_factors: Array

    def predict(self, users: Array, items: Array) -> Array:
        """r̂ [n] for pairs of ids. Bias and factors of an id that had no rating are 0."""
        user, has_user = _places(self.users, users)
        item, has_item = _places(self.items, items)
        taste = np.einsum("nf,nf->n", self.user_factors[user], self.item_factors[item])
        biases = self.mean + has_user * self.user_bias[user] + has_item * self.item_bias[item]
        return np.asarray(biases + has_user * has_item * taste)


def factorise(ratings: Ratings, descent: Descent, *, with_taste: bool = True) -> Factorisation:
    """Fit by `descent.epochs` passes over the ratings, user after user; without taste only the biases are fitted.

    Raises InvalidContent where the descent diverges.
    """
    users, user = _by_first(ratings.users)
    items, item = _by_first(ratings.items)
    order = np.argsort(user, kind="stable")
    user, item, values = user[order], item[order], ratings.values[order]
    random = np.random.RandomState(descent.seed)
    start = descent.start_std if with_taste else 0.0
    fitted = Factorisation(
        users=users,
        items=items,
        mean=float(np.mean(ratings.values)),
        user_bias=np.zeros(len(users)),
        item_bias=np.zeros(len(items)),
        user_factors=random.normal(0, start, (len(users), descent.factors)),
        item_factors=random.normal(0, start, (len(items), descent.factors)),
    )
    steps = [(user[rows], item[rows], values[rows]) for rows in independent_steps(user, item)]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(descent.epochs):
            for step in steps:
                _descend(fitted, *step, descent.rate, descent.regularisation)
    if not all(np.isfinite(part).all() for part in (fitted.user_factors, fitted.item_factors, fitted.item_bias)):
        raise InvalidContent(f"the descent diverges with a rate of {descent.rate}; say a smaller one")
    return fitted


def _descend(fitted: Factorisation, user: Array, item: Array, values: Array, rate: float, weight: float) -> None:
    """One update for each of some ratings, of which no two share a user or an item."""
    p, q = fitted.user_factors[user], fitted.item_factors[item]
    user_bias, item_bias = fitted.user_bias[user], fitted.item_bias[item]
    error = values - (fitted.mean + user_bias + item_bias + np.einsum("nf,nf->n", q, p))
    fitted.user_bias[user] = user_bias + rate * (error - weight * user_bias)
    fitted.item_bias[item] = item_bias + rate * (error - weight * item_bias)
    column = error[:, np.newaxis]
    fitted.user_factors[user] = p + rate * (column * q - weight * p)
    fitted.item_factors[item] = q + rate * (column * p - weight * q)


def independent_steps(user: Array, item: Array) -> list[Array]:
    """Places of ratings, in steps whose updates may be made at once and still give what one after the other gives.

    An update reads and writes only what is its user's and its item's, so it has to wait only for the ratings before it
    that share one of them: its step is one after the latest of these. (That updates without a common row or column may
    change places: Gemulla, Nijkamp, Haas and Sismanis, KDD 2011.)
    """
    user_step, item_step = [0] * (int(user.max()) + 1), [0] * (int(item.max()) + 1)
    steps = np.empty(len(user), np.int64)
    for place, (one, other) in enumerate(zip(user.tolist(), item.tolist(), strict=True)):
        step = max(user_step[one], item_step[other])
        steps[place] = step
        user_step[one] = item_step[other] = step + 1
    order = np.argsort(steps, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(steps[order])) + 1)


def _by_first(ids: Array) -> tuple[Array, Array]:
    """The distinct ids in the order in which they first come, and for each id its place among them."""
    distinct, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return distinct[order], places[inverse]


def _places(known: Array, ids: Array) -> tuple[Array, Array]:
    """Where each of `ids` stands in `known`, and whether it does; the place of another is 0."""
    order = np.argsort(known)
    found = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    places = order[found]
    is_known = known[places] == ids
    return np.where(is_known, places, 0), is_known
