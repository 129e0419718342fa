"""What the server, a model and a version say of themselves in the words of the protocol, whatever carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import app
from app.engine.execution import MOST_RUNS
from app.errors import ModelFailed, ModelNotReady, ModelQuarantined
from app.registry.manifest import Manifest
from app.registry.releases.release import STABLE
from app.registry.servables.batch_axis import BatchAxis
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import State, VersionStatus
from app.registry.serving.worker_states import read_worker_states
from app.registry.versions import ModelRef, Version
from app.tensors import TensorSpec

# Only what works: clients switch on what they find here.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
_PLATFORMS = {"onnx": "onnxruntime_onnx", "tflite": "tflite_flatbuffer", "composition": "ensemble"}
_BACKENDS = {"onnx": "onnxruntime", "tflite": "tflite", "composition": ""}
# A request may be sent: what is loaded on demand waits for that.
_ANSWERING = (State.READY, State.UNLOADED)


@dataclass(frozen=True, slots=True)
class Described:
    """A version, loaded or not. `versions` are those of its model that are released."""

    manifest: Manifest
    versions: tuple[str, ...]
    axis: BatchAxis | None

    @property
    def is_batched(self) -> bool:
        """Whether every input has rows: what the protocol's `max_batch_size` means."""
        return self.axis is not None and len(self.axis.names) == len(self.manifest.inputs)

    @property
    def max_batch_size(self) -> int:
        """The most rows that a request may have, which the engine cuts into runs; 0 where they are not rows."""
        if not self.is_batched or self.axis is None:
            return 0
        return MOST_RUNS * (1 if self.axis.is_one else self.manifest.batch.max_size)

    def metadata(self) -> dict[str, Any]:
        """Shapes with the rows as -1 where there are any, also where the file takes one row at a time."""
        inputs, outputs = self.specs()
        return {
            "name": self.manifest.name,
            "versions": list(self.versions),
            "platform": _PLATFORMS[self.manifest.runtime],
            "inputs": [_tensor(spec) for spec in inputs],
            "outputs": [_tensor(spec) for spec in outputs],
        }

    def config(self) -> dict[str, Any]:
        """What there is of Triton's model configuration; dims are without the rows where `max_batch_size` is not 0."""
        batch = self.manifest.batch
        inputs, outputs = (
            [_config_tensor(spec, is_batched=self.is_batched) for spec in specs] for specs in self.specs()
        )
        config: dict[str, Any] = {
            "name": self.manifest.name,
            "platform": _PLATFORMS[self.manifest.runtime],
            "backend": _BACKENDS[self.manifest.runtime],
            "version_policy": {"specific": {"versions": list(self.versions)}},
            "max_batch_size": self.max_batch_size,
            "input": inputs,
            "output": outputs,
        }
        if self.is_batched and batch.max_size > 1:
            config["dynamic_batching"] = {
                "preferred_batch_size": [batch.max_size],
                "max_queue_delay_microseconds": round(batch.max_wait_ms * 1000),
            }
        return config

    def specs(self) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
        """Inputs and outputs, the first size of what has rows -1."""
        inputs, outputs = self.manifest.input_specs, self.manifest.output_specs
        if self.axis is None:
            return inputs, outputs
        return self.axis.free(inputs), [TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:])) for spec in outputs]


class Description:
    """Of this server. `run_dir` holds the states of all its workers; without it, this process is all there is.

    All calls may read files: outside the event loop.
    """

    def __init__(self, registry: Registry, run_dir: Path | None = None) -> None:
        self._registry = registry
        self._run_dir = run_dir

    def server(self) -> dict[str, Any]:
        return {"name": "headway", "version": app.__version__, "extensions": list(EXTENSIONS)}

    def model_names(self) -> list[str]:
        return list(self._registry.models)

    def model(self, name: str, tag: str | None = None) -> Described:
        """A version, or the one that an alias (by default stable) stands for; nothing is loaded by that.

        Raises ModelNotFound and its kin, ModelUnloaded, or ModelFailed where it cannot be served.
        """
        status = self._registry.find(ModelRef(name, tag))
        _check_state(status)
        release = self._registry.models[name].release
        versions = tuple(sorted(release.versions, key=Version.parse)) if release is not None else ()
        if status.servable is not None:
            return Described(status.servable.manifest, versions, status.servable.batch_axis)
        found = self._registry.store.version(name, Version.parse(status.version))
        if found.manifest is None:
            raise ModelFailed(f"{status.label} cannot be served: {found.error}")
        return Described(found.manifest, versions, BatchAxis.of(found.manifest))

    def find_version(self, name: str, tag: str | None = None) -> str:
        """Which version is meant. Raises as `model`, but for a version that cannot be served."""
        return self._registry.find(ModelRef(name, tag)).version

    def check_ready(self, name: str, tag: str | None = None) -> str:
        """Whether requests may be sent for it, to whichever worker of this server; returns the version.

        Raises as `model`, and ModelNotReady while it is being loaded.
        """
        status = self._registry.find(ModelRef(name, tag))
        _check_state(status)
        if status.state is State.LOADING:
            raise ModelNotReady(f"{status.label} is being loaded; try again in a second")
        for worker in read_worker_states(self._run_dir) if self._run_dir is not None else ():
            model = worker.models.get(name, {})
            version = model.get("serving", {}).get(tag or STABLE, status.version)
            if model.get("versions", {}).get(version, {}).get("state") not in _ANSWERING:
                raise ModelNotReady(f"{status.label} is not ready in every worker yet; try again in a second")
        return status.version


def _check_state(status: VersionStatus) -> None:
    if status.state is State.QUARANTINED:
        raise ModelQuarantined(str(status.error))
    if status.state is State.FAILED:
        raise ModelFailed(f"{status.label} cannot be served: {status.error}")


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _config_tensor(spec: TensorSpec, *, is_batched: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}",
        "dims": list(spec.shape[1:] if is_batched else spec.shape),
    }
