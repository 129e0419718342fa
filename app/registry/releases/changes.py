"""What a change makes of a release. Pure: one class a change, all of one shape; editor.py writes the outcome.

Versions may be given as an alias (`canary`), which then means what it names when the change is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from app.errors import InvalidRelease, VersionNotFound
from app.registry.releases.release import (
    CANARY,
    SHADOW,
    STABLE,
    AliasEntry,
    Analysis,
    HistoryEntry,
    Load,
    Release,
    Shadow,
)
from app.registry.versions import is_version
from app.registry.yaml import describe_validation_error


@dataclass(frozen=True, slots=True)
class Draft:
    """A release as a change leaves it. `why` is for where the caller gives no reason; `restores` is of a rollback."""

    release: Release
    why: str
    restores: int | None = None


class Change(Protocol):
    @property
    def named(self) -> tuple[str, ...]:
        """The versions, or aliases, that the change gives a place."""
        ...

    def apply(self, release: Release) -> Draft:
        """Raises InvalidRelease where this release cannot be changed so, VersionNotFound for an unknown alias."""
        ...


@dataclass(frozen=True, slots=True)
class SetAlias:
    """Let an alias name a version. Without a weight it gets no traffic of its own; `stable` never has one."""

    alias: str
    version: str
    weight: float | None = None

    @property
    def named(self) -> tuple[str, ...]:
        return (self.version,)

    def apply(self, release: Release) -> Draft:
        version = _resolve(release, self.version)
        aliases = {**release.aliases, self.alias: {"version": version, "weight": self.weight}}
        share = "" if self.weight is None else f" at {self.weight:g} %"
        return Draft(amend(release, aliases=aliases), f"{self.alias} is {version}{share}")


@dataclass(frozen=True, slots=True)
class SetShadow:
    """Let a copy of `share` percent of the traffic run on a version, after the answer."""

    version: str
    share: float

    @property
    def named(self) -> tuple[str, ...]:
        return (self.version,)

    def apply(self, release: Release) -> Draft:
        version = _resolve(release, self.version)
        shadow = {"version": version, "share": self.share}
        return Draft(amend(release, shadow=shadow), f"shadow {version} at {self.share:g} %")


@dataclass(frozen=True, slots=True)
class AlsoServe:
    """Make a version addressable by its number, with no traffic of its own."""

    version: str

    @property
    def named(self) -> tuple[str, ...]:
        return (self.version,)

    def apply(self, release: Release) -> Draft:
        version = _resolve(release, self.version)
        versions = dict.fromkeys([*release.also_serve, version])
        return Draft(amend(release, also_serve=tuple(versions)), f"also serve {version}")


@dataclass(frozen=True, slots=True)
class Drop:
    """Take out an alias, the shadow (`shadow`), or a version that is also served."""

    name: str

    @property
    def named(self) -> tuple[str, ...]:
        return ()

    def apply(self, release: Release) -> Draft:
        why = f"drop {self.name}"
        if self.name == STABLE:
            raise InvalidRelease("stable cannot be dropped, it serves; promote another version instead")
        if self.name in release.aliases:
            aliases = {alias: entry for alias, entry in release.aliases.items() if alias != self.name}
            return Draft(amend(release, aliases=aliases), why)
        if self.name == SHADOW and release.shadow is not None:
            return Draft(amend(release, shadow=None), why)
        if self.name in release.also_serve:
            return Draft(amend(release, also_serve=tuple(one for one in release.also_serve if one != self.name)), why)
        names = [*release.aliases, *([SHADOW] if release.shadow else []), *release.also_serve]
        raise InvalidRelease(f"there is no {self.name!r} to drop; the release has {', '.join(names)}")


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Give aliases no more traffic of their own; they keep their versions, and can be called by name."""

    aliases: tuple[str, ...]

    @property
    def named(self) -> tuple[str, ...]:
        return ()

    def apply(self, release: Release) -> Draft:
        aliases = dict(release.aliases)
        for alias in self.aliases:
            aliases[alias] = AliasEntry(version=_resolve(release, alias), weight=0)
        return Draft(amend(release, aliases=aliases), f"no traffic for {', '.join(self.aliases)}")


@dataclass(frozen=True, slots=True)
class Promote:
    """Make a version stable. A canary or shadow of that version has done its work and is dropped."""

    version: str

    @property
    def named(self) -> tuple[str, ...]:
        return (self.version,)

    def apply(self, release: Release) -> Draft:
        version = _resolve(release, self.version)
        aliases: dict[str, Any] = {
            alias: entry
            for alias, entry in release.aliases.items()
            if not (alias == CANARY and entry.version == version)
        }
        aliases[STABLE] = AliasEntry(version=version)
        shadow = release.shadow if release.shadow is None or release.shadow.version != version else None
        return Draft(amend(release, aliases=aliases, shadow=shadow), f"promote {version}")


@dataclass(frozen=True, slots=True)
class Rollback:
    """Bring back the aliases of an earlier revision: `to`, else the newest that had another stable version.

    A second rollback goes further back: what was rolled back is no longer among what led here.
    """

    to: int | None = None

    @property
    def named(self) -> tuple[str, ...]:
        return ()

    def apply(self, release: Release) -> Draft:
        entry = self._find(release)
        why = f"rollback of {release.revision}"
        return Draft(amend(release, aliases=entry.aliases), why, restores=entry.revision)

    def _find(self, release: Release) -> HistoryEntry:
        if self.to is None:
            stable = release.aliases[STABLE].version
            for entry in list_lineage(release):
                before = entry.aliases.get(STABLE)
                if before is not None and before.version != stable:
                    return entry
        else:
            for entry in release.history:
                if entry.revision == self.to:
                    return entry
        kept = ", ".join(str(entry.revision) for entry in release.history) or "none"
        what = "with another stable version before this one" if self.to is None else str(self.to)
        raise InvalidRelease(f"there is no revision {what} to roll back to; kept are {kept}")


@dataclass(frozen=True, slots=True)
class Replace:
    """The whole wanted state at once; `analysis` stays, which is how a canary is judged."""

    aliases: Mapping[str, AliasEntry]
    shadow: Shadow | None = None
    also_serve: tuple[str, ...] = ()
    load: Load = "eager"

    @property
    def named(self) -> tuple[str, ...]:
        shadow = [self.shadow.version] if self.shadow is not None else []
        return (*(entry.version for entry in self.aliases.values()), *shadow, *self.also_serve)

    def apply(self, release: Release) -> Draft:
        wanted = amend(
            release, aliases=dict(self.aliases), shadow=self.shadow, also_serve=self.also_serve, load=self.load
        )
        return Draft(wanted, "set the whole release")


@dataclass(frozen=True, slots=True)
class SetLoad:
    """When the model is loaded."""

    load: Load

    @property
    def named(self) -> tuple[str, ...]:
        return ()

    def apply(self, release: Release) -> Draft:
        return Draft(amend(release, load=self.load), f"load {self.load}")


@dataclass(frozen=True, slots=True)
class SetAnalysis:
    """How canaries are judged; fields of `Analysis` that are not given stay."""

    given: Mapping[str, Any]

    @property
    def named(self) -> tuple[str, ...]:
        return ()

    def apply(self, release: Release) -> Draft:
        if not self.given:
            raise InvalidRelease(f"say what to change: {', '.join(Analysis.model_fields)}")
        before = release.analysis.model_dump(exclude_unset=True) if release.analysis is not None else {}
        why = ", ".join(f"{name} {str(value).lower()}" for name, value in self.given.items())
        return Draft(amend(release, analysis=before | dict(self.given)), f"judge canaries by {why}")


def list_lineage(release: Release) -> Iterator[HistoryEntry]:
    """The earlier states that led to this one, newest first, without those that a rollback left behind."""
    history = release.history
    position = 0
    restores = release.changed.restores if release.changed is not None else None
    while True:
        if restores is not None:
            found = [at for at in range(position, len(history)) if history[at].revision == restores]
            position = found[0] if found else len(history)  # it may be older than what is kept
        if position >= len(history):
            return
        yield history[position]
        restores = history[position].restores
        position += 1


def _resolve(release: Release, version: str) -> str:
    if version in release.aliases:
        return release.aliases[version].version
    if not is_version(version):
        raise VersionNotFound(f"the release has no alias {version!r}; it has {', '.join(release.aliases)}")
    return version


def amend(release: Release, **sections: Any) -> Release:
    """Raises InvalidRelease where the outcome is no release."""
    content = {**dict(release), "schema": release.schema_, **sections}
    content.pop("schema_")
    try:
        return Release.model_validate(content)
    except ValidationError as exc:
        raise InvalidRelease(describe_validation_error(exc, Release, content)) from exc
