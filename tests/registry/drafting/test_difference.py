"""What a step from one version to the next must be called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.registry.drafting.difference import Bump, Content, base_of, bump_between, bumped, compare, needed_bump
from app.registry.manifest import read_manifest
from app.registry.versions import Version
from tests.fixtures_models import onnx_bytes, write_model

X4 = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
LIMITED = [{"name": "x", "datatype": "FP32", "shape": [-1, 3], "values": {"range": {"action": "reject", "low": 0}}}]
X64 = [{"name": "x", "datatype": "FP64", "shape": [-1, 3]}]
Y = [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
ONE_ROW = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 3]}],
}
BOTH = [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in "ab"]
GOLDEN = {"golden": {"file": "golden.json", "tolerance": 0.1}, "files": {"golden.json": b"{}"}}
PHOTO = {"type": "image", "resize": 5, "crop": 4}

RULES: dict[str, tuple[Bump, str, dict[str, Any], dict[str, Any]]] = {
    "nothing": (Bump.NONE, "scores", {}, {}),
    "input shape": (Bump.MAJOR, "scores", {}, {"inputs": X4}),
    "input datatype": (Bump.MAJOR, "scores", {}, {"inputs": X64}),
    "output name": (Bump.MAJOR, "scores", {}, {"outputs": Y, "answer": {"output": "y"}}),
    "another input": (Bump.MAJOR, "scores", {}, {"inputs": [*X4, *BOTH]}),
    "inputs in another order": (Bump.NONE, "two_inputs", {"inputs": BOTH}, {"inputs": BOTH[::-1]}),
    "rows one by one": (Bump.NONE, "scores", {}, ONE_ROW),
    "rows no longer each for itself": (Bump.MAJOR, "scores", {}, {**ONE_ROW, "batch": {"axis": None}}),
    "task": (Bump.MAJOR, "scores", {}, {"task": "text-classification"}),
    "answer": (Bump.MAJOR, "positive", {}, {"answer": {"type": "regression", "output": "is_positive"}}),
    "unit": (Bump.MAJOR, "sum", {"answer": {"unit": "m"}}, {"answer": {"unit": "km"}}),
    "label renamed": (Bump.MAJOR, "scores", {}, {"files": {"labels.txt": b"low\nmedium\nhigh\n"}}),
    "labels in another order": (Bump.MAJOR, "scores", {}, {"files": {"labels.txt": b"high\nmiddle\nlow\n"}}),
    "labels written otherwise": (Bump.PATCH, "scores", {}, {"files": {"labels.txt": b"low\r\nmiddle\r\nhigh"}}),
    "weights": (Bump.MINOR, "scores", {}, {"files": {"model.onnx": onnx_bytes("scores") + b"\x00"}}),
    "weights beside": (Bump.MINOR, "scores", {}, {"files": {"weights.bin": b"x"}}),
    "processing": (Bump.PATCH, "colour", {}, {"processing": PHOTO}),
    "activation": (Bump.PATCH, "scores", {}, {"answer": {"activation": "softmax"}}),
    "limits": (Bump.PATCH, "scores", {}, {"limits": {"queue": 7}}),
    "batch": (Bump.PATCH, "scores", {}, {"batch": {"max_size": 9}}),
    "golden requests": (Bump.PATCH, "scores", {}, GOLDEN),
    "licence": (Bump.PATCH, "scores", {}, {"licence": "MIT"}),
    "evaluation": (Bump.PATCH, "scores", {}, {"evaluation": [{"data": "d", "n": 5, "top1": 0.5}]}),
    "baseline": (Bump.PATCH, "scores", {}, {"baseline": "baseline.json", "files": {"baseline.json": b"{}"}}),
    "values": (Bump.MINOR, "scores", {}, {"inputs": LIMITED}),
    "parent": (Bump.PATCH, "scores", {}, {"parent": {"version": "0.9.0", "how": "again"}}),
}  # fmt: skip


def _read(root: Path, version: str, kind: str, overrides: dict[str, Any]) -> Content:
    directory = write_model(root, "m", version, kind=kind, **overrides)
    return Content.read(directory, read_manifest(directory))


@pytest.mark.parametrize(("bump", "kind", "old", "new"), RULES.values(), ids=RULES)
def test_needed_bump(root: Path, bump: Bump, kind: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    changes = compare(_read(root, "1.0.0", kind, old), _read(root, "1.1.0", kind, new))
    assert needed_bump(changes) is bump, list(map(str, changes))
    assert all(change.old != change.new for change in changes)


def test_change_is_told(root: Path) -> None:
    old = _read(root, "1.0.0", "scores", {"limits": {"queue": 5}})
    new = _read(root, "1.1.0", "scores", {"limits": {"queue": 7}, "files": {"labels.txt": b"low\nhigh\n"}})
    assert [str(change) for change in compare(old, new)][:3] == [
        "labels: 1 was 'middle' and is 'high'",
        "labels: 2 is gone (was 'high')",
        "limits: queue was 5 and is 7",
    ]


@pytest.mark.parametrize(
    ("old", "new", "bump"),
    [
        ("1.2.3", "2.0.0", Bump.MAJOR),
        ("1.2.3", "1.3.0", Bump.MINOR),
        ("1.2.3", "1.2.4", Bump.PATCH),
        ("1.2.3", "1.2.3-rc.1", Bump.NONE),
        ("1", "2", Bump.MAJOR),
        ("1", "1.0.1", Bump.PATCH),
    ],
)
def test_bump_between(old: str, new: str, bump: Bump) -> None:
    assert bump_between(Version.parse(old), Version.parse(new)) is bump


@pytest.mark.parametrize(
    ("old", "bump", "new"),
    [
        ("1.2.3", Bump.MAJOR, "2.0.0"),
        ("1.2.3", Bump.MINOR, "1.3.0"),
        ("1.2.3", Bump.PATCH, "1.2.4"),
        ("3", Bump.MAJOR, "4"),
        ("3", Bump.MINOR, "3.1.0"),
    ],
)
def test_bumped(old: str, bump: Bump, new: str) -> None:
    assert bumped(Version.parse(old), bump).text == new


@pytest.mark.parametrize(
    ("new", "versions", "base"),
    [
        ("1.1.0", "", None),
        ("1.1.0", "1.0.0 2.0.0", "1.0.0"),
        ("2.1.0", "1.0.0 2.0.0 2.1.0-rc.1", "2.0.0"),
        ("1.10.0", "1.9.0 1.2.0", "1.9.0"),
        ("0.2.0", "0.1.0", None),
        ("1.0.0", "0.9.0", "0.9.0"),
        ("3", "1 2", "2"),
    ],
)
def test_base_of(new: str, versions: str, base: str | None) -> None:
    found = base_of(Version.parse(new), map(Version.parse, versions.split()))
    assert (found.text if found is not None else None) == base
