"""Adds up counts of bins, and keeps apart what cannot be added: features whose counts have another length."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

MINUTE_MS = 60_000
HOUR_MS = 3_600_000

Counts = Mapping[str, Sequence[int]]


class Sum:
    """The counts of `parts` rows of minutes, by feature; a row need not have them all."""

    def __init__(self, parts: int, counts: Counts) -> None:
        self.parts = parts
        self.counts: dict[str, Sequence[int]] = dict(counts)

    def fits(self, counts: Counts) -> bool:
        """Whether each feature that both have has one length."""
        return all(len(self.counts.get(name, values)) == len(values) for name, values in counts.items())

    def add(self, parts: int, counts: Counts) -> None:
        """`counts` fit."""
        self.parts += parts
        for name, values in counts.items():
            own = self.counts.get(name)
            self.counts[name] = values if own is None else [*map(sum, zip(own, values, strict=True))]


def add_to(sums: list[Sum], parts: int, counts: Counts) -> None:
    """To the first sum that they fit; they begin another one where they fit none."""
    for found in sums:
        if found.fits(counts):
            found.add(parts, counts)
            return
    sums.append(Sum(parts, counts))


def usual_lengths(sums: Iterable[Sum]) -> dict[str, int]:
    """Of each feature the length that most rows have, of equals that which came last."""
    parts: dict[str, Counter[int]] = {}
    for found in sums:
        for name, values in found.counts.items():
            lengths = parts.setdefault(name, Counter())
            # Taken out and put back at the end, so that the order tells which came last.
            lengths[len(values)] = lengths.pop(len(values), 0) + found.parts
    return {name: max(reversed(lengths), key=lambda length: lengths[length]) for name, lengths in parts.items()}


def dump_counts(counts: Counts) -> str:
    """Compact JSON; numpy's numbers are taken, too."""
    plain = {name: [int(value) for value in values] for name, values in counts.items()}
    return json.dumps(plain, separators=(",", ":"))


def load_counts(text: str) -> dict[str, list[int]] | None:
    """What `dump_counts` gave; None where it is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    if not all(isinstance(values, list) and {*map(type, values)} <= {int} for values in found.values()):
        return None
    return found
