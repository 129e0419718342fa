"""What the registry directory asks for: opened and read at each look, since network file systems cache the rest.

A look that finds less than the one before is not believed at once: a registry that is being copied, remounted or
switched by a link must not take down what serves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import RegistryError
from app.registry.releases.release import Release
from app.registry.store import Store, digest_of

logger = logging.getLogger(__name__)

# A model whose directory is gone, while others are there, is withdrawn after this time.
GONE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Desired:
    """What is asked of one model. `release` is None, with `error` saying why, where there is nothing to serve.

    `digest` is that of release.yaml; None where there is none, and the newest final version at start is meant.
    """

    name: str
    release: Release | None
    digest: str | None
    error: str | None = None

    @property
    def is_explicit(self) -> bool:
        return self.digest is not None


class Watch:
    """Remembers the last look. Not thread-safe."""

    def __init__(self, store: Store, gone_seconds: float = GONE_SECONDS) -> None:
        self._store = store
        self._gone_seconds = gone_seconds
        self._seen: dict[str, Desired] = {}
        self._gone_since: dict[str, float] = {}
        self._has_looked = False

    def look(self, now: float | None = None) -> Mapping[str, Desired]:
        """The models and what is asked of each; an object seen before where nothing changed."""
        now = time.monotonic() if now is None else now
        names = self._store.model_names()
        for name in names:
            self._gone_since.pop(name, None)
            found = self._look_at(name)
            if found is not None:
                self._seen[name] = found
        if names:  # an empty registry is one that is being replaced
            self._forget(set(names), now)
        self._has_looked = True
        return dict(self._seen)

    def _look_at(self, name: str) -> Desired | None:
        before = self._seen.get(name)
        path = self._store.release_path(name)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            # A file that was there is on its way back; a model that came without one waits for it.
            return before or (None if self._has_looked else self._imply(name))
        except OSError as exc:
            return before or Desired(name, None, "", f"{path}: cannot be read ({exc.strerror})")
        digest = digest_of(data)
        if before is not None and before.digest == digest:
            return before
        return self._read(name, data, digest, before)

    def _read(self, name: str, data: bytes, digest: str, before: Desired | None) -> Desired:
        try:
            return Desired(name, self._store.parse_release(name, data), digest)
        except RegistryError as exc:
            logger.error("%s", exc)
            return Desired(name, before.release if before is not None else None, digest, str(exc))

    def _imply(self, name: str) -> Desired:
        release, _ = self._store.release(name)
        if release is None:
            error = f"{self._store.root / name}: holds no final version; add a directory named like 1.0.0"
            logger.error("%s", error)
            return Desired(name, None, None, error)
        return Desired(name, release, None)

    def _forget(self, names: set[str], now: float) -> None:
        for name in set(self._seen) - names:
            since = self._gone_since.setdefault(name, now)
            if now - since >= self._gone_seconds:
                logger.warning("model %s is withdrawn: its directory has been gone for %.0f s", name, now - since)
                del self._seen[name], self._gone_since[name]
