"""Names people know for the 1000 classes of ImageNet-1k.

Source: the WordNet lemmas of each class's synset, in ImageNet's order of classes, as the package skl2onnx carries
them (`skl2onnx.tutorial.imagenet_classes`, Apache-2.0). WordNet lists the commonest lemma first.
The rule: the first lemma, unless a later one of the same synset extends it with a word (tabby → tabby cat, mouse →
computer mouse), which says more to one who does not see the other classes. Two short tables below hold what the
rule does not get right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# The extended lemma is the rarer name of the same thing (pizza pie, prison house).
KEEP_FIRST = frozenset({103, 105, 401, 497, 558, 632, 688, 743, 851, 944, 963})

# Two classes of one name, and two whose commonest name is a later lemma.
NAMED: Mapping[int, str] = {
    134: "crane (bird)",
    437: "lighthouse",
    517: "crane (machine)",
    639: "tank suit",
    897: "washing machine",
}


def imagenet_labels() -> list[str]:
    """1000 names, all different even without regard to case. Raises ValueError where the source has changed."""
    from skl2onnx.tutorial.imagenet_classes import class_names

    labels = [choose_name(index, split_lemmas(class_names[index])) for index in range(len(class_names))]
    distinct = {label.casefold() for label in labels}
    if len(labels) != 1000 or len(distinct) != len(labels):
        raise ValueError(f"expected 1000 different names, got {len(labels)}, {len(distinct)} of them different")
    return labels


def split_lemmas(entry: str) -> list[str]:
    """`"tabby, tabby_cat"` → `["tabby", "tabby cat"]`."""
    return [lemma.replace("_", " ").strip() for lemma in entry.split(",")]


def choose_name(index: int, lemmas: Sequence[str]) -> str:
    """The name of class `index` among its synset's lemmas."""
    if index in NAMED:
        return NAMED[index]
    first = lemmas[0]
    if index in KEEP_FIRST:
        return first
    return next((lemma for lemma in lemmas[1:] if _extends(lemma, first)), first)


def _extends(lemma: str, first: str) -> bool:
    """Whether `lemma` is `first` with a word more; "Canis dingo" is a species' name, not a longer "dingo"."""
    if lemma.startswith(first + " "):
        return True
    return " " not in first and lemma.count(" ") == 1 and lemma[0].islower() and lemma.endswith(" " + first)
