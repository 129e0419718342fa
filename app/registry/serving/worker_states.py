"""What each worker of this machine serves, in a file of its own; every answer about state is made from all of them.

Workers share nothing else: without these files, GET /models would tell what the worker that took the connection knows.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import ModelStatus

_DIRECTORY = "workers"


@dataclass(frozen=True, slots=True)
class WorkerState:
    """`models` maps a name to `digest`, `revision`, `has_converged`, `error`, `serving`, `wish` and `versions`."""

    slot: int
    pid: int
    models: Mapping[str, Any]


class StateFile:
    """The file of this worker, `<run_dir>/workers/<slot>.json`, replaced as a whole when its content changes."""

    def __init__(self, run_dir: Path, slot: int) -> None:
        self._path = run_dir / _DIRECTORY / f"{slot}.json"
        self._slot = slot
        self._written = b""

    def write(self, registry: Registry) -> None:
        """Raises OSError where there is no room."""
        models = {name: describe_model(status) for name, status in registry.models.items()}
        content = json.dumps({"slot": self._slot, "pid": os.getpid(), "models": models}).encode()
        if content == self._written:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        staged = self._path.with_suffix(".new")
        staged.write_bytes(content)
        staged.replace(self._path)
        self._written = content


def describe_model(status: ModelStatus) -> dict[str, Any]:
    return {
        "digest": status.desired.digest,
        "revision": status.release.revision if status.release is not None else None,
        "has_converged": status.has_converged,
        "error": status.error,
        "serving": dict(status.serving),
        "wish": status.wish.number if status.wish is not None else None,
        "versions": {
            version: {"state": str(entry.state), "error": entry.error} for version, entry in status.versions.items()
        },
    }


def read_worker_states(run_dir: Path) -> list[WorkerState]:
    """Of every worker that lives, by slot. One that is just being replaced is missing."""
    states = []
    for path in sorted((run_dir / _DIRECTORY).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            content = json.loads(path.read_bytes())
            os.kill(content["pid"], 0)
            states.append(WorkerState(content["slot"], content["pid"], content["models"]))
    return states


def merge_versions(states: Iterable[WorkerState], name: str) -> dict[str, dict[str, Any]]:
    """For each version of a model its state over the workers (the one furthest from ready), an error, and counts."""
    merged: dict[str, dict[str, Any]] = {}
    for state in states:
        for version, entry in state.models.get(name, {}).get("versions", {}).items():
            found = merged.setdefault(version, {"state": entry["state"], "error": None, "workers": {}})
            found["workers"][entry["state"]] = found["workers"].get(entry["state"], 0) + 1
            found["error"] = found["error"] or entry["error"]
            found["state"] = max(found["state"], entry["state"], key=_SEVERITY.index)
    return merged


def has_converged(states: Iterable[WorkerState], name: str, digest: str | None = None) -> bool:
    """Whether every worker serves what one and the same release asks for: that of `digest` where it is given."""
    seen = [state.models.get(name, {}) for state in states]
    digests = {model.get("digest") for model in seen} | ({digest} if digest is not None else set())
    return len(digests) == 1 and all(model.get("has_converged") for model in seen)


_SEVERITY = ("ready", "unloaded", "loading", "failed", "quarantined")
