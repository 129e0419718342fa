"""Writes versions and releases into a registry directory: files with digests, model.yaml, release.yaml."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Top = list[dict[str, float]]
NOT_READ = frozenset({"model.yaml", "README.md"})


def write_version(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write model.yaml with the digest and size of every other file that lies in `directory`."""
    digests = {str(path.relative_to(directory)): _entry(path) for path in _files(directory)}
    head = {key: manifest[key] for key in ("schema", "name", "version", "task", "runtime")}
    rest = {key: value for key, value in manifest.items() if key not in head}
    write_yaml(directory / "model.yaml", {**head, "files": digests, **rest})


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    path.write_text(text, encoding="utf-8")


def write_release(model: Path, version: str, also_serve: Sequence[str] = ()) -> None:
    content: dict[str, Any] = {"schema": 1, "revision": 1, "aliases": {"stable": {"version": version}}}
    if also_serve:
        content["also_serve"] = list(also_serve)
    write_yaml(model / "release.yaml", content)


def write_golden(directory: Path, requests: Sequence[Mapping[str, Any]]) -> None:
    """golden/golden.json, one request a line."""
    lines = ",\n".join("  " + json.dumps(request) for request in requests)
    folder = directory / "golden"
    folder.mkdir(exist_ok=True)
    (folder / "golden.json").write_text('{"requests": [\n' + lines + "\n]}\n", encoding="utf-8")


def top_of(predictions: Sequence[Any]) -> Top:
    """Predictions as golden.json holds them."""
    return [{"index": item.index, "confidence": round(float(item.confidence), 6)} for item in predictions]


def publish(staged: Path, target: Path) -> None:
    """Replace `target` by the finished version."""
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(staged, target)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in NOT_READ)


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
