"""Models as one file and back: every version, release.yaml, registry.yaml, with the digest of each byte.

A tar.gz whose first member, backup.json, names the others. It is restored through the staging place: all of it is
verified before anything is changed, and each model appears whole.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import BadArchive, Conflict, ModelNotFound, RegistryError
from app.registry.manifest import FileEntry, Manifest, read_manifest
from app.registry.releases.release_file import FileCalls, replace_release
from app.registry.store import Store, file_sha256, verify_files
from app.registry.storing.archive import Limits, unpack
from app.registry.storing.locking import changing, writing
from app.registry.storing.placement import is_published, mend, place, place_model, share_files, sync_tree
from app.registry.storing.staging import Staging
from app.registry.versions import Version

INDEX, RELEASE, REGISTRY = "backup.json", "release.yaml", "registry.yaml"
_SCHEMA = 1
_MAX_FILES = 1_000_000
_UNPACKED = "unpacked"


class Index(BaseModel):
    """backup.json. `files`: `<name>/<version>/…`, `<name>/release.yaml`, registry.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: int = Field(alias="schema", ge=_SCHEMA, le=_SCHEMA)
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Restored:
    """`versions` as name@version that are new here, `releases` the models whose release was written."""

    versions: tuple[str, ...]
    releases: tuple[str, ...]


def write_backup(store: Store, target: Path, models: Sequence[str] = ()) -> list[str]:
    """Write `models`, or all of them and registry.yaml; returns the versions. `target` is replaced whole or not at all.

    Raises ModelNotFound, RegistryError for a version that is damaged, Conflict where one leaves while it is read.
    """
    known = store.model_names()
    for model in models:
        if model not in known:
            raise ModelNotFound(f"there is no model {model!r} in {store.root}; it has {', '.join(known) or 'none'}")
    beside = target.with_name(f".{target.name}.part")
    with writing(target.parent):
        try:
            paths = dict(_backup_paths(store, models or known, is_whole=not models))
            _write_archive(beside, paths)
            os.replace(beside, target)
        except FileNotFoundError as exc:
            raise Conflict(f"{exc.filename}: left while it was read; back up again") from exc
        finally:
            beside.unlink(missing_ok=True)
    return sorted({"@".join(name.split("/")[:2]) for name in paths if name.count("/") > 1})


def restore_backup(store: Store, archive: Path, *, force: bool = False) -> Restored:
    """Publish what the backup holds. A different version of a published number is never replaced.

    `force`: also a release.yaml or registry.yaml that differs from the one here. Raises BadArchive for a damaged file,
    VersionExists and Conflict before anything is changed.
    """
    staging = Staging(store.root)
    try:
        with writing(store.root):
            return _Restore(store, staging, force).run(archive)
    finally:
        staging.discard()


class _Restore:
    def __init__(self, store: Store, staging: Staging, force: bool) -> None:
        self._store = store
        self._unpacked = staging.path / _UNPACKED
        self._force = force

    def run(self, archive: Path) -> Restored:
        try:
            limits = Limits(shutil.disk_usage(self._store.root).free, _MAX_FILES)
            unpack(archive, self._unpacked, limits)
        except FileNotFoundError as exc:
            raise BadArchive(f"{archive}: there is no such file") from exc
        self._verify(archive)
        manifests = list(self._manifests(archive))
        self._check_names(archive, manifests)
        new = [manifest for manifest in manifests if not is_published(self._store, manifest)]
        releases = [path for path in sorted(self._unpacked.glob(f"*/{RELEASE}")) if self._is_wanted(path)]
        registry = self._unpacked / REGISTRY
        is_registry_wanted = registry.exists() and self._is_file_wanted(registry, self._store.root / REGISTRY)
        written = {path.parent.name for path in releases}
        for name in sorted({manifest.name for manifest in manifests}):
            self._put(name, [manifest for manifest in manifests if manifest.name == name], name in written)
        if is_registry_wanted:
            replace_release(self._store.root / REGISTRY, registry.read_bytes(), FileCalls())
        labels = tuple(f"{manifest.name}@{manifest.version}" for manifest in new)
        return Restored(labels, tuple(sorted(written)))

    def _verify(self, archive: Path) -> None:
        """Every file is as backup.json says, and there is no other."""
        path = self._unpacked / INDEX
        try:
            index = Index.model_validate(json.loads(path.read_bytes()))
            verify_files(self._unpacked, index.files)
        except FileNotFoundError as exc:
            raise BadArchive(f"{archive}: holds no {INDEX}; it was not made by `headway models backup`") from exc
        except (ValueError, ValidationError) as exc:
            raise BadArchive(f"{archive}: its {INDEX} cannot be read ({' '.join(str(exc).split())[:200]})") from exc
        except RegistryError as exc:
            raise BadArchive(f"{archive}: is damaged: {str(exc).replace(f'{self._unpacked}/', '')}") from exc
        found = {str(path.relative_to(self._unpacked)) for path in self._unpacked.rglob("*") if path.is_file()}
        if unknown := found - index.files.keys() - {INDEX}:
            raise BadArchive(f"{archive}: holds {min(unknown)!r}, which its {INDEX} does not name")
        path.unlink()

    def _manifests(self, archive: Path) -> Iterator[Manifest]:
        for path in sorted(self._unpacked.glob("*/*/model.yaml")):
            try:
                manifest = read_manifest(path.parent)
                verify_files(path.parent, manifest.files)
            except RegistryError as exc:
                raise BadArchive(f"{archive}: {str(exc).replace(f'{self._unpacked}/', '')}") from exc
            yield manifest

    def _check_names(self, archive: Path, manifests: Sequence[Manifest]) -> None:
        versions = {(manifest.name, manifest.version) for manifest in manifests}
        for path in self._unpacked.rglob("*"):
            name, *rest = path.relative_to(self._unpacked).parts
            is_release = rest == [RELEASE] and name in {known for known, _ in versions}
            if path.is_file() and not (name == REGISTRY or is_release or (name, rest[0] if rest else "") in versions):
                raise BadArchive(f"{archive}: holds {'/'.join((name, *rest))!r}, which is of no version in it")

    def _is_wanted(self, path: Path) -> bool:
        name = path.parent.name
        try:
            self._store.parse_release(name, path.read_bytes())
        except RegistryError as exc:
            raise BadArchive(f"the backup's release.yaml of {name} is wrong: {exc}") from exc
        return self._is_file_wanted(path, self._store.release_path(name))

    def _is_file_wanted(self, path: Path, target: Path) -> bool:
        if not target.exists():
            return True
        if target.read_bytes() == path.read_bytes():
            return False
        if not self._force:
            raise Conflict(f"{target}: differs from the one in the backup; --force replaces it")
        return True

    def _put(self, name: str, manifests: Sequence[Manifest], with_release: bool) -> None:
        """The versions, then the release that names them; both in one rename where the model is new here."""
        source, path = self._unpacked / name, self._store.release_path(name)
        is_beside = path.parent == self._store.root / name
        release = (source / RELEASE).read_bytes() if with_release else None
        if not is_beside or release is None:
            (source / RELEASE).unlink(missing_ok=True)
        sync_tree(source)
        if not place_model(self._store, source, name):
            for manifest in manifests:
                directory = source / manifest.version
                if is_published(self._store, manifest):
                    mend(self._store, directory, manifest)
                else:
                    share_files(self._store, directory, manifest)
                    place(self._store, directory, manifest)
        elif is_beside:
            return
        if release is not None:
            with changing(path.parent):
                replace_release(path, release, FileCalls())


def _backup_paths(store: Store, models: Sequence[str], *, is_whole: bool) -> Iterator[tuple[str, Path]]:
    """(name in the archive, path). The release comes first: what it names is not removed after."""
    if is_whole and (store.root / REGISTRY).exists():
        yield REGISTRY, store.root / REGISTRY
    for model in models:
        if store.release_path(model).exists():
            yield f"{model}/{RELEASE}", store.release_path(model)
        for version in store.version_names(model):
            yield from _version_paths(store, model, version)


def _version_paths(store: Store, model: str, version: Version) -> Iterator[tuple[str, Path]]:
    found = store.version(model, version)
    if found.manifest is None:
        raise RegistryError(found.error or f"{found.path}: cannot be read")
    verify_files(found.path, found.manifest.files)
    for path in sorted(found.path.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield f"{model}/{version}/{path.relative_to(found.path)}", path


def _write_archive(target: Path, paths: dict[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    files = {name: {"sha256": file_sha256(path), "bytes": sizes[name]} for name, path in paths.items()}
    index = json.dumps({"schema": _SCHEMA, "files": files}, indent=1).encode()
    with target.open("wb") as file:
        # Weights hardly shrink, whatever the level: 1 is five times as fast as 9.
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
            _add(tar, INDEX, io.BytesIO(index), len(index))
            for name, path in paths.items():
                with path.open("rb") as source:
                    _add(tar, name, source, sizes[name])
        file.flush()
        os.fsync(file.fileno())


def _add(tar: tarfile.TarFile, name: str, source: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    tar.addfile(member, source)
