"""The models of one process: which versions are released, loaded, failed or withdrawn, and which one answers.

A version that fails to load is reported and refused for itself; the others go on serving.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from app.errors import (
    HeadwayError,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    ModelQuarantined,
    ModelRequired,
    RegistryError,
    VersionNotFound,
    VersionNotReleased,
)
from app.registry.loading import load_servable
from app.registry.manifest import Manifest
from app.registry.quarantine import WorkerQuarantine, describe_quarantine
from app.registry.release import STABLE, Release
from app.registry.servable import ContentKind, Servable
from app.registry.store import Defaults, Store
from app.registry.versions import ModelRef, Version, is_version

logger = logging.getLogger(__name__)


class State(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One released version in this process. `load_seconds` is the time from digests to warm.

    `kind` is None where it could not be read.
    """

    name: str
    version: str
    state: State
    error: str | None = None
    servable: Servable | None = None
    load_seconds: float = 0.0
    kind: ContentKind | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model in this process. `release` is None where release.yaml is wrong or nothing can be released."""

    name: str
    release: Release | None
    release_is_explicit: bool
    error: str | None = None
    versions: Mapping[str, VersionStatus] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The version that answers a call, and the alias that led to it (None for an exact version)."""

    servable: Servable
    alias: str | None


class Registry:
    """The models of one process: what is released, what is loaded, and which version answers a reference.

    `load` replaces the whole state at once; readers see the old one or the new one. `resolve` may be called
    from any thread.
    """

    def __init__(
        self,
        store: Store,
        threads: int = 1,
        cpu_features: frozenset[str] = frozenset(),
        quarantine: WorkerQuarantine | None = None,
    ) -> None:
        """`quarantine`: where this process is a worker of a server that has one."""
        self._store = store
        self._threads = threads
        self._cpu_features = cpu_features
        self._quarantine = quarantine
        self._withdrawn = 0  # of the quarantined versions
        self._change = threading.Lock()
        self._models: Mapping[str, ModelStatus] = {}
        self._defaults = Defaults()
        self._is_loaded = False

    @property
    def models(self) -> Mapping[str, ModelStatus]:
        return self._models

    @property
    def store(self) -> Store:
        return self._store

    @property
    def defaults(self) -> dict[str, str]:
        """The default model of each kind of content that has one."""
        return self._defaults.model_dump(exclude_none=True)

    @property
    def is_loaded(self) -> bool:
        """Whether a first attempt at every released version was made."""
        return self._is_loaded

    def load(self, names: Iterable[str] | None = None) -> None:
        """Load every released version (of `names`, else of all models). Never raises for a bad model."""
        try:
            self._defaults = self._store.defaults()
        except (RegistryError, OSError) as exc:
            logger.error("%s", exc)
        models: dict[str, ModelStatus] = {}
        for name in names if names is not None else self._store.model_names():
            models[name] = self._load_model(name)
        with self._change:
            self._models = models
            self._withdrawn = 0
            self._is_loaded = True
        self.withdraw_quarantined()

    def open(self, ref: ModelRef) -> Resolved:
        """Load one model for use without a server; an exact version need not be released.

        Raises ModelNotFound and its kin, RegistryError or RuntimeLoadError.
        """
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
            found = ", ".join(map(str, self._store.version_names(ref.name))) or "none"
            raise VersionNotFound(f"model {ref.name!r} has no version {version} in {self._store.root}; it has {found}")
        return Resolved(load_servable(directory, self._threads), alias)

    def close(self) -> None:
        models, self._models = self._models, {}
        for model in models.values():
            for status in model.versions.values():
                if status.servable is not None:
                    status.servable.close()

    def resolve(self, ref: ModelRef, routing_key: bytes | None = None) -> Resolved:
        """The version that answers `ref`. Raises ModelNotFound and its kin, ModelNotReady, ModelFailed or its kin."""
        self.withdraw_quarantined()
        model = self._models.get(ref.name)
        if model is None:
            if not self._is_loaded:
                raise ModelNotReady("the models are still loading; try again in a second")
            raise ModelNotFound(f"there is no model {ref.name!r}; served are {', '.join(self._models) or 'none'}")
        if model.release is None:
            raise ModelFailed(f"model {ref.name!r} cannot be served: {model.error}")
        alias, version = self._select(model, model.release, ref.tag, routing_key)
        status = model.versions[version]
        if status.state is State.QUARANTINED:
            raise ModelQuarantined(str(status.error))
        if status.servable is None:
            raise ModelFailed(f"{ref.name}@{version} cannot be served: {status.error}")
        return Resolved(status.servable, alias)

    def withdraw_quarantined(self) -> None:
        """Serve no more what was quarantined since the last call; 0.1 µs where nothing was."""
        if self._quarantine is None or self._quarantine.length == self._withdrawn:
            return
        with self._change:
            labels = self._quarantine.list_labels()
            self._models = {name: _withdraw(model, frozenset(labels)) for name, model in self._models.items()}
            self._withdrawn = len(labels)

    def default_for(self, kind: ContentKind) -> ModelRef:
        """The model for content of this kind where the caller names none. Raises ModelRequired with the choice."""
        named = getattr(self._defaults, kind)
        if named is not None:
            return ModelRef(named)
        fitting = [model.name for model in self._models.values() if _takes(model, kind)]
        if len(fitting) == 1:
            return ModelRef(fitting[0])
        if not fitting and not self._is_loaded:
            raise ModelNotReady("the models are still loading; try again in a second")
        choice = f"choose one of {', '.join(fitting)}" if fitting else "none is served"
        raise ModelRequired(f"name the model that shall take this {kind}: {choice}")

    def _select(
        self, model: ModelStatus, release: Release, tag: str | None, routing_key: bytes | None
    ) -> tuple[str | None, str]:
        if tag is None:
            alias = release.route(model.name, routing_key)
            return alias, release.aliases[alias].version
        if tag in release.aliases:
            return tag, release.aliases[tag].version
        if tag in model.versions:
            return None, tag
        served = ", ".join([*release.aliases, *model.versions])
        if not is_version(tag):
            raise VersionNotFound(f"model {model.name!r} has no alias {tag!r}; it has {served}")
        if any(version.text == tag for version in self._store.version_names(model.name)):
            raise VersionNotReleased(
                f"version {tag} of {model.name!r} is in the registry but not released; released are {served}"
            )
        raise VersionNotFound(f"model {model.name!r} has no version {tag}; it has {served}")

    def _load_model(self, name: str) -> ModelStatus:
        try:
            release, explicit = self._store.release(name)
        except (RegistryError, OSError) as exc:
            logger.error("%s", exc)
            return ModelStatus(name, None, True, error=str(exc))
        if release is None:
            error = f"{self._store.root / name}: holds no final version; add a directory named like 1.0.0"
            logger.error("%s", error)
            return ModelStatus(name, None, False, error=error)
        versions = {version: self._load_version(name, version) for version in release.versions}
        return ModelStatus(name, release, explicit, versions=versions)

    def _load_version(self, name: str, version: str) -> VersionStatus:
        if self._quarantine is None:
            return self._try_version(name, version)
        label = f"{name}@{version}"
        if label in self._quarantine.list_labels():
            manifest = self._store.version(name, Version.parse(version)).manifest
            logger.warning("%s is not loaded: it is quarantined", label)
            return _quarantined(name, version, manifest.content_kind if manifest is not None else None)
        with self._quarantine.loading(name, version):
            status = self._try_version(name, version)
        if status.servable is not None:
            status.servable.marker = self._quarantine.marker(name, version)
        return status

    def _try_version(self, name: str, version: str) -> VersionStatus:
        started = time.monotonic()
        try:
            servable = load_servable(self._store.root / name / version, self._threads)
        except (HeadwayError, OSError) as exc:
            logger.error("%s@%s cannot be served: %s", name, version, exc)
            return VersionStatus(name, version, State.FAILED, error=str(exc))
        except Exception as exc:
            # A backend may raise anything on a damaged file; that must not take its neighbours with it.
            logger.exception("%s@%s cannot be served", name, version)
            return VersionStatus(name, version, State.FAILED, error=f"{type(exc).__name__}: {exc}")
        self._tell_missing_features(servable.manifest)
        seconds = time.monotonic() - started
        return VersionStatus(name, version, State.READY, servable=servable, load_seconds=seconds, kind=servable.kind)

    def _tell_missing_features(self, manifest: Manifest) -> None:
        for evaluation in manifest.evaluation:
            missing = sorted(set(evaluation.cpu_features) - self._cpu_features)
            if missing and self._cpu_features:
                logger.warning(
                    "%s@%s was measured on a CPU with %s, which this one lacks: expect other latencies than on "
                    "record; its golden requests gave their answers, `headway evaluate` tells the rest",
                    manifest.name,
                    manifest.version,
                    ", ".join(missing),
                )
                return


def _takes(model: ModelStatus, kind: ContentKind) -> bool:
    if model.release is None:
        return False
    return model.versions[model.release.aliases[STABLE].version].kind == kind


def _withdraw(model: ModelStatus, labels: frozenset[str]) -> ModelStatus:
    """The model without these versions. What still runs one goes on with it; its memory is given back after that."""
    versions = {
        version: _quarantined(model.name, version, status.kind) if f"{model.name}@{version}" in labels else status
        for version, status in model.versions.items()
    }
    return replace(model, versions=versions)


def _quarantined(name: str, version: str, kind: ContentKind | None) -> VersionStatus:
    error = describe_quarantine(f"{name}@{version}")
    return VersionStatus(name, version, State.QUARANTINED, error=error, kind=kind)
