"""GET /models: what is served, in which version and state, and what each version says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.examples import ERROR_RESPONSES
from app.errors import ModelNotFound, VersionNotFound
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import ModelStatus
from app.registry.serving.worker_states import WorkerState, has_converged, merge_versions, read_worker_states
from app.registry.versions import Version, is_version

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: ERROR_RESPONSES[404]}


class VersionRead(BaseModel):
    version: str
    state: str = Field(
        examples=["ready"], description="ready, loading, failed, quarantined, or on_disk for one not released."
    )
    error: str | None = None
    workers: dict[str, int] | None = Field(None, description="How many workers of this machine have it in which state.")


class ModelRead(BaseModel):
    """`release` is implicit where no release.yaml names the versions: then the newest final one serves."""

    name: str
    task: str | None = None
    kind: str | None = Field(None, description="Which content it takes: image or tensor.")
    release: str = Field(examples=["explicit"])
    revision: int | None = Field(None, description="Of the release that this worker has read.")
    aliases: dict[str, str] = Field(examples=[{"stable": "1.1.0"}])
    serving: dict[str, str] = Field(
        examples=[{"stable": "1.1.0"}],
        description="The version that answers for each alias: another than the alias's while that loads or has failed.",
    )
    has_converged: bool = Field(description="Whether every worker of this machine serves what the release asks for.")
    versions: list[VersionRead]
    error: str | None = None


class ModelList(BaseModel):
    models: list[ModelRead]
    defaults: dict[str, str] = Field(description="The model for each kind of content where a request names none.")


class VersionDetail(VersionRead):
    """A version with its whole manifest (model.yaml)."""

    manifest: dict[str, Any] | None
    labels: list[str] | None = None


class CatalogApi:
    """`run_dir` holds the states of all workers of this machine; without it, this process is all there is."""

    def __init__(self, registry: Registry, run_dir: Path | None = None) -> None:
        self._registry = registry
        self._run_dir = run_dir

    def add_routes(self, router: APIRouter) -> None:
        routes: tuple[tuple[str, Callable[..., Any], type[BaseModel]], ...] = (
            ("/models", self.list_models, ModelList),
            ("/models/{name}", self.get_model, ModelRead),
            ("/models/{name}/{version}", self.get_version, VersionDetail),
        )
        for path, endpoint, model in routes:
            router.add_api_route(
                path,
                endpoint,
                response_model=model,
                response_model_exclude_none=True,
                responses=_NOT_FOUND if "{" in path else None,
                tags=["models"],
            )

    def list_models(self) -> ModelList:
        """Every model of the registry."""
        workers = self._workers()
        models = [self._read(status, workers) for status in self._registry.models.values()]
        return ModelList(models=models, defaults=self._registry.defaults)

    def get_model(self, name: str) -> ModelRead:
        """One model, with the versions that lie in the registry without being released."""
        return self._read(self._status(name), self._workers(), with_disk=True)

    def get_version(self, name: str, version: str) -> VersionDetail:
        """One version and its manifest; an alias will do."""
        status = self._status(name)
        if status.release is not None and version in status.release.aliases:
            version = status.release.aliases[version].version
        if is_version(version):
            parsed = Version.parse(version)
            if parsed in self._registry.store.version_names(name) or version in status.versions:
                return self._detail(status, parsed)
        raise VersionNotFound(f"model {name!r} has no version {version!r}; GET /models/{name} lists them")

    def _status(self, name: str) -> ModelStatus:
        status = self._registry.models.get(name)
        if status is None:
            raise ModelNotFound(f"there is no model {name!r}; served are {', '.join(self._registry.models) or 'none'}")
        return status

    def _workers(self) -> list[WorkerState]:
        return read_worker_states(self._run_dir) if self._run_dir is not None else []

    def _read(self, status: ModelStatus, workers: list[WorkerState], *, with_disk: bool = False) -> ModelRead:
        merged = merge_versions(workers, status.name)
        versions = [
            VersionRead(version=version.version, state=version.state, error=version.error)
            for version in status.versions.values()
            if version.version not in merged
        ]
        versions += [VersionRead(version=version, **entry) for version, entry in merged.items()]
        if with_disk:
            versions += [
                VersionRead(version=version.text, state="on_disk")
                for version in self._registry.store.version_names(status.name)
                if version.text not in status.versions and version.text not in merged
            ]
        servable = next((entry.servable for entry in status.versions.values() if entry.servable), None)
        aliases = status.release.aliases if status.release else {}
        return ModelRead(
            name=status.name,
            task=servable.manifest.task if servable else None,
            kind=servable.kind if servable else None,
            release="explicit" if status.desired.is_explicit else "implicit",
            revision=status.release.revision if status.release else None,
            serving=dict(status.serving),
            has_converged=has_converged(workers, status.name) if workers else status.has_converged,
            aliases={alias: entry.version for alias, entry in aliases.items()},
            versions=sorted(versions, key=lambda entry: Version.parse(entry.version)),
            error=status.error,
        )

    def _detail(self, status: ModelStatus, version: Version) -> VersionDetail:
        loaded = status.versions.get(version.text)
        found = self._registry.store.version(status.name, version)
        servable = loaded.servable if loaded else None
        return VersionDetail(
            version=version.text,
            state=loaded.state if loaded else "on_disk",
            error=(loaded.error if loaded else None) or found.error,
            manifest=found.manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
            if found.manifest
            else None,
            labels=list(servable.classification.labels) if servable and servable.classification else None,
        )
