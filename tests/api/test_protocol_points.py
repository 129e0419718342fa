"""What real clients need of the wire, point by point: each has a test that ends in its number."""

from __future__ import annotations

import re

from tests.running import ROOT

# 26 is other servers' own protocols (TorchServe, OpenAI, TensorFlow Serving's gRPC), which Headway does not speak.
POINTS = set(range(1, 31)) - {26}


def test_each_point_has_a_test() -> None:
    names = [
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    ]
    ends = [match[0] for name in names if (match := re.search(r"(_p\d+)+$", name))]
    assert {int(number) for end in ends for number in re.findall(r"\d+", end)} == POINTS
