"""Which answers are right: the photos that go with the model and rows whose class is known; a wrong one voids a row."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import httpx

from bench.wires import Wire
from bench.workloads import PHOTO_MODEL, photo

TINY_LABELS = ("first", "second", "third")
# The weights are the identity, so that the largest of the first three is the class.
ROWS = (([5.1, 3.5, 1.4, 0.2], "first"), ([0.5, 3.0, 1.0, 9.0], "second"), ([-1.0, 0.25, 2.0, 0.0], "third"))


def find_fault(url: str, wire: Wire, key: str) -> str | None:
    """What is wrong with a server's answers to workload `key`, or None."""
    labels = TINY_LABELS if key == "c" else _photo_labels()
    for name, item, expected in _known_rows() if key == "c" else _known_photos():
        answer = httpx.post(
            url + wire.path, content=wire.encode(item), headers={"content-type": wire.content_type}, timeout=30
        )
        if answer.status_code != 200:
            return f"answers {answer.status_code} to {name}"
        found = find_label(answer.text, labels)
        if found is None or expected not in (found, found.split()[-1]):
            return f"says {found} to {name}, which is {expected}"
    return None


def find_label(text: str, labels: Collection[str]) -> str | None:
    """The first JSON string in an answer that is a label: the likeliest, whatever the protocol around it."""
    strings = (json.loads(found) for found in re.findall(r'"(?:[^"\\]|\\.)*"', text))
    return next((string for string in strings if string in labels), None)


def _photo_labels() -> Collection[str]:
    return frozenset((PHOTO_MODEL / "labels.txt").read_text(encoding="utf-8").splitlines())


def _known_photos() -> Iterator[tuple[str, bytes, str]]:
    """The golden photos with their labels, and the photo that is sent under load, which is a cat of either kind."""
    labels = (PHOTO_MODEL / "labels.txt").read_text(encoding="utf-8").splitlines()
    golden: dict[str, Any] = json.loads((PHOTO_MODEL / "golden/golden.json").read_text(encoding="utf-8"))
    for request in golden["requests"]:
        name = request["image"]
        yield name, (PHOTO_MODEL / "golden" / name).read_bytes(), labels[request["top"][0]["index"]]
    yield "the photo of the workload", photo(), "cat"


def _known_rows() -> Iterator[tuple[str, list[float], str]]:
    for row, expected in ROWS:
        yield str(row), row, expected
