"""Ratings of items by users: read from any file in MovieLens' format, made up with known factors, split, written."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import InvalidContent
from app.tensors import Array

_ID = re.compile(r"\d{1,18}", re.ASCII)
_CSV_COLUMNS = ("userid", "movieid", "rating")


@dataclass(frozen=True, slots=True)
class Ratings:
    """One rating a place, in the order of the file: ids as they stand there [n] int64, values [n] float64."""

    users: Array
    items: Array
    values: Array

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Array) -> Ratings:
        return Ratings(self.users[rows], self.items[rows], self.values[rows])

    def sorted(self) -> Ratings:
        """By user, and of a user by item."""
        return self.take(np.lexsort((self.items, self.users)))


def read_ratings(path: Path) -> Ratings:
    """A file of MovieLens: ratings.dat (`user::item::rating::time`), u.data (separated by tabs), or ratings.csv with
    its header. The first line tells which; the time may be missing and is not read.

    Raises InvalidContent, naming the line, for what is not of the format, and where a user rates an item twice.
    """
    users, items, lines, values = array("q"), array("q"), array("q"), array("d")
    for number, (user, item, value) in _fields(path):
        try:
            users.append(_id(user))
            items.append(_id(item))
            values.append(_rating(value))
        except ValueError as exc:
            raise InvalidContent(f"{path}: line {number}: {exc}") from exc
        lines.append(number)
    if not values:
        raise InvalidContent(f"{path}: holds no ratings; write one a line, as 1::1193::5::978300760")
    ratings = Ratings(np.array(users, np.int64), np.array(items, np.int64), np.array(values, np.float64))
    _refuse_repeats(path, ratings, np.array(lines, np.int64))
    return ratings


def _refuse_repeats(path: Path, ratings: Ratings, lines: Array) -> None:
    order = np.lexsort((lines, ratings.items, ratings.users))
    user, item = ratings.users[order], ratings.items[order]
    repeats = np.flatnonzero((user[1:] == user[:-1]) & (item[1:] == item[:-1]))
    if len(repeats):
        earlier, later = order[repeats[0]], order[repeats[0] + 1]
        raise InvalidContent(
            f"{path}: line {lines[later]}: user {ratings.users[later]} has rated item {ratings.items[later]} in line "
            f"{lines[earlier]} already; keep one"
        )


def _fields(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """The number of each line that is not blank, and its user, item and rating as text."""
    separator, columns = "", (0, 1, 2)
    for number, line in _lines(path):
        parts = line.split(separator) if separator else []
        if not separator:
            separator = _separator(path, line)
            parts = line.split(separator)
            if separator == ",":
                columns = _csv_columns(path, number, parts)
                continue
        if len(parts) <= max(columns):
            raise InvalidContent(
                f"{path}: line {number}: has {len(parts)} fields separated by {separator!r}, and user, item and rating "
                "are needed"
            )
        yield number, [parts[column].strip() for column in columns]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    yield number, text
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc
    except UnicodeDecodeError as exc:
        raise InvalidContent(f"{path}: is no text file; unpack an archive first") from exc


def _separator(path: Path, line: str) -> str:
    for separator in ("::", "\t", ","):
        if separator in line:
            return separator
    raise InvalidContent(
        f"{path}: is not in MovieLens' format: write user::item::rating::time, the same separated by tabs, or a CSV "
        "file with the header userId,movieId,rating,timestamp"
    )


def _csv_columns(path: Path, number: int, header: Sequence[str]) -> tuple[int, int, int]:
    names = [name.strip().strip('"').lower() for name in header]
    missing = [name for name in _CSV_COLUMNS if name not in names]
    if missing:
        raise InvalidContent(
            f"{path}: line {number}: a CSV file begins with the header userId,movieId,rating,timestamp; this one lacks "
            f"{', '.join(missing)}"
        )
    user, item, rating = (names.index(name) for name in _CSV_COLUMNS)
    return user, item, rating


def _id(text: str) -> int:
    if not _ID.fullmatch(text):
        raise ValueError(f"{text!r} is no id; users and items are whole numbers from 0 on, of at most 18 digits")
    return int(text)


def _rating(text: str) -> float:
    try:
        value = float(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is no rating; write a number, as 3.5") from exc
    if not np.isfinite(value):
        raise ValueError(f"{text!r} is no rating; write a finite number")
    return value


def split(ratings: Ratings, share: float, seed: int) -> tuple[Ratings, Ratings]:
    """Each rating is held out with probability `share`; what is left for training, and what is held out.

    Raises InvalidContent where one of the two would be empty.
    """
    is_held_out = np.random.default_rng(seed).random(len(ratings)) < share
    if is_held_out.all() or not is_held_out.any():
        raise InvalidContent(f"{len(ratings)} ratings are too few to hold out {share:.0%} of them")
    return ratings.take(~is_held_out), ratings.take(is_held_out)


@dataclass(frozen=True, slots=True)
class Truth:
    """What made-up ratings are made of: r = mean + user bias + item bias + item factors · user factors + noise."""

    users: int = 600
    items: int = 400
    factors: int = 4
    mean: float = 3.0
    user_bias_std: float = 0.3
    item_bias_std: float = 0.4
    taste_std: float = 0.5  # of the product of the factors
    noise_std: float = 0.3
    fewest: int = 60  # ratings of one user
    most: int = 180


def make_up(truth: Truth, seed: int) -> Ratings:
    """Seeded ratings that follow `truth`, to two decimals, in random order; ids count from 1. Nobody's opinions."""
    random = np.random.default_rng(seed)
    factor_std = (truth.taste_std**2 / truth.factors) ** 0.25
    user_bias = random.normal(0, truth.user_bias_std, truth.users)
    item_bias = random.normal(0, truth.item_bias_std, truth.items)
    user_factors = random.normal(0, factor_std, (truth.users, truth.factors))
    item_factors = random.normal(0, factor_std, (truth.items, truth.factors))
    counts = random.integers(truth.fewest, truth.most + 1, truth.users)
    users = np.repeat(np.arange(truth.users), counts)
    items = np.concatenate([random.choice(truth.items, count, replace=False) for count in counts])
    taste = np.einsum("nf,nf->n", user_factors[users], item_factors[items])
    noise = random.normal(0, truth.noise_std, len(users))
    values = np.round(truth.mean + user_bias[users] + item_bias[items] + taste + noise, 2)
    order = random.permutation(len(users))
    return Ratings(users + 1, items + 1, values).take(order)


def write_ratings(path: Path, ratings: Ratings) -> None:
    """In the format of ratings.dat, without times."""
    rows = zip(ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist(), strict=True)
    path.write_text("".join(f"{user}::{item}::{value}\n" for user, item, value in rows), encoding="utf-8")
