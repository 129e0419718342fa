"""What a version can answer, of any version that is on disk, whether it is served or not."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from app.errors import RegistryError, VersionNotFound
from app.registry.manifest import ClassificationAnswer
from app.registry.store import Store, read_labels
from app.registry.versions import Version

# Versions never change, so what was read once is kept: of so many at most.
_MOST_KEPT = 256


class Answers:
    """Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._labels: dict[tuple[str, str], Sequence[str] | None] = {}
        self._lock = threading.Lock()

    def labels_of(self, model: str, version: str) -> Sequence[str] | None:
        """In the order of the classes; None where the version answers with values or tensors.

        Raises VersionNotFound where it is no longer there, or cannot be read.
        """
        key = (model, version)
        with self._lock:
            if key not in self._labels:
                if len(self._labels) >= _MOST_KEPT:
                    self._labels.clear()
                self._labels[key] = self._read(model, version)
            return self._labels[key]

    def _read(self, model: str, version: str) -> Sequence[str] | None:
        found = self._store.version(model, Version.parse(version))
        if found.manifest is None:
            raise VersionNotFound(f"{model}@{version} is no longer in the registry: {found.error}")
        answer = found.manifest.answer
        if not isinstance(answer, ClassificationAnswer):
            return None
        try:
            return tuple(read_labels(found.path / answer.labels))
        except (OSError, RegistryError) as exc:
            raise VersionNotFound(f"{model}@{version}: its labels cannot be read: {exc}") from exc
