"""Builds models/recommender 1.0.0: from a user to the items that the user has not rated and would rate best.

    pip install -e '.[recipes]'
    python recipes/recommender.py
    python recipes/recommender.py --ratings ml-1m/ratings.dat --name films --factors 50 --epochs 30

Without --ratings it is trained on seeded ratings that are made up of known factors and noise: the licences of
MovieLens' data sets do not permit to ship what is made of them. Data, split and seed are fixed, so that one machine
gives one digest.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime

from app import load
from app.errors import HeadwayError, InvalidContent
from app.processing.tensor import tensors_to_json
from app.registry.versions import MODEL_NAME, is_version
from app.tensors import Array
from recipes import machine, registry
from recipes.factorisation import Descent, Factorisation, factorise
from recipes.ranking import Ranking, rate_lists, relevant_items
from recipes.ratings import Ratings, make_up, read_ratings, split
from recipes.recommender_card import (
    BATCH,
    TRUTH,
    Figures,
    evaluation_section,
    manifest,
    ranking_words,
    training_section,
    write_recommender_card,
)
from recipes.recommender_graph import ITEMS, SCORES, USER, to_onnx

NAME, VERSION, LICENCE = "recommender", "1.0.0", "Apache-2.0"
GOLDEN = {"golden": {"file": "golden/golden.json", "tolerance": 0.001}}
GOLDEN_USERS = 5


def main(arguments: list[str] | None = None) -> None:
    options = _parse_options(arguments)
    try:
        figures = run(options)
    except HeadwayError as exc:
        raise SystemExit(f"error: {exc}") from exc
    sys.stdout.write(
        f"{options.name}@{options.version}: RMSE {figures.rmse:.4f} on held out ratings ({figures.rmse_biases:.4f} by "
        f"the biases alone), {ranking_words(figures.ranking, options.top_k)}\n"
    )


def run(options: argparse.Namespace) -> Figures:
    """Train, build, measure, publish. Raises InvalidContent for options and files that cannot be used."""
    _check(options)
    ratings = read_ratings(options.ratings) if options.ratings is not None else make_up(TRUTH, options.seed)
    # By user and item: as good an order as any, and one that leaves many updates independent of each other.
    training, held_out = split(ratings.sorted(), options.held_out, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "models", options.name, options.version)
        directory.mkdir(parents=True)
        figures = build(directory, training, held_out, options)
        registry.publish(directory, options.models / options.name / options.version)
    if not (options.models / options.name / "release.yaml").exists():
        registry.write_release(options.models / options.name, options.version)
    return figures


def build(directory: Path, training: Ratings, held_out: Ratings, options: argparse.Namespace) -> Figures:
    """Make and measure the version in `directory`, which is NAME/VERSION of a registry."""
    descent = Descent(options.factors, options.epochs, options.rate, options.regularisation, options.seed)
    fitted, biases = factorise(training, descent), factorise(training, descent, with_taste=False)
    if options.top_k > len(fitted.items):
        raise InvalidContent(f"--top-k {options.top_k}: there are {len(fitted.items)} items; say at most as many")
    content = to_onnx(fitted, training, options.top_k)
    (directory / "model.onnx").write_bytes(content)
    registry.write_version(directory, manifest(options))
    relevant = relevant_items(held_out, options.relevant)
    if not relevant:
        raise InvalidContent(f"--relevant {options.relevant}: no held out rating is as good; say a smaller number")
    figures = Figures(
        rmse=root_mean_square_error(fitted, held_out),
        rmse_biases=root_mean_square_error(biases, held_out),
        ranking=_rank(content, relevant),
        ranking_biases=_rank(to_onnx(biases, training, options.top_k), relevant),
        latency_ms=_latency(directory, fitted.users),
        rss_mb=machine.loaded_rss_mb(directory.parents[1], f"{options.name}@{options.version}"),
    )
    record_golden(directory, fitted.users)
    about = training_section(training, held_out, options)
    evaluation = evaluation_section(figures, held_out, options)
    registry.write_version(directory, manifest(options) | GOLDEN | {"training": about, "evaluation": [evaluation]})
    write_recommender_card(directory, figures, about, held_out, options)
    load(f"{options.name}@{options.version}", models=directory.parents[1])  # checked as a server checks it
    return figures


def root_mean_square_error(fitted: Factorisation, ratings: Ratings) -> float:
    return float(np.sqrt(np.mean((fitted.predict(ratings.users, ratings.items) - ratings.values) ** 2)))


def _rank(content: bytes, relevant: Mapping[int, set[int]]) -> Ranking:
    """What the graph recommends to each user who has relevant items, held against these."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    users = np.array(sorted(relevant), np.int64)
    batches = [users[first : first + BATCH] for first in range(0, len(users), BATCH)]
    recommended = np.vstack([session.run([ITEMS], {USER: batch})[0] for batch in batches])
    return rate_lists(recommended, [relevant[user] for user in users.tolist()])


def _latency(directory: Path, users: Array) -> dict[str, float]:
    """Percentiles of one user at a time on one thread, in ms."""
    model = load(f"{directory.parent.name}@{directory.name}", models=directory.parents[1])
    times = []
    for user in np.resize(users, 1000):
        started = time.perf_counter()
        model.predict(user)
        times.append((time.perf_counter() - started) * 1e3)
    return {f"p{p}": round(float(np.percentile(times, p)), 3) for p in (50, 95)}


def record_golden(directory: Path, users: Array) -> None:
    """What the version answers to some users, and to one whom it does not know.

    Those of a thousand are taken whose lists have the most distance between one place and the next, so that no rounding
    of another CPU makes items change places.
    """
    model = load(f"{directory.parent.name}@{directory.name}", models=directory.parents[1])
    few = np.sort(users)[:1000]
    scores = np.nan_to_num(model.predict(few)[SCORES])  # of places without an item, the least number: all alike
    distance = -np.diff(scores, axis=1).max(axis=1, initial=-np.inf)
    asked = [*few[np.argsort(-distance, kind="stable")[:GOLDEN_USERS]].tolist(), int(users.max()) + 1]
    requests = []
    for user in asked:
        outputs, _ = tensors_to_json(model.predict([user]))
        requests.append({"inputs": [user], "outputs": outputs})
    registry.write_golden(directory, requests)


def _check(options: argparse.Namespace) -> None:
    """Raises InvalidContent naming the option."""
    if not MODEL_NAME.fullmatch(options.name) or not is_version(options.version):
        raise InvalidContent(f"--name {options.name}, --version {options.version}: write them as films and 1.0.0")
    for option in ("top_k", "factors", "epochs"):
        if getattr(options, option) < 1:
            raise InvalidContent(f"--{option.replace('_', '-')} {getattr(options, option)}: say at least 1")
    if not 0 < options.held_out < 1:
        raise InvalidContent(f"--held-out {options.held_out}: is a share between 0 and 1, as 0.2")
    if not 0 < options.rate < 1 or not 0 <= options.regularisation < 1:
        raise InvalidContent("--rate is between 0 and 1, as 0.01; --regularisation from 0 to below 1, as 0.02")
    if options.ratings is not None and (options.models / options.name / options.version).exists():
        raise InvalidContent(
            f"{options.name}@{options.version} is in {options.models} already; a version never changes: say another "
            "--name or --version"
        )


def _parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="the registry to write to")
    parser.add_argument("--ratings", type=Path, metavar="FILE", help="ratings.dat, u.data or ratings.csv of MovieLens")
    parser.add_argument("--name", default=NAME, help="of the model")
    parser.add_argument("--version", default=VERSION)
    parser.add_argument("--licence", help=f"of the model [{LICENCE} where the ratings are made up, else unknown]")
    parser.add_argument("--top-k", type=int, default=10, help="how many items an answer has")
    parser.add_argument("--factors", type=int, default=TRUTH.factors)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=0.01, help="of learning")
    parser.add_argument("--regularisation", type=float, default=0.02)
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the ratings that is measured on")
    parser.add_argument("--relevant", type=float, default=4.0, help="the least rating of an item that is looked for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date of the evaluation")
    options = parser.parse_args(arguments)
    options.licence = options.licence or (LICENCE if options.ratings is None else "unknown")
    return options


if __name__ == "__main__":
    main()
