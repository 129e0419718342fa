"""A complete version gets its place in the registry: with one rename, after all of it is on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from app.errors import Conflict, RegistryError, VersionExists
from app.registry.manifest import Manifest, read_manifest
from app.registry.store import Store, file_sha256, verify_files
from app.registry.storing.locking import changing, sync_directory

# A file below a disk block saves nothing by being shared.
_MIN_SHARED_BYTES = 4096


def place(store: Store, directory: Path, manifest: Manifest) -> bool:
    """Publish `<place>/<name>/<version>`; False where that very version is published already.

    Raises VersionExists where another one of its number is.
    """
    name, version = manifest.name, manifest.version
    sync_tree(directory)
    if place_model(store, directory.parent, name):
        return True
    with changing(store.release_path(name).parent):
        if is_published(store, manifest):
            return False
        os.rename(directory, store.root / name / version)
        sync_directory(store.root / name)
        return True


def place_model(store: Store, source: Path, name: str) -> bool:
    """Let `source` be the directory of a model that has none; False where it has.

    So the first version comes with its model's directory: no reader sees a model without versions.
    """
    target = store.root / name
    if target.exists():
        return False
    try:
        os.rename(source, target)
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False  # another process was first
        raise
    sync_directory(store.root)
    return True


def is_published(store: Store, manifest: Manifest) -> bool:
    """Whether this very version is published. Raises VersionExists where another one of its number is."""
    name = f"{manifest.name}@{manifest.version}"
    path = store.root / manifest.name / manifest.version
    if not path.exists():
        return False
    try:
        published = read_manifest(path)
    except RegistryError as exc:
        raise VersionExists(f"{name} is published, but cannot be read ({exc}); remove it first") from exc
    if published != manifest:
        raise VersionExists(
            f"{name} is published already, and differs; a published version never changes: give this one a new number"
        )
    return True


def mend(store: Store, directory: Path, manifest: Manifest) -> None:
    """Make good what is damaged in the published version by the files of the same version in `directory`."""
    target = store.root / manifest.name / manifest.version
    with changing(store.release_path(manifest.name).parent):
        if not is_published(store, manifest):
            raise Conflict(f"{manifest.name}@{manifest.version} was removed in this moment; try again")
        for file, entry in manifest.files.items():
            try:
                verify_files(target, {file: entry})
            except RegistryError:
                verify_files(directory, {file: entry})
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(directory / file, target / file)
                sync_directory((target / file).parent)


def share_files(store: Store, directory: Path, manifest: Manifest) -> None:
    """Keep once what another version of the model has too: as a hard link, where the file system knows them."""
    known: dict[tuple[str, int], Path] = {}
    for version in store.version_names(manifest.name):
        found = store.version(manifest.name, version)
        for file, entry in found.manifest.files.items() if found.manifest is not None else ():
            known.setdefault((entry.sha256, entry.bytes), found.path / file)
    for file, entry in manifest.files.items():
        shared = known.get((entry.sha256, entry.bytes))
        if shared is not None and entry.bytes >= _MIN_SHARED_BYTES:
            with contextlib.suppress(OSError):
                _link(shared, directory / file, entry.sha256)


def sync_tree(directory: Path) -> None:
    """Make files and names last before a rename shows them: after a power cut all of it is there, or nothing."""
    for folder, _, files in os.walk(directory):
        for name in files:
            descriptor = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))
    sync_directory(directory.parent)


def _link(shared: Path, own: Path, sha256: str) -> None:
    if shared.samefile(own) or file_sha256(shared) != sha256:
        return
    beside = own.with_name(f".{own.name}.link")
    os.link(shared, beside)
    os.replace(beside, own)
