"""Shows the state of every released version in the metrics, and to the other workers."""

from __future__ import annotations

import logging

from app.metrics import Metrics
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import VersionStatus
from app.registry.serving.worker_states import StateFile

logger = logging.getLogger(__name__)


class ModelStates:
    """For one process; not thread-safe."""

    def __init__(self, registry: Registry, metrics: Metrics, file: StateFile | None = None) -> None:
        self._registry = registry
        self._metrics = metrics
        self._file = file
        self._published: dict[tuple[str, str], str] = {}
        self._is_hidden = False

    def publish(self) -> None:
        """Bring metrics and file up to date; what has not changed since the last call costs next to nothing."""
        there = {
            (status.name, status.version): status
            for model in self._registry.models.values()
            for status in model.versions.values()
        }
        for key in set(self._published) - set(there):
            self._metrics.model_state.labels(*key, self._published.pop(key)).set(0)
        for key, status in there.items():
            before = self._published.get(key)
            if before != status.state:
                self._publish(status, before)
                self._published[key] = status.state
        if self._file is not None:
            self._show(self._file)

    def _show(self, file: StateFile) -> None:
        """Tried again at each call, and told when it begins to fail: a full disk would fill the log, too."""
        try:
            file.write(self._registry)
        except OSError as exc:
            if not self._is_hidden:
                logger.error("the state of this worker cannot be shown to the others, which tell an old one: %s", exc)
            self._is_hidden = True
        else:
            self._is_hidden = False

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
            accuracy = next((entry.top1 for entry in manifest.evaluation[::-1] if entry.top1 is not None), None)
            if accuracy is not None:
                metrics.recorded_accuracy.labels(*key).set(accuracy)
