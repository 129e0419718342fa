"""Whether this process has started, and whether it wants requests."""

from __future__ import annotations

from typing import Protocol

from app.errors import Draining, ModelNotReady, Unavailable
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import State


class Flag(Protocol):
    def is_set(self) -> bool: ...


class Readiness:
    """`strict`: not ready while any released version has failed or is quarantined."""

    def __init__(self, registry: Registry, draining: Flag, *, strict: bool) -> None:
        self._registry = registry
        self._draining = draining
        self._strict = strict

    def check_started(self) -> None:
        """Raises ModelNotReady until every released version was tried once."""
        if not self._registry.is_loaded:
            raise ModelNotReady("the models are still loading; try again in a second")

    def check_ready(self) -> None:
        """Raises Draining, ModelNotReady or, where strict, Unavailable naming what failed."""
        if self._draining.is_set():
            raise Draining("the server is shutting down; send requests to another replica")
        self.check_started()
        if self._strict:
            failed = [
                f"{model.name}@{version.version}"
                for model in self._registry.models.values()
                for version in model.versions.values()
                if version.state in (State.FAILED, State.QUARANTINED)
            ]
            failed += [model.name for model in self._registry.models.values() if model.release is None]
            if failed:
                raise Unavailable(f"not ready: {', '.join(failed)} cannot be served; see GET /models")
