"""What a version of the recommender says of itself: model.yaml and the card."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes import machine
from recipes.cards import write_card
from recipes.ranking import Ranking
from recipes.ratings import Ratings, Truth
from recipes.recommender_graph import ITEMS, KNOWN, NO_ITEM, SCORES, USER

ALGORITHM = "matrix factorisation with biases (mean + b_u + b_i + q_i · p_u), stochastic gradient descent"
BATCH = 64
TRUTH = Truth()


@dataclass(frozen=True, slots=True)
class Figures:
    """Root mean square errors on the held out ratings, in stars, and lists of `top_k` items: of the model, and of one
    that was fitted without taste (mean and biases alone)."""

    rmse: float
    rmse_biases: float
    ranking: Ranking
    ranking_biases: Ranking
    latency_ms: Mapping[str, float]
    rss_mb: float


def manifest(options: argparse.Namespace) -> dict[str, Any]:
    """All of model.yaml that is known before anything has run."""
    return {
        "schema": 1,
        "name": options.name,
        "version": options.version,
        "task": "tensor",
        "runtime": "onnx",
        "inputs": [{"name": USER, "datatype": "INT64", "shape": [-1]}],
        "outputs": [
            {"name": ITEMS, "datatype": "INT64", "shape": [-1, options.top_k]},
            {"name": SCORES, "datatype": "FP32", "shape": [-1, options.top_k]},
            {"name": KNOWN, "datatype": "BOOL", "shape": [-1]},
        ],
        "batch": {"axis": 0, "max_size": BATCH, "max_wait_ms": 0},
        "limits": {"queue": 1024, "max_run_seconds": 5, "deadline_ms": 10000},
        "processing": {"type": "tensor"},
        "answer": {"type": "tensor"},
        "licence": options.licence,
    }


def training_section(training: Ratings, held_out: Ratings, options: argparse.Namespace) -> dict[str, Any]:
    names = ("factors", "epochs", "rate", "regularisation", "seed", "top_k", "held_out")
    users, items = len(np.unique(training.users)), len(np.unique(training.items))
    count = f"{len(training):,} of {len(training) + len(held_out):,} ratings, of {items:,} items by {users:,} users"
    source = options.ratings.name if options.ratings is not None else _made_up()
    parameters = {name: str(getattr(options, name)) for name in names}
    return {"algorithm": ALGORITHM, "data": f"{count}: {source}", "parameters": parameters}


def _made_up() -> str:
    return (
        f"made up from a seed, of no real people and no real films: mean {TRUTH.mean}, biases of standard deviation "
        f"{TRUTH.user_bias_std} (users) and {TRUTH.item_bias_std} (items), {TRUTH.factors} factors whose product has "
        f"{TRUTH.taste_std}, noise of {TRUTH.noise_std}"
    )


def evaluation_section(figures: Figures, held_out: Ratings, options: argparse.Namespace) -> dict[str, Any]:
    lists = ranking_words(figures.ranking, options.top_k)
    lists_by_biases = ranking_words(figures.ranking_biases, options.top_k)
    return {
        "data": "held out ratings, drawn at random",
        "n": len(held_out),
        "latency_ms": dict(figures.latency_ms),
        "rss_mb": figures.rss_mb,
        "threads": 1,
        **machine.describe_machine(("numpy", "onnx", "onnxruntime")),
        "date": options.date,
        "note": f"RMSE {figures.rmse:.4f}, by the biases alone {figures.rmse_biases:.4f}; {lists}, by the biases alone "
        f"{lists_by_biases}; looked for: {_looked_for(figures, options)}",
    }


def _looked_for(figures: Figures, options: argparse.Namespace) -> str:
    return (
        f"held out items that the user rated {options.relevant} or better, among all that the user has not rated in "
        f"training; mean over the {figures.ranking.users:,} users who have one"
    )


def ranking_words(ranking: Ranking, top_k: int) -> str:
    figures = {"precision": ranking.precision, "recall": ranking.recall, "NDCG": ranking.ndcg}
    return ", ".join(f"{name}@{top_k} {value:.3f}" for name, value in figures.items())


def write_recommender_card(
    directory: Path, figures: Figures, about: Mapping[str, Any], held_out: Ratings, options: argparse.Namespace
) -> None:
    k, times = options.top_k, figures.latency_ms
    noise = f"; the noise in them, which nothing predicts, is {TRUTH.noise_std}" if options.ratings is None else ""
    parameters = ", ".join(f"{key} {value}" for key, value in about["parameters"].items())
    write_card(
        directory / "README.md",
        name=options.name,
        version=options.version,
        summary=f"From a user to the {k} items that the user has not rated and would rate best.",
        task="recommendation (plain tensors)",
        input=f"`{USER}` INT64 [n]: ids of users, as in the ratings",
        output=f"`{ITEMS}` INT64 [n, {k}]: ids, best first; `{SCORES}` FP32 [n, {k}]: the predicted ratings; `{KNOWN}` "
        "BOOL [n]: whether the user had ratings in training",
        licence=options.licence,
        recipe="`recipes/recommender.py`",
        bytes=(directory / "model.onnx").stat().st_size,
        measured=[
            ("Data", f"{len(held_out):,} held out ratings, drawn at random"),
            ("RMSE", f"{figures.rmse:.4f} (by the biases alone {figures.rmse_biases:.4f}){noise}"),
            (f"Lists of {k}", ranking_words(figures.ranking, k)),
            ("The same by the biases alone", ranking_words(figures.ranking_biases, k)),
            ("What is looked for", _looked_for(figures, options)),
            ("One user, one thread", f"p50 {times['p50']} ms, p95 {times['p95']} ms in process"),
            ("CPU", machine.describe_machine(())["cpu"]),
        ],
        origin=f"{about['data']}. {ALGORITHM[0].upper()}{ALGORITHM[1:]}; {parameters}.",
        limits=_limits(options),
    )


def _limits(options: argparse.Namespace) -> str:
    is_made_up = options.ratings is None
    example = "An example of how to serve recommendations: its users and items do not exist. " if is_made_up else ""
    return (
        f"{example}It knows the ratings that it was trained on, and no later ones. A user who had none gets the items "
        f"that all rate best, and `{KNOWN}` says false. Where fewer than {options.top_k} items are left for a user, "
        f"the last are {NO_ITEM}, without a score. Scores are not cut to the scale of the ratings."
    )
