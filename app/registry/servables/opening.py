"""Versions for use without a server: loaded at once, with the steps that they name, each version once."""

from __future__ import annotations

from pathlib import Path

from app.errors import ModelNotFound, VersionNotFound
from app.registry.releases.release import STABLE
from app.registry.servables.loading import load_servable
from app.registry.servables.servable import Resolved, Servable
from app.registry.store import Store
from app.registry.versions import ModelRef, is_version


class Opener:
    """Not thread-safe while it loads. What it has loaded lives as long as what it gave out."""

    def __init__(self, store: Store, threads: int = 1) -> None:
        self._store = store
        self._threads = threads
        self._opened: dict[Path, Servable] = {}
        self._found: dict[ModelRef, Resolved] = {}

    def open(self, ref: ModelRef, _routing_key: bytes | None = None) -> Resolved:
        """An exact version need not be released. Raises ModelNotFound, RegistryError, RuntimeLoadError and kin."""
        found = self._found.get(ref)
        if found is None:
            found = self._found[ref] = self._find(ref)
        return found

    def open_directory(self, directory: Path) -> Servable:
        """The version in a directory, which need not lie in the store; its steps are the store's."""
        servable = self._opened.get(directory)
        if servable is None:
            servable = load_servable(directory, self._threads, steps=(self._store, self.open))
            self._opened[directory] = servable
        return servable

    def _find(self, ref: ModelRef) -> Resolved:
        if ref.name not in self._store.model_names():
            names = ", ".join(self._store.model_names()) or "none"
            raise ModelNotFound(f"there is no model {ref.name!r} in {self._store.root}; it has {names}")
        alias, version = None, ref.tag
        if version is None or not is_version(version):
            release, _ = self._store.release(ref.name)
            alias = version or STABLE
            if release is None or alias not in release.aliases:
                raise VersionNotFound(f"model {ref.name!r} has no alias {alias!r} in {self._store.root}")
            version = release.aliases[alias].version
        directory = self._store.root / ref.name / version
        if not directory.is_dir():
            names = ", ".join(map(str, self._store.version_names(ref.name))) or "none"
            raise VersionNotFound(f"model {ref.name!r} has no version {version} in {self._store.root}; it has {names}")
        return Resolved(self.open_directory(directory), alias)
