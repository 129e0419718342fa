"""A model of the registry in a program of one's own, with no server: the same path that the server takes."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from app.engine.call import Answer, Call
from app.engine.inference import Inference
from app.errors import HeadwayError, InvalidContent
from app.processing.classification import Prediction
from app.registry.servables.servable import Content, ContentKind, Item
from app.registry.serving.lifecycle import Registry, Resolved
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.settings import Settings

Photo: TypeAlias = "bytes | str | PathLike[str]"
Result: TypeAlias = "list[Prediction] | float | dict[str, Any]"

_NO_DEADLINE = float("inf")


class Model:
    """One loaded version. `predict` may be called from several threads."""

    def __init__(self, inference: Inference, resolved: Resolved) -> None:
        self._inference = inference
        self._resolved = resolved
        self.name = resolved.servable.name
        self.version = resolved.servable.version

    @property
    def kind(self) -> ContentKind:
        """What it takes: images, texts, or numbers ("tensor")."""
        return self._resolved.servable.kind

    @property
    def takes_images(self) -> bool:
        return self.kind == "image"

    def predict(self, content: Any, top_k: int = 5) -> Result | list[Result]:
        """Answer one photo (bytes, or the path of a file) or several; one text or several; or rows of numbers
        ([n, features] or one row).

        Gives the predictions of a classifier best first, the value of a regression, or the outputs by name; a list
        of these for several photos, texts or rows. Raises HeadwayError for content that cannot be used.
        """
        if self.takes_images:
            is_single = isinstance(content, bytes | str | PathLike)
            return self._predict_each(
                [_read(photo) for photo in ([content] if is_single else content)], is_single, top_k
            )
        if self.kind == "text":
            is_single = isinstance(content, bytes | str)
            return self._predict_each([content] if is_single else list(content), is_single, top_k)
        try:
            rows = np.asarray(content) if not isinstance(content, dict) else content
        except (ValueError, OverflowError):
            rows = content  # ragged or nested too deep: tensors_from_json says which input
        specs = self._resolved.servable.manifest.inputs
        is_single = isinstance(rows, np.ndarray) and len(specs) == 1 and rows.ndim == len(specs[0].shape) - 1
        answer = self._answer("tensor", rows[np.newaxis] if is_single else rows, top_k)
        if answer.items is None:
            return dict(answer.tensors or {})
        results = [_result(item) for item in answer.items]
        return results[0] if is_single else results

    def _predict_each(self, items: Sequence[Any], is_single: bool, top_k: int) -> Result | list[Result]:
        answers = [self._answer(self.kind, item, top_k) for item in items]
        results = [_result(answer.items[0]) if answer.items else dict(answer.tensors or {}) for answer in answers]
        return results[0] if is_single else results

    def _answer(self, kind: ContentKind, item: Any, top_k: int) -> Answer:
        call = Call(Content(kind, (item,)), deadline=_NO_DEADLINE, top_k=top_k)
        return self._inference.predict_now(call, self._resolved)

    def __repr__(self) -> str:
        return f"<Model {self.name}@{self.version}>"


def load(ref: str, *, models: str | PathLike[str] | None = None, threads: int = 1) -> Model:
    """Load `name`, `name@version` or `name@alias` from the registry directory (HEADWAY_MODELS, else ./models).

    An exact version need not be released. Raises HeadwayError with the file, the field and the fix.
    """
    settings = Settings()
    root = Path(models) if models is not None else settings.models
    try:
        parsed = ModelRef.parse(ref)
    except ValueError as exc:
        raise InvalidContent(f"{ref!r}: {exc}") from exc
    registry = Registry(Store(root, settings.releases), threads=threads)
    resolved = registry.open(parsed)
    return Model(Inference(registry), resolved)


def _read(photo: Photo) -> bytes:
    if isinstance(photo, bytes):
        return photo
    try:
        return Path(photo).read_bytes()
    except OSError as exc:
        raise InvalidContent(f"{photo}: cannot be read ({exc.strerror})") from exc


def _result(item: Item | HeadwayError) -> Result:
    if isinstance(item, HeadwayError):
        raise item
    return item.value if item.value is not None else list(item.predictions)
