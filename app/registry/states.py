"""Shows the state of every released version in the metrics, and keeps it true while a server runs."""

from __future__ import annotations

import asyncio
import logging

from app.metrics import Metrics
from app.registry.lifecycle import Registry, VersionStatus

_WATCH_SECONDS = 1.0

logger = logging.getLogger(__name__)


class ModelStates:
    """For one process; not thread-safe."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self._published: dict[tuple[str, str], str] = {}

    async def watch(self) -> None:
        """Until cancelled. A worker that nobody asks would else not see what is quarantined."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                self._registry.withdraw_quarantined()
                self.publish()
            except Exception:
                logger.exception("the states of the models could not be published")

    def publish(self) -> None:
        """Bring the metrics up to date; what has not changed since the last call costs next to nothing."""
        for model in self._registry.models.values():
            for status in model.versions.values():
                key = (status.name, status.version)
                before = self._published.get(key)
                if before != status.state:
                    self._publish(status, before)
                    self._published[key] = status.state

    def _publish(self, status: VersionStatus, before: str | None) -> None:
        metrics, key = self._metrics, (status.name, status.version)
        if before is not None:
            metrics.model_state.labels(*key, before).set(0)
        metrics.model_state.labels(*key, status.state).set(1)
        metrics.model_load.labels(*key).set(status.load_seconds)
        if status.servable is not None:
            manifest = status.servable.manifest
            metrics.model_info.labels(*key, manifest.task, manifest.runtime).set(1)
            metrics.model(*key)
