from __future__ import annotations

import pytest

from recipes.labels import choose_name, split_lemmas

UNNAMED = 0  # a class that stands in neither of the two tables


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("tabby, tabby_cat", "tabby cat"),
        ("mouse, computer mouse", "computer mouse"),
        ("Cardigan, Cardigan Welsh corgi", "Cardigan Welsh corgi"),
        ("dingo, warrigal, warragal, Canis dingo", "dingo"),
        ("gorilla, Gorilla gorilla", "gorilla"),
        ("aircraft carrier, carrier, flattop, attack aircraft carrier", "aircraft carrier"),
        ("goldfish, Carassius auratus", "goldfish"),
        ("hen", "hen"),
    ],
)
def test_name_is_the_first_lemma_or_what_extends_it(entry: str, name: str) -> None:
    assert choose_name(UNNAMED, split_lemmas(entry)) == name


@pytest.mark.parametrize(
    ("index", "entry", "name"),
    [
        (963, "pizza, pizza pie", "pizza"),
        (134, "crane", "crane (bird)"),
        (517, "crane", "crane (machine)"),
        (639, "maillot, tank suit", "tank suit"),
    ],
)
def test_name_from_the_tables(index: int, entry: str, name: str) -> None:
    assert choose_name(index, split_lemmas(entry)) == name
