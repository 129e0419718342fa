"""From a directory to something that serves: digests, load, signature, golden tests, warm-up; and who is served.

A version that fails any step is reported and refused for itself; the others go on serving.
"""

from __future__ import annotations

import enum
import io
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from app.errors import (
    HeadwayError,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    ModelRequired,
    RegistryError,
    RunFailed,
    VersionNotFound,
    VersionNotReleased,
)
from app.registry.golden import run_golden_tests
from app.registry.manifest import Manifest, read_manifest
from app.registry.release import STABLE, Release
from app.registry.servable import ContentKind, Servable
from app.registry.store import Defaults, Store, verify_files
from app.registry.versions import ModelRef, is_version
from app.runtimes.base import Runtime
from app.runtimes.onnx import OnnxRuntime
from app.tensors import NUMPY_DTYPES, Array

logger = logging.getLogger(__name__)

_RUNTIMES: Mapping[str, Callable[[Path, int], Runtime]] = {"onnx": OnnxRuntime}


class State(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One released version in this process. `load_seconds` is the time from digests to warm."""

    name: str
    version: str
    state: State
    error: str | None = None
    servable: Servable | None = None
    load_seconds: float = 0.0


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


def load_servable(directory: Path, threads: int) -> Servable:
    """Load one version ready to run: every check of the lifecycle, warm-up among them.

    Raises RegistryError or RuntimeLoadError with the file, the field and the fix.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest.files)
    runtime = _RUNTIMES[manifest.runtime](directory / manifest.model_file, threads)
    try:
        servable = Servable(manifest, directory, runtime)
        _warm_up(servable)
        run_golden_tests(servable)
    except BaseException:
        runtime.close()
        raise
    return servable


def _warm_up(servable: Servable) -> None:
    """Run the whole path twice: the first run of a session takes twice as long as the next.

    Raises RegistryError where the model fails, or gives what its manifest does not say.
    """
    for _ in range(2):
        started = time.monotonic()
        if servable.kind == "image":
            tensors = servable.prepare("image", _grey_photo())
        else:
            tensors = {spec.name: _zeros(spec.datatype, spec.shape) for spec in servable.manifest.input_specs}
        try:
            outputs = servable.run(tensors)
        except RunFailed as exc:
            path = servable.directory / servable.manifest.model_file
            raise RegistryError(f"{path}: fails on a trial run, so it cannot serve: {exc}") from exc
        servable.check_outputs(outputs)
        servable.answer(outputs, 1)
        servable.warm_seconds = time.monotonic() - started


def _grey_photo() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 320), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


def _zeros(datatype: str, shape: tuple[int, ...]) -> Array:
    sizes = [1 if size == -1 else size for size in shape]
    if datatype == "BYTES":
        return np.full(sizes, b"", dtype=object)
    return np.zeros(sizes, dtype=NUMPY_DTYPES[datatype])


class Registry:
    """The models of one process: what is released, what is loaded, and which version answers a reference.

    `load` replaces the whole state at once; readers see the old one or the new one. `resolve` may be called
    from any thread.
    """

    def __init__(self, store: Store, threads: int = 1, cpu_features: frozenset[str] = frozenset()) -> None:
        self._store = store
        self._threads = threads
        self._cpu_features = cpu_features
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
        self._models = models
        self._is_loaded = True

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
        """The version that answers `ref`. Raises ModelNotFound and its kin, ModelNotReady or ModelFailed."""
        model = self._models.get(ref.name)
        if model is None:
            if not self._is_loaded:
                raise ModelNotReady("the models are still loading; try again in a second")
            raise ModelNotFound(f"there is no model {ref.name!r}; served are {', '.join(self._models) or 'none'}")
        if model.release is None:
            raise ModelFailed(f"model {ref.name!r} cannot be served: {model.error}")
        alias, version = self._select(model, model.release, ref.tag, routing_key)
        status = model.versions[version]
        if status.servable is None:
            raise ModelFailed(f"{ref.name}@{version} cannot be served: {status.error}")
        return Resolved(status.servable, alias)

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
        return VersionStatus(name, version, State.READY, servable=servable, load_seconds=time.monotonic() - started)

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
    stable = model.versions[model.release.aliases[STABLE].version]
    return stable.servable is not None and stable.servable.kind == kind
