"""Versions and labels of a URL as versions and aliases of ours.

TensorFlow Serving's versions are integers: the name of a directory, or the `serial` of model.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.errors import InvalidContent
from app.registry.serving.lifecycle import Registry
from app.registry.versions import ModelRef, Version, is_version


class ServingVersions:
    """Thread-safe. Loads nothing; model.yaml of what is not loaded is read once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._read: dict[tuple[str, str], int | None] = {}

    def parse(self, path: Mapping[str, Any]) -> ModelRef:
        """What the `name` and the `version` or `label` of a path refer to. Raises InvalidContent."""
        name, version, label = path["name"], path.get("version"), path.get("label")
        if version is not None and not is_version(version):
            raise InvalidContent(f"{version[:80]!r} is not a version: an integer, or as 1.2.0; an alias is a label")
        if label is not None and is_version(label):
            raise InvalidContent(f"{label!r} is not a label but a version; send /versions/{label}")
        tag = self._released(name, version) if version is not None else label
        try:
            return ModelRef.parse(f"{name}@{tag}" if tag is not None else name)
        except ValueError as exc:
            raise InvalidContent(f"the path names no model: {exc}") from exc

    def number(self, name: str, version: str) -> str:
        """What the version is called in answers: its serial, or its name where it has none."""
        serial = self._serial(name, version)
        return str(serial) if serial is not None else version

    def _released(self, name: str, version: str) -> str:
        """The released version that has this name, or else this serial; the text itself where none has."""
        status = self._registry.models.get(name)
        if not version.isdigit() or status is None or status.release is None or version in status.release.versions:
            return version
        return next((one for one in status.release.versions if self.number(name, one) == version), version)

    def _serial(self, name: str, version: str) -> int | None:
        status = self._registry.models.get(name)
        entry = status.versions.get(version) if status is not None else None
        if entry is not None and entry.servable is not None:
            return entry.servable.manifest.serial
        if (name, version) not in self._read:
            manifest = self._registry.store.version(name, Version.parse(version)).manifest
            if manifest is None:
                return None
            self._read[name, version] = manifest.serial
        return self._read[name, version]
