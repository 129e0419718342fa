"""The model repository extension: what there is, load and unload. What is released is not changed by that.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.errors import Conflict, InvalidContent, ModelFailed, ModelNotFound, ModelNotReady, RegistryFull
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import ModelStatus, State
from app.registry.serving.wishes import Wish, Wishes
from app.registry.serving.worker_states import WorkerState, describe_model, merge_versions, read_worker_states
from app.registry.versions import Version

_POLL_SECONDS = 0.05
# Clients give an answer 60 s as a rule.
_LONGEST_WAIT_SECONDS = 55.0
# Requests may be sent for what is loaded on demand.
_STATES = {State.READY: "READY", State.UNLOADED: "READY", State.LOADING: "LOADING"}
_REASONS = {State.UNLOADED: "loaded at its first request", State.LOADING: ""}


class Repository:
    """Of this server. `run_dir` holds the states of all its `workers`; without it each knows of itself only."""

    def __init__(self, registry: Registry, wishes: Wishes, run_dir: Path | None = None, *, workers: int = 1) -> None:
        self._registry = registry
        self._wishes = wishes
        self._run_dir = run_dir
        self._is_reachable = run_dir is not None or workers == 1

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """Every released version and its state, the one furthest from ready over the workers. Reads files."""
        workers = self._workers()
        found = [
            entry
            for name, model in self._registry.models.items()
            for entry in _describe_versions(name, model, merge_versions(workers, name))
        ]
        return [entry for entry in found if entry["state"] == "READY" or not only_ready]

    async def load(self, name: str, parameters: dict[str, Any]) -> None:
        """Load every released version in every worker now, also what is loaded on demand and what failed before.

        A published version does not change, so what is there stays. Raises InvalidContent for parameters,
        ModelNotFound for what is not released, ModelFailed with the first reason, ModelNotReady where it takes long.
        """
        if parameters:
            raise InvalidContent(
                f"parameters: load takes none here, not {min(parameters)[:60]!r}; a new version, its files and its "
                "configuration are added by POST /update or `headway models add`"
            )
        self._find(name)
        wish = await self._make(name, is_load=True)
        workers = await self._wait(name, wish)
        for version, entry in merge_versions(workers, name).items():
            if entry["state"] not in (State.READY, State.LOADING):
                raise ModelFailed(f"{name}@{version} cannot be served: {entry['error']}")

    async def unload(self, name: str, parameters: dict[str, Any]) -> None:
        """Serve no version any more, in no worker, and give their memory back once the requests that run are over.

        It holds until `load`, or the end of the server. Raises InvalidContent, ModelNotFound, or Conflict where the
        release says that the model stays loaded.
        """
        unknown = sorted(set(parameters) - {"unload_dependents"})
        if unknown:
            raise InvalidContent(f"parameters: unload takes unload_dependents, not {unknown[0][:60]!r}")
        if parameters.get("unload_dependents", False) not in (True, False):
            raise InvalidContent("parameters: unload_dependents is true or false")
        model = self._find(name)
        if model.release is not None and model.release.load == "pinned":
            raise Conflict(
                f"model {name!r} is pinned: its release says that it stays loaded; set load to eager or lazy first"
            )
        if parameters.get("unload_dependents") and any(
            entry.servable is not None and entry.servable.manifest.composition is not None
            for entry in model.versions.values()
        ):
            raise InvalidContent(f"{name!r} is a composition, and its steps may have other users; unload each by name")
        wish = await self._make(name, is_load=False)
        await self._wait(name, wish)

    def _find(self, name: str) -> ModelStatus:
        if not self._registry.is_loaded:
            raise ModelNotReady("the models are still loading; try again in a second")
        model = self._registry.models.get(name)
        if model is None:
            raise ModelNotFound(
                f"there is no model {name!r}; one that is new in the directory is released first (headway release)"
            )
        return model

    async def _make(self, name: str, *, is_load: bool) -> Wish:
        if not self._is_reachable:
            raise Conflict("the workers have no run directory to share (see the log of the start); use one worker")
        try:
            wish = await asyncio.to_thread(self._wishes.make, name, is_load=is_load)
        except OSError as exc:
            raise RegistryFull(f"the workers cannot be told ({exc.strerror}); make room for the run directory") from exc
        self._registry.has_more_to_do.set()
        return wish

    async def _wait(self, name: str, wish: Wish) -> Sequence[WorkerState]:
        """The states of the workers once each has followed. Raises ModelNotReady where that takes too long."""
        limit = time.monotonic() + _LONGEST_WAIT_SECONDS
        while True:
            workers = await asyncio.to_thread(self._workers)
            if workers and all(_follows(worker.models.get(name), wish) for worker in workers):
                return workers
            if time.monotonic() >= limit:
                raise ModelNotReady(
                    f"not every worker has done it after {_LONGEST_WAIT_SECONDS:.0f} s, and they go on; look at "
                    "/v2/repository/index"
                )
            await asyncio.sleep(_POLL_SECONDS)

    def _workers(self) -> list[WorkerState]:
        if self._run_dir is not None:
            return read_worker_states(self._run_dir)
        models = {name: describe_model(status) for name, status in self._registry.models.items()}
        return [WorkerState(0, 0, models)]


def _follows(model: dict[str, Any] | None, wish: Wish) -> bool:
    """Whether a worker has followed this wish, or a later one. A model that is gone meanwhile needs no more."""
    if model is None:
        return True
    is_loading = any(entry["state"] == State.LOADING for entry in model["versions"].values())
    return not is_loading and (model["wish"] or 0) >= wish.number


def _describe_versions(name: str, model: ModelStatus, merged: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    if model.release is None:
        return [{"name": name, "version": "", "state": "UNAVAILABLE", "reason": str(model.error)}]
    entries = {
        version: {"state": entry.state, "error": entry.error} for version, entry in model.versions.items()
    } | merged
    found = []
    for version in sorted(entries, key=Version.parse):
        state = State(entries[version]["state"])
        reason = entries[version]["error"] or ("unloaded" if model.is_unloaded else _REASONS.get(state, ""))
        told = "UNAVAILABLE" if state is State.UNLOADED and model.is_unloaded else _STATES.get(state, "UNAVAILABLE")
        found.append({"name": name, "version": version, "state": told, "reason": reason})
    return found
