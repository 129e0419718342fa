"""What is on disk: `<root>/<model>/<version>/`, read only, verified by digest. Nothing is loaded here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import RegistryError
from app.registry.manifest import FileEntry, Manifest, read_manifest
from app.registry.releases.release import Release, implicit_release
from app.registry.versions import MODEL_NAME, Version
from app.registry.yaml import parse_yaml, read_yaml

ContentKind = Literal["image", "text", "tensor"]


class Defaults(BaseModel):
    """Which model answers a request that names none, by the kind of its content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = None
    text: str | None = None
    tensor: str | None = None


class RegistryFile(BaseModel):
    """models/registry.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal["1"] = Field(default="1", alias="schema")
    defaults: Defaults = Defaults()


@dataclass(frozen=True, slots=True)
class VersionDirectory:
    """A version as found on disk: its manifest, or what is wrong with it."""

    model: str
    version: Version
    path: Path
    manifest: Manifest | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """`digest` is the SHA-256 of the file's bytes: what a change is held against."""

    release: Release
    digest: str


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Store:
    """The registry directory. Every call reads the disk; a missing directory is an empty registry."""

    def __init__(self, root: Path, releases: Path | None = None) -> None:
        self.root = root
        self._releases = releases or root

    def model_names(self) -> list[str]:
        """Names of the models, sorted. Hidden directories (`.staging-…`) and files are no models."""
        try:
            entries = sorted(self.root.iterdir())
        except OSError:
            return []
        return [entry.name for entry in entries if MODEL_NAME.fullmatch(entry.name) and entry.is_dir()]

    def version_names(self, model: str) -> list[Version]:
        """The versions of a model in semantic order; a directory that is not named like a version is none."""
        try:
            entries = list((self.root / model).iterdir())
        except OSError:
            return []
        versions = []
        for entry in entries:
            try:
                versions.append(Version.parse(entry.name))
            except ValueError:
                continue
        return sorted(version for version in versions if (self.root / model / version.text).is_dir())

    def version(self, model: str, version: Version) -> VersionDirectory:
        path = self.root / model / version.text
        try:
            return VersionDirectory(model, version, path, read_manifest(path), None)
        except RegistryError as exc:
            return VersionDirectory(model, version, path, None, str(exc))

    def release_path(self, model: str) -> Path:
        return self._releases / model / "release.yaml"

    def release_file(self, model: str) -> ReleaseFile | None:
        """The release that is written down, with the digest of its bytes; None where there is none.

        Raises RegistryError where it is wrong, OSError where it cannot be read.
        """
        try:
            data = self.release_path(model).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ReleaseFile(self.parse_release(model, data), digest_of(data))

    def parse_release(self, model: str, data: bytes) -> Release:
        """Raises RegistryError with the file, the field and the fix."""
        return parse_yaml(data, self.release_path(model), Release)

    def release(self, model: str) -> tuple[Release | None, bool]:
        """The release of a model, and whether it is written down (else it is implied by the versions).

        Raises RegistryError where release.yaml is wrong.
        """
        written = self.release_file(model)
        if written is not None:
            return written.release, True
        return implicit_release(self.version_names(model)), False

    def defaults(self) -> Defaults:
        """Raises RegistryError where registry.yaml is wrong."""
        path = self.root / "registry.yaml"
        return read_yaml(path, RegistryFile).defaults if path.exists() else Defaults()


def verify_files(directory: Path, files: Mapping[str, FileEntry]) -> None:
    """Hold every listed file against its size and SHA-256. Raises RegistryError naming the file and the fix."""
    for name, entry in files.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except OSError as exc:
            raise RegistryError(f"{path}: is listed in model.yaml, but cannot be read ({exc.strerror})") from exc
        if size != entry.bytes:
            raise RegistryError(
                f"{path}: has {size} bytes, model.yaml (files) says {entry.bytes}; copy the version again"
            )
        found = file_sha256(path)
        if found != entry.sha256:
            raise RegistryError(
                f"{path}: has SHA-256 {found}, model.yaml (files) says {entry.sha256}; "
                "copy the version again, or publish a changed file as a new version"
            )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_labels(path: Path) -> list[str]:
    """One label a line, in the order of the class index. Raises RegistryError where one is empty or repeated."""
    try:
        labels = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as exc:
        raise RegistryError(f"{path}: is not UTF-8 ({exc.reason} at byte {exc.start}); save it as UTF-8") from exc
    for number, label in enumerate(labels, 1):
        if not label.strip():
            raise RegistryError(f"{path}: line {number} is empty; every class needs a label")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise RegistryError(f"{path}: the label {twice!r} stands twice; labels must differ")
    return labels
