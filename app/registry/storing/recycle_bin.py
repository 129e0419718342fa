"""Where removed versions wait for `undelete`: `<root>/.bin/<name>@<version>-<time>/<name>/<version>/`."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from app.errors import Conflict, RegistryError, VersionExists, VersionInUse, VersionNotFound, VersionRefused
from app.registry.manifest import read_manifest
from app.registry.releases.release import STABLE
from app.registry.store import Store, verify_files
from app.registry.storing.locking import changing, remove_lock, sync_directory, writing
from app.registry.storing.placement import place_model
from app.registry.versions import MODEL_NAME, is_version

BIN_DAYS = 30.0

_BIN = ".bin"
_TIME = "%Y%m%dT%H%M%S%fZ"
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class BinEntry:
    """`removed` is in seconds since the epoch."""

    path: Path
    name: str
    version: str
    removed: float

    @classmethod
    def parse(cls, path: Path) -> BinEntry | None:
        label, _, time = path.name.rpartition("-")
        name, _, version = label.partition("@")
        try:
            removed = datetime.datetime.strptime(time, _TIME).replace(tzinfo=datetime.UTC).timestamp()
        except ValueError:
            return None
        return cls(path, name, version, removed)

    @property
    def directory(self) -> Path:
        return self.path / self.name / self.version


class RecycleBin:
    """Safe between threads, processes and machines; a kill at any point leaves a version in one place or the other."""

    def __init__(self, store: Store, days: float = BIN_DAYS) -> None:
        self._store = store
        self._root = store.root
        self._seconds = days * _DAY_SECONDS

    def entries(self) -> list[BinEntry]:
        """What can be had again, oldest first."""
        return [entry for entry in self._all_entries() if entry.directory.is_dir()]

    def remove(self, name: str, version: str, *, force: bool = False) -> None:
        """Raises VersionNotFound, and VersionInUse where the release names the version.

        `force`: also the one that serves because there is no release.yaml, never one that release.yaml names.
        """
        directory = self._root / name / version
        # A name from outside must not lead out of the registry.
        if not MODEL_NAME.fullmatch(name) or not is_version(version) or not directory.is_dir():
            raise self._not_found(name, version)
        releases = self._store.release_path(name).parent
        with writing(self._root), changing(releases):
            self._check_unused(name, version, force)
            self._move(name, version)
            if not self._store.release_path(name).exists():
                _remove_empty(releases, directory.parent)

    def undelete(self, name: str, version: str) -> None:
        """The newest of this number is published again. Raises VersionNotFound, VersionExists, VersionRefused."""
        found = [entry for entry in self.entries() if (entry.name, entry.version) == (name, version)]
        if not found:
            labels = ", ".join(f"{entry.name}@{entry.version}" for entry in self.entries()) or "nothing"
            raise VersionNotFound(f"{name}@{version} is not in the bin; it holds {labels}")
        entry = found[-1]
        try:
            verify_files(entry.directory, read_manifest(entry.directory).files)
        except RegistryError as exc:
            raise VersionRefused(f"{name}@{version} is damaged: {exc}") from exc
        with writing(self._root):
            if not place_model(self._store, entry.directory.parent, name):
                self._put_back(entry)
            shutil.rmtree(entry.path, ignore_errors=True)

    def sweep(self, now: float) -> int:
        """Remove for good what has been here for its time; returns how many. `now` is in seconds since the epoch."""
        old = [entry for entry in self._all_entries() if now - entry.removed > self._seconds]
        for entry in old:
            shutil.rmtree(entry.path, ignore_errors=True)
        return len(old)

    def _all_entries(self) -> list[BinEntry]:
        """Those too that a process left empty when it was killed."""
        try:
            names = os.listdir(self._root / _BIN)
        except OSError:
            return []
        found = [BinEntry.parse(self._root / _BIN / name) for name in names]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.removed)

    def _move(self, name: str, version: str) -> None:
        time = datetime.datetime.now(datetime.UTC).strftime(_TIME)
        place = self._root / _BIN / f"{name}@{version}-{time}" / name
        place.mkdir(parents=True)
        try:
            os.rename(self._root / name / version, place / version)
        except FileNotFoundError as exc:
            raise self._not_found(name, version) from exc
        for directory in (place, place.parent, place.parent.parent, self._root / name):
            sync_directory(directory)

    def _put_back(self, entry: BinEntry) -> None:
        with changing(self._store.release_path(entry.name).parent):
            target = self._root / entry.name / entry.version
            if target.exists():
                raise VersionExists(f"{entry.name}@{entry.version} is in the registry; remove it first")
            os.rename(entry.directory, target)
            sync_directory(target.parent)

    def _check_unused(self, name: str, version: str, force: bool) -> None:
        label = f"{name}@{version}"
        try:
            release, is_explicit = self._store.release(name)
        except RegistryError as exc:
            raise Conflict(f"whether {label} is in use cannot be told: {exc}") from exc
        if release is None:
            return
        if is_explicit and (users := release.users_of(version)):
            names = ", ".join(users)
            raise VersionInUse(f"{label} is in use: release.yaml names it ({names}); release another version first")
        if not is_explicit and release.aliases[STABLE].version == version and not force:
            raise VersionInUse(
                f"{label} is in use: without a release.yaml the newest version serves; release another one first "
                "(`headway models remove --force` removes it all the same)"
            )

    def _not_found(self, name: str, version: str) -> VersionNotFound:
        found = ", ".join(map(str, self._store.version_names(name))) or "none"
        return VersionNotFound(f"model {name!r} has no version {version} in {self._root}; it has {found}")


def _remove_empty(releases: Path, model: Path) -> None:
    """A model's directories after its last version has left."""
    with contextlib.suppress(OSError):
        remove_lock(releases)
    with contextlib.suppress(OSError):
        os.rmdir(model)
