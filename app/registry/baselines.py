"""The baseline of any version that is on disk, whether it is served or not."""

from __future__ import annotations

import threading

from app.registry.baseline import Baseline, load_baseline
from app.registry.store import Store
from app.registry.versions import Version

# Versions never change, so what was read once is kept: of so many at most.
_MOST_KEPT = 256


class Baselines:
    """Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[tuple[str, str], Baseline | None] = {}
        self._lock = threading.Lock()

    def baseline_of(self, model: str, version: str) -> Baseline | None:
        """None where it has none, or is no longer there. Raises RegistryError where it is damaged."""
        key = (model, version)
        with self._lock:
            if key in self._found:
                return self._found[key]
        found = self._store.version(model, Version.parse(version))
        if found.manifest is None:
            return None  # it may come back
        baseline = load_baseline(found.path, found.manifest)
        with self._lock:
            if len(self._found) >= _MOST_KEPT:
                self._found.clear()
            self._found[key] = baseline
        return baseline
