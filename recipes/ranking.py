"""How good lists of recommended items are, held against ratings that the model has not seen."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from app.tensors import Array
from recipes.ratings import Ratings


@dataclass(frozen=True, slots=True)
class Ranking:
    """Means over `users`, those who have a relevant item; each in 0…1."""

    precision: float
    recall: float
    ndcg: float
    users: int


def relevant_items(held_out: Ratings, least: float) -> dict[int, set[int]]:
    """The items that each user rated `least` or better, for users who have one."""
    relevant: dict[int, set[int]] = defaultdict(set)
    liked = held_out.take(held_out.values >= least)
    for user, item in zip(liked.users.tolist(), liked.items.tolist(), strict=True):
        relevant[user].add(item)
    return dict(relevant)


def rate_lists(recommended: Array, relevant: list[set[int]]) -> Ranking:
    """`recommended` [users, k] item ids, best first; `relevant` the same users' items, none empty.

    Precision is hits / k, recall hits / relevant items, NDCG that of binary gains with discount log₂(1 + place)
    (Järvelin and Kekäläinen 2002). An item that the user never rated counts as a miss, so all three are lower bounds
    (Cremonesi, Koren and Turrin 2010).
    """
    places = recommended.shape[1]
    rows = zip(recommended.tolist(), relevant, strict=True)
    hits = np.array([[item in liked for item in row] for row, liked in rows], np.float64).reshape(-1, places)
    sizes = np.array([len(liked) for liked in relevant])
    discounts = 1 / np.log2(np.arange(places) + 2)
    ideal = np.cumsum(discounts)[np.minimum(sizes, places) - 1]
    return Ranking(
        precision=float(np.mean(hits.sum(axis=1) / places)),
        recall=float(np.mean(hits.sum(axis=1) / sizes)),
        ndcg=float(np.mean(hits @ discounts / ideal)),
        users=len(relevant),
    )
