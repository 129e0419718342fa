"""Confidences of several classifiers to those of one: mean, votes, and which rows a classifier is sure of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.tensors import Array


def average(confidences: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted arithmetic mean of arrays of one shape, [rows, classes]."""
    total = sum(weights)
    return np.asarray(
        sum(weight / total * one.astype(np.float64) for one, weight in zip(confidences, weights, strict=True))
    )


def vote(confidences: Sequence[Array], weights: Sequence[float]) -> Array:
    """The share of the weights whose classifier has each class first, [rows, classes].

    Of classes with equal shares the one with the highest mean confidence comes first, by one unit in the last place.
    A classifier whose row has a value that is not finite has no vote in it; without any vote the row is NaN.
    """
    shape = confidences[0].shape
    votes, voters, rows = np.zeros(shape), np.zeros(len(confidences[0])), np.arange(len(confidences[0]))
    means = np.zeros(shape)
    for one, weight in zip(confidences, weights, strict=True):
        is_finite = np.asarray(np.isfinite(one).all(axis=1))
        first = np.where(is_finite[:, np.newaxis], one, 0).argmax(axis=1)
        votes[rows, first] += weight * is_finite
        voters += weight * is_finite
        means += weight * np.where(is_finite[:, np.newaxis], one, 0)
    with np.errstate(invalid="ignore"):
        shares = (votes / voters[:, np.newaxis]).astype(np.float32)
    leads = shares == shares.max(axis=1, keepdims=True)
    winner = np.where(leads, means, -1).argmax(axis=1)
    is_tie = leads.sum(axis=1) > 1
    shares[is_tie, winner[is_tie]] = np.nextafter(shares[is_tie, winner[is_tie]], np.float32(1))
    return shares


def is_sure(confidences: Array, least: float) -> Array:
    """For each row, whether its highest confidence reaches `least`; never where a value is not finite."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(confidences).all(axis=1) & (confidences.max(axis=1) >= least))
