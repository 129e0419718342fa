"""Golden requests for a new version: taken as they were recorded, or recorded now from photos, texts or rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from app.errors import HeadwayError, InvalidContent
from app.processing.text import decode_text
from app.registry.servables.golden import recorded_outputs
from app.registry.servables.loading import load_servable
from app.registry.servables.servable import Servable

GOLDEN_FILE = "golden/golden.json"
_TOP = 5
_DIGITS = 6


def record_golden(directory: Path, source: Path) -> None:
    """Fill `golden/` of the version in `directory` from `source`: golden.json and what it names, or one request a file.

    A request is a photo, a text in UTF-8, or a JSON file of inputs. Raises InvalidContent naming the file.
    """
    requests = sorted(path for path in source.glob("*") if path.is_file() and not path.name.startswith("."))
    if not requests:
        raise InvalidContent(
            f"{source}: holds no golden requests: put photos or texts there, or JSON files like [[0, 1, 2]]"
        )
    target = directory / "golden"
    target.mkdir()
    if (source / "golden.json").is_file():
        for path in requests:
            shutil.copyfile(path, target / path.name)
        return
    servable = load_servable(directory, 1)
    try:
        lines = [json.dumps(_record(servable, path, target), ensure_ascii=False) for path in requests]
    finally:
        servable.close()
    text = '{"requests": [\n  ' + ",\n  ".join(lines) + "\n]}\n"
    (directory / GOLDEN_FILE).write_text(text, encoding="utf-8")


def _record(servable: Servable, path: Path, target: Path) -> dict[str, Any]:
    try:
        if servable.kind == "image":
            request: dict[str, Any] = {"image": path.name}
            tensors = servable.prepare("image", path.read_bytes())
            shutil.copyfile(path, target / path.name)
        elif servable.kind == "text":
            request = {"text": decode_text(path.read_bytes())}
            tensors = servable.prepare("text", request["text"])
        else:
            loaded = json.loads(path.read_bytes())
            request = {"inputs": loaded.get("inputs", loaded) if isinstance(loaded, dict) else loaded}
            tensors = servable.prepare("tensor", request["inputs"])
        outputs = servable.run(tensors)
        items = servable.answer(outputs, _TOP)
    except (HeadwayError, ValueError, RecursionError) as exc:
        raise InvalidContent(f"{path}: is no golden request of this model: {exc}") from exc
    if items is None:
        return request | {"outputs": recorded_outputs(outputs)}
    if len(items) != 1:
        raise InvalidContent(f"{path}: has {len(items)} rows; write one row a request, each in a file of its own")
    if items[0].value is not None:
        return request | {"value": items[0].value}
    top = [{"index": one.index, "confidence": _rounded(one.confidence, path)} for one in items[0].predictions]
    return request | {"top": top}


def _rounded(confidence: float | None, path: Path) -> float:
    if confidence is None:
        raise InvalidContent(f"{path}: the model's answer to it is not finite")
    return round(float(confidence), _DIGITS)
