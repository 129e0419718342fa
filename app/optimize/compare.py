"""Versions side by side on the same labelled images: how right, how quick, how large, which differences are noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.engine.inference import Inference
from app.errors import InvalidContent
from app.monitoring.quality import ClassScores, score_classes, wilson_interval
from app.optimize.evaluate import (
    Confusion,
    Evaluation,
    Record,
    Sample,
    find_readable,
    record_together,
)
from app.optimize.footprint import Memory, measure_memory
from app.registry.servables.composed import Composed
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Resolved, Servable
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef

NOISE_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one version. `top1_interval` is Wilson's, of 95 %. `size_bytes`: the files that its model.yaml lists, of a
    composition also those of its steps. `memory` is None where it cannot be measured (not Linux), `rating` where there
    is none. `matrix`: how often each class was taken for which, the right answers included."""

    evaluation: Evaluation
    top1_interval: tuple[float, float]
    size_bytes: int
    memory: Memory | None
    rating: float | None
    classes: tuple[ClassScores, ...]
    matrix: tuple[Confusion, ...]

    @property
    def name(self) -> str:
        return f"{self.evaluation.model}@{self.evaluation.version}"


@dataclass(frozen=True, slots=True)
class Difference:
    """`other` against `first` on the `n` images that both could read. `top1` is the gain in accuracy, in -1…1."""

    first: str
    other: str
    n: int
    top1: float
    only_first_right: int
    only_other_right: int
    p_value: float

    @property
    def is_noise(self) -> bool:
        return self.p_value >= NOISE_LEVEL


@dataclass(frozen=True, slots=True)
class Comparison:
    """`labels` are those of all versions, in the order of the class index."""

    labels: tuple[str, ...]
    images: int
    threads: int
    versions: tuple[Figures, ...]
    differences: tuple[Difference, ...]

    def describe(self) -> dict[str, Any]:
        """For JSON. Classes are named by their labels."""
        return {
            "images": self.images,
            "threads": self.threads,
            "versions": [_describe(figures, self.labels) for figures in self.versions],
            "differences": [asdict(entry) | {"is_noise": entry.is_noise} for entry in self.differences],
        }


def open_versions(store: Store, refs: Sequence[ModelRef], threads: int) -> list[Resolved]:
    """Load image classifiers that can be compared. Raises InvalidContent where they cannot, ModelNotFound and kin."""
    opener = Opener(store, threads)
    opened: list[Resolved] = []
    for ref in refs:
        resolved = opener.open(ref)
        if resolved.servable.kind != "image" or resolved.servable.classification is None:
            raise InvalidContent(f"{ref} is no image classifier: compare takes labelled images")
        for before, earlier in zip(refs, opened, strict=False):
            if earlier.servable is resolved.servable:
                raise InvalidContent(f"{before} and {ref} are one version, {_name(earlier.servable)}; name another")
        opened.append(resolved)
    for other in opened[1:]:
        _check_labels(opened[0].servable, other.servable)
    return opened


def compare(
    store: Store,
    versions: Sequence[Resolved],
    samples: Sequence[Sample],
    *,
    threads: int = 1,
    ratings: Mapping[str, float] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Measure what `open_versions` gave, each image with all of them in turn, in another order for each image.

    `ratings` by name@version. Raises InvalidContent where a version can read no image, RunFailed where one fails.
    """
    inference = Inference(Registry(store))
    images = [find_readable(inference, version, samples) for version in versions]
    names = [_name(version.servable) for version in versions]
    memories = [
        measure_memory(version.servable.directory, store, photo=image, threads=threads)
        for version, image in zip(versions, images, strict=True)
    ]
    records = record_together(inference, versions, samples, progress)
    classification = versions[0].servable.classification
    assert classification is not None
    labels = tuple(classification.labels)
    figures = [
        _figures(record, samples, labels, memory, (ratings or {}).get(name))
        for record, memory, name in zip(records, memories, names, strict=True)
    ]
    differences = [_difference(records[0], other, samples) for other in records[1:]]
    return Comparison(labels, len(samples), threads, tuple(figures), tuple(differences))


def mcnemar_p_value(only_first: int, only_other: int) -> float:
    """Two-sided exact p-value that two versions err equally often, from the images that only one has right.

    Q. McNemar, 1947, Psychometrika 12, 153-157; in the exact form each of these images is the toss of a fair coin.
    """
    n, term, total = only_first + only_other, 1, 0
    for count in range(min(only_first, only_other) + 1):
        total += term
        term = term * (n - count) // (count + 1)
    return min(1.0, 2 * total / (1 << n))


def format_bytes(count: int) -> str:
    """In decimal units: 4358 is 4.4 kB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _name(servable: Servable) -> str:
    return f"{servable.name}@{servable.version}"


def _check_labels(first: Servable, other: Servable) -> None:
    """Raises InvalidContent with the first class that has another label."""
    assert first.classification is not None
    assert other.classification is not None
    ours, theirs = first.classification.labels, other.classification.labels
    names = f"{_name(first)} and {_name(other)} cannot be compared"
    if len(ours) != len(theirs):
        raise InvalidContent(f"{names}: they have {len(ours)} and {len(theirs)} labels")
    for index, pair in enumerate(zip(ours, theirs, strict=True)):
        if pair[0] != pair[1]:
            raise InvalidContent(f"{names}: class {index} is {pair[0]!r} in one and {pair[1]!r} in the other")


def _figures(
    record: Record, samples: Sequence[Sample], labels: Sequence[str], memory: Memory | None, rating: float | None
) -> Figures:
    pairs = [(samples[number].class_index, predicted) for number, predicted in record.predicted.items()]
    actual, predicted = np.array(pairs).T
    cells = sorted(Counter(pairs).items())
    return Figures(
        evaluation=record.summarise(),
        top1_interval=wilson_interval(int(np.sum(actual == predicted)), len(pairs)),
        size_bytes=sum(
            entry.bytes for part in set(_parts(record.resolved.servable)) for entry in part.manifest.files.values()
        ),
        memory=memory,
        rating=rating,
        classes=score_classes(predicted, actual),
        matrix=tuple(Confusion(labels[a], labels[p], count) for (a, p), count in cells),
    )


def _parts(servable: Servable) -> Iterator[Servable]:
    yield servable
    if isinstance(servable, Composed):
        for step in servable.lease().steps:
            yield from _parts(step.servable)


def _difference(first: Record, other: Record, samples: Sequence[Sample]) -> Difference:
    both = sorted(first.predicted.keys() & other.predicted.keys())
    right = [
        (first.predicted[number] == samples[number].class_index, other.predicted[number] == samples[number].class_index)
        for number in both
    ]
    only_first, only_other = right.count((True, False)), right.count((False, True))
    return Difference(
        first=_name(first.resolved.servable),
        other=_name(other.resolved.servable),
        n=len(both),
        top1=(only_other - only_first) / len(both) if both else 0.0,
        only_first_right=only_first,
        only_other_right=only_other,
        p_value=mcnemar_p_value(only_first, only_other),
    )


def _describe(figures: Figures, labels: Sequence[str]) -> dict[str, Any]:
    content = asdict(figures.evaluation) | asdict(figures)
    del content["evaluation"], content["confusions"]
    for entry in content["classes"]:
        entry["label"] = labels[entry.pop("index")]
    return content
