"""Changing release.yaml: under the model's lock, against what the caller saw, with a history, whole or not at all."""

from __future__ import annotations

import datetime
import getpass
import logging
import os
from dataclasses import dataclass, field, replace
from typing import Any

from app.errors import (
    Conflict,
    InvalidRelease,
    ModelNotFound,
    RegistryError,
    RegistryReadOnly,
    ReleaseConflict,
    VersionInUse,
    VersionNotFound,
    VersionUnverified,
)
from app.registry.releases.changes import Change, Draft, Replace, amend
from app.registry.releases.release import (
    HISTORY_LENGTH,
    SHADOW,
    STABLE,
    AliasEntry,
    Changed,
    HistoryEntry,
    Release,
    implicit_release,
)
from app.registry.releases.release_file import FileCalls, render_release, replace_release
from app.registry.robustness import find_unmet
from app.registry.step_graph import list_step_users
from app.registry.store import Store, digest_of
from app.registry.storing.locking import changing, writing
from app.registry.versions import Version

logger = logging.getLogger(__name__)

# The digest of a release that is not written down.
IMPLICIT = "implicit"
_MAX_BY, _MAX_WHY = 100, 500


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


@dataclass(frozen=True, slots=True)
class Note:
    """Who makes a change, why and when. Without a reason the change tells what it did."""

    by: str = field(default_factory=user_name)
    why: str | None = None
    at: datetime.datetime = field(default_factory=_now)


@dataclass(frozen=True, slots=True)
class CurrentRelease:
    """A release and the digest of the file it stands in; IMPLICIT where there is no file.

    `release` is None where there is neither a file nor a final version.
    """

    model: str
    release: Release | None
    digest: str

    @property
    def is_explicit(self) -> bool:
        return self.digest != IMPLICIT

    def describe(self) -> dict[str, Any]:
        """For programs: the release as it stands in the file, and the digest that tells whether it has changed."""
        release = self.release
        return {
            "model": self.model,
            "is_explicit": self.is_explicit,
            "digest": self.digest,
            "release": release.model_dump(mode="json", by_alias=True, exclude_none=True)
            if release is not None
            else None,
        }


class ReleaseEditor:
    """Reads and changes the releases of a store. Safe between threads, processes and machines."""

    def __init__(self, store: Store, calls: FileCalls | None = None) -> None:
        self._store = store
        self._calls = calls or FileCalls()

    def list_models(self) -> list[str]:
        return self._store.model_names()

    def read(self, model: str) -> CurrentRelease:
        """Raises ModelNotFound, or RegistryError where release.yaml is wrong."""
        self._check_model(model)
        try:
            written = self._store.release_file(model)
        except OSError as exc:
            path = self._store.release_path(model)
            raise RegistryError(f"{path}: cannot be read ({exc.strerror}); check its rights") from exc
        if written is not None:
            return CurrentRelease(model, written.release, written.digest)
        return CurrentRelease(model, implicit_release(self._store.version_names(model)), IMPLICIT)

    def written_ms(self, model: str) -> int | None:
        """When release.yaml was last written, by the file system (Unix, ms); None where there is none."""
        try:
            return self._store.release_path(model).stat().st_mtime_ns // 1_000_000
        except OSError:
            return None

    def change(
        self, model: str, change: Change, note: Note | None = None, *, seen: str | None = None, unverified: bool = False
    ) -> CurrentRelease:
        """Make one change; what changes nothing makes no revision.

        `seen` is the digest that the caller decided on: if it is no longer that, nothing is done and ReleaseConflict is
        raised. `unverified` lets a version without golden requests become stable. Raises InvalidRelease, ModelNotFound,
        VersionNotFound, VersionInUse, VersionUnverified, Conflict (a version that is less robust than its
        `min_robust_accuracy`, or was not measured), RegistryBusy, RegistryReadOnly, RegistryFull or RegistryError.
        """
        self._check_model(model)
        note = _clean(note or Note())
        path = self._store.release_path(model)
        try:
            with changing(path.parent):
                return self._change(model, change, note, seen, unverified)
        except RegistryReadOnly as exc:
            raise RegistryReadOnly(f"{exc}: there {model}/release.yaml is edited and committed") from exc
        except OSError as exc:
            raise RegistryError(f"{path}: cannot be changed ({exc.strerror or exc})") from exc

    def _change(self, model: str, change: Change, note: Note, seen: str | None, unverified: bool) -> CurrentRelease:
        current = self.read(model)
        if seen is not None and seen != current.digest:
            raise ReleaseConflict(f"{_describe(current)}; that is not what you saw: read it again and decide anew")
        base = current.release if current.is_explicit else None
        if base is None:
            base = self._imply(model, change)
            known = frozenset[tuple[str, str]]()
        else:
            known = _list_entries(base)
        draft = self._keep_steps(model, base, change.apply(base), may_add=not isinstance(change, Replace))
        for _, version in sorted(_list_entries(draft.release) - known):
            self._check_version(model, version)
        stable = draft.release.aliases[STABLE].version
        if current.is_explicit and draft.release == base:
            return current
        if stable != base.aliases[STABLE].version and draft.restores is None and not unverified:
            self._check_verified(model, stable)
        return self._write(model, base, draft, note)

    def _keep_steps(self, model: str, base: Release, draft: Draft, *, may_add: bool) -> Draft:
        """What a served composition names stays served: by its number, where it loses its place as if by the way."""
        release = draft.release
        lost_aliases = set(base.aliases) - set(release.aliases)
        lost_versions = set(base.versions) - set(release.versions)
        if not lost_aliases and not lost_versions:
            return draft
        users = list_step_users(self._store, model)
        kept = sorted(lost_versions & users.keys())
        for name in [*sorted(lost_aliases & users.keys()), *kept]:
            if name in lost_aliases or name in base.also_serve or not may_add:
                raise VersionInUse(
                    f"{model}@{name} is a step of {users[name]}, which is served; release another version of that first"
                )
        if not kept:
            return draft
        release = amend(release, also_serve=(*release.also_serve, *kept))
        return replace(
            draft, release=release, why=f"{draft.why}; {', '.join(kept)} stays as a step of {users[kept[0]]}"
        )

    def _write(self, model: str, base: Release, draft: Draft, note: Note) -> CurrentRelease:
        path = self._store.release_path(model)
        if path.is_symlink():
            raise RegistryReadOnly(f"{path}: is a symbolic link to {os.readlink(path)}, which belongs to others")
        release = draft.release.model_copy(
            update={
                "revision": base.revision + 1,
                "changed": Changed(at=note.at, by=note.by, why=note.why or draft.why, restores=draft.restores),
                "history": (_remember(base), *base.history)[:HISTORY_LENGTH],
            }
        )
        data = render_release(release)
        written = self._store.parse_release(model, data)  # what could not be read again never gets to the disk
        with writing(path.parent):
            replace_release(path, data, self._calls)
        logger.info("release of %s: revision %d by %s: %s", model, release.revision, note.by, note.why or draft.why)
        return CurrentRelease(model, written, digest_of(data))

    def _imply(self, model: str, change: Change) -> Release:
        """What a change starts from where there is no release.yaml: a guess, refused where it could be wrong.

        What serves then is the newest final version of the moment at which the server was started. A version that is
        named now is taken for one that came later.
        """
        versions = self._store.version_names(model)
        named = [version for version in versions if version.text in change.named]
        finals = [version for version in versions if version.is_final]
        others = [version for version in finals if version not in named] or finals or named
        if not others:
            raise InvalidRelease(f"model {model!r} has no version that could be released")
        base = Release(aliases={STABLE: AliasEntry(version=max(others).text)})
        if len(others) > 1 and change.apply(base).release.aliases[STABLE] == base.aliases[STABLE]:
            names = ", ".join(map(str, others))
            raise InvalidRelease(
                f"model {model!r} has no release.yaml: which of {names} serves depends on when the "
                f"server was started; first say it: headway release promote {model}@{base.aliases[STABLE].version}"
            )
        return base

    def _check_model(self, model: str) -> None:
        names = self._store.model_names()
        if model not in names:
            raise ModelNotFound(
                f"there is no model {model!r} in {self._store.root}; it has {', '.join(names) or 'none'}"
            )

    def _check_version(self, model: str, text: str) -> None:
        found = self._store.version(model, Version.parse(text))
        if found.manifest is not None:
            unmet = find_unmet(found.path, found.manifest)
            if unmet is not None:
                raise Conflict(f"{model}@{text} may not be released: {unmet}")
            return
        if found.path.is_dir():
            raise VersionNotFound(f"{model}@{text} cannot be released: {found.error}")
        versions = ", ".join(map(str, self._store.version_names(model))) or "none"
        raise VersionNotFound(f"model {model!r} has no version {text} in {self._store.root}; it has {versions}")

    def _check_verified(self, model: str, text: str) -> None:
        manifest = self._store.version(model, Version.parse(text)).manifest
        if manifest is not None and manifest.golden is None:
            raise VersionUnverified(
                f"{model}@{text} has no golden requests, so nothing shows that it answers here as where it was made: "
                'add some (golden in model.yaml), or allow it: --unverified, in the API "unverified": true'
            )


def _list_entries(release: Release) -> frozenset[tuple[str, str]]:
    """Each place that names a version, with the version."""
    shadow = [(SHADOW, release.shadow.version)] if release.shadow is not None else []
    aliases = [(alias, entry.version) for alias, entry in release.aliases.items()]
    return frozenset([*aliases, *shadow, *(("also_serve", version) for version in release.also_serve)])


def _remember(release: Release) -> HistoryEntry:
    changed = dict(release.changed) if release.changed is not None else {}
    return HistoryEntry(revision=release.revision, aliases=release.aliases, **changed)


def _clean(note: Note) -> Note:
    """One printable line each: they are shown in terminals. Raises InvalidRelease where one is too long."""
    by, why = (
        " ".join("".join(c if c.isprintable() else " " for c in text).split()) for text in (note.by, note.why or "")
    )
    for name, text, longest in (("by", by, _MAX_BY), ("why", why, _MAX_WHY)):
        if len(text) > longest:
            raise InvalidRelease(f"{name} has {len(text)} characters; at most {longest} are kept")
    return Note(by or "unknown", why or None, note.at.replace(microsecond=0))


def _describe(current: CurrentRelease) -> str:
    if current.release is None or not current.is_explicit:
        return f"the release of {current.model!r} is not written down"
    changed = current.release.changed
    author = f", by {changed.by}: {changed.why}" if changed is not None else ""
    return f"the release of {current.model!r} is at revision {current.release.revision}{author}"
