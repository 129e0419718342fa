"""One version from the directory to a status: ready, or failed with the reason, and when to try again."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from app.errors import HeadwayError, InsufficientMemory
from app.registry.manifest import Manifest, read_manifest
from app.registry.robustness import check_robustness
from app.registry.servables.composed import ResolveStep
from app.registry.servables.loading import load_servable
from app.registry.servables.servable import ContentKind
from app.registry.serving.quarantine import WorkerQuarantine, describe_quarantine
from app.registry.serving.status import State, VersionStatus
from app.registry.store import Store
from app.registry.versions import ModelRef, Version

logger = logging.getLogger(__name__)

# Between two tries of what can heal by itself; doubled each time up to this.
_LONGEST_PAUSE_SECONDS = 60.0


class VersionLoader:
    """`resolve_step` finds the versions that a composition names. `available_bytes`: free memory."""

    def __init__(
        self,
        store: Store,
        threads: int,
        cpu_features: frozenset[str],
        quarantine: WorkerQuarantine | None,
        available_bytes: Callable[[], int | None],
        resolve_step: ResolveStep,
    ) -> None:
        self._store = store
        self._threads = threads
        self._cpu_features = cpu_features
        self._quarantine = quarantine
        self._available_bytes = available_bytes
        self._resolve_step = resolve_step

    def load(self, before: VersionStatus, steps: Mapping[ModelRef, str | None]) -> VersionStatus:
        """Never raises. `steps` are the versions that answer for those of a composition now."""
        if self._quarantine is None:
            return self._try(before, steps)
        if before.label in self._quarantine.list_labels():
            logger.warning("%s is not loaded: it is quarantined", before.label)
            return quarantined_status(before, self.read_kind(before.name, before.version))
        with self._quarantine.loading(before.name, before.version):
            status = self._try(before, steps)
        if status.servable is not None:
            status.servable.marker = self._quarantine.marker(before.name, before.version)
        return status

    def fingerprint(self, status: VersionStatus) -> str:
        """Of the names, sizes and times of the version's files."""
        lines = []
        for path in sorted((self._store.root / status.name / status.version).rglob("*")):
            with contextlib.suppress(OSError):
                entry = path.stat()
                lines.append(f"{path} {entry.st_size} {entry.st_mtime_ns}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read_kind(self, name: str, version: str) -> ContentKind | None:
        """Which content a version takes; None where its manifest cannot be read."""
        manifest = self._store.version(name, Version.parse(version)).manifest
        return manifest.content_kind if manifest is not None else None

    def _try(self, before: VersionStatus, steps: Mapping[ModelRef, str | None]) -> VersionStatus:
        started = time.monotonic()
        # Taken first: what changes while it is read is tried again.
        failed = replace(
            before,
            state=State.FAILED,
            fingerprint=self.fingerprint(before),
            steps=steps,
            retry_at=math.inf,
        )
        try:
            directory = self._store.root / before.name / before.version
            check_robustness(directory, read_manifest(directory))
            found = (self._store, self._resolve_step)
            servable = load_servable(directory, self._threads, self._available_bytes(), found)
        except (InsufficientMemory, OSError) as exc:
            pause = min(max(1.0, 2 * before.pause_seconds), _LONGEST_PAUSE_SECONDS)
            logger.error("%s cannot be served, tried again in %.0f s: %s", before.label, pause, exc)
            return replace(failed, error=str(exc), retry_at=time.monotonic() + pause, pause_seconds=pause)
        except HeadwayError as exc:
            logger.error("%s cannot be served: %s", before.label, exc)
            return replace(failed, error=str(exc))
        except Exception as exc:
            # A backend may raise anything on a damaged file; that must not take its neighbours with it.
            logger.exception("%s cannot be served", before.label)
            return replace(failed, error=f"{type(exc).__name__}: {exc}")
        self._tell_missing_features(servable.manifest)
        return VersionStatus(
            before.name,
            before.version,
            State.READY,
            servable=servable,
            load_seconds=time.monotonic() - started,
            kind=servable.kind,
        )

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


def quarantined_status(status: VersionStatus, kind: ContentKind | None) -> VersionStatus:
    error = describe_quarantine(status.label)
    return VersionStatus(status.name, status.version, State.QUARANTINED, error=error, kind=kind)
