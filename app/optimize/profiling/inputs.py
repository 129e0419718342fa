"""What a version is timed with: contents as callers send them, in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from app.errors import InvalidContent
from app.optimize.examples import Examples, find_labelled
from app.registry.servables.golden import GoldenFile
from app.registry.servables.servable import ContentKind, Servable

_MOST = 32
_BLANK_PHOTO = (320, 320)


@dataclass(frozen=True, slots=True)
class Contents:
    """At least one. `data` names them; `labelled` are all examples of it, where their classes are known."""

    data: str
    kind: ContentKind
    items: Sequence[Any]
    labelled: Examples | None = None


def find_contents(servable: Servable, data: Path | None) -> Contents:
    """The first inputs of labelled `data`, else those of the golden requests, else a blank one.

    Raises InvalidContent for data that cannot be read.
    """
    if data is not None:
        return _from_data(servable, data)
    golden = servable.manifest.golden
    if golden is None:
        return Contents("a blank input", servable.kind, [_blank(servable)])
    path = servable.directory / golden.file
    requests = GoldenFile.model_validate_json(path.read_bytes()).requests[:_MOST]
    items: list[Any] = []
    for request in requests:
        if request.image is not None:
            items.append((path.parent / request.image).read_bytes())
        else:
            items.append(request.text if request.text is not None else request.inputs)
    return Contents("the golden requests", servable.kind, items)


def _from_data(servable: Servable, data: Path) -> Contents:
    labelled = find_labelled(servable, data)
    items: list[Any] = []
    for number in range(labelled.count):
        if len(items) == _MOST:
            break
        try:
            tensors = labelled.read(number)
            if servable.kind == "image":
                items.append(Path(labelled.where(number)).read_bytes())
            elif servable.kind == "text":
                items.append(next(iter(tensors.values())).flat[0])
            else:
                items.append({name: array.tolist() for name, array in tensors.items()})
        except (InvalidContent, OSError):
            continue  # counted where accuracy is measured
    if not items:
        raise InvalidContent(f"{data}: none of its {labelled.count} inputs can be read")
    return Contents(labelled.data, servable.kind, items, labelled)


def _blank(servable: Servable) -> Any:
    if servable.kind == "image":
        buffer = io.BytesIO()
        Image.new("RGB", _BLANK_PHOTO, "grey").save(buffer, "JPEG")
        return buffer.getvalue()
    if servable.kind == "text":
        return "blank"
    blanks = {"BYTES": "", "BOOL": False}
    return {spec.name: _filled(spec.shape, blanks.get(spec.datatype, 0)) for spec in servable.input_specs}


def _filled(shape: Sequence[int], value: Any) -> Any:
    """Nested lists; a free size is one."""
    return [_filled(shape[1:], value) for _ in range(max(shape[0], 1))] if shape else value
