"""The baseline of any version that is on disk, whether it is served or not."""

from __future__ import annotations

import threading

from app.registry.baseline import Baseline, load_baseline
from app.registry.store import Store
from app.registry.versions import Version

# What was read once is kept, of so many at most: a number may be published again after its version was removed.
_MOST_KEPT = 256


class Baselines:
    """Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[tuple[str, str, str], Baseline] = {}  # by the file's digest, too
        self._lock = threading.Lock()

    def baseline_of(self, model: str, version: str) -> Baseline | None:
        """None where it has none, or is no longer there. Raises RegistryError where it is damaged."""
        found = self._store.version(model, Version.parse(version))
        if found.manifest is None or found.manifest.baseline is None:
            return None
        key = (model, version, found.manifest.files[found.manifest.baseline].sha256)
        with self._lock:
            if key in self._found:
                return self._found[key]
        baseline = load_baseline(found.path, found.manifest)
        assert baseline is not None
        with self._lock:
            if len(self._found) >= _MOST_KEPT:
                self._found.clear()
            self._found[key] = baseline
        return baseline
