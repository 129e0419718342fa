"""The state of models and versions in this process, as it is handed round: immutable, replaced as a whole."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.registry.releases.release import Release
from app.registry.servables.servable import ContentKind, Servable
from app.registry.serving.desired import Desired
from app.registry.serving.wishes import Wish
from app.registry.versions import ModelRef


class State(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version in this process. `load_seconds` is the time from digests to warm.

    `kind` is None where it could not be read. A version that failed is tried again when its files change, of which
    `fingerprint` is, and where it can heal by itself at `retry_at` (time.monotonic()), after `pause_seconds`; a
    composition also when another version (or None) answers for one of its steps than for `steps` when it was tried.
    """

    name: str
    version: str
    state: State
    error: str | None = None
    servable: Servable | None = None
    load_seconds: float = 0.0
    kind: ContentKind | None = None
    fingerprint: str = ""
    retry_at: float = math.inf
    pause_seconds: float = 0.0
    steps: Mapping[ModelRef, str | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model in this process: what is asked (`desired`), what there is (`versions`), who answers (`serving`).

    `serving` maps each alias to the version that answers for it: the one asked for where that is ready, else the one
    that did before. An alias that never had one is missing. `wish` is the last that this process has followed.
    """

    desired: Desired
    versions: Mapping[str, VersionStatus] = field(default_factory=dict)
    serving: Mapping[str, str] = field(default_factory=dict)
    wish: Wish | None = None

    @property
    def is_unloaded(self) -> bool:
        """Whether somebody wished it away."""
        return self.wish is not None and not self.wish.is_load

    @property
    def name(self) -> str:
        return self.desired.name

    @property
    def release(self) -> Release | None:
        return self.desired.release

    @property
    def error(self) -> str | None:
        return self.desired.error

    @property
    def has_converged(self) -> bool:
        """Whether every version asked for is ready, and answers for its aliases."""
        release = self.release
        return (
            release is not None
            and not self.is_unloaded
            and all(
                version in self.versions and self.versions[version].state in (State.READY, State.UNLOADED)
                for version in release.versions
            )
        )


def choose_serving(
    release: Release, versions: Mapping[str, VersionStatus], before: Mapping[str, str]
) -> dict[str, str]:
    """Who answers for each alias: see ModelStatus. A version that is loaded on demand counts as there."""

    def is_there(version: str | None) -> bool:
        status = versions.get(version) if version is not None else None
        return status is not None and (status.servable is not None or status.state is State.UNLOADED)

    serving: dict[str, str] = {}
    for alias, entry in release.aliases.items():
        if is_there(entry.version):
            serving[alias] = entry.version
        elif is_there(before.get(alias)):
            serving[alias] = before[alias]
    return serving
