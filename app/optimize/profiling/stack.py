"""Which software may run a version, and the version opened with it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.errors import InvalidContent, RegistryError
from app.optimize.profiling.openvino_runtime import OpenvinoRuntime, import_openvino
from app.optimize.profiling.records import RUNTIME_TITLES, RuntimeName, Stack
from app.registry.manifest import COMPOSITION, Manifest, read_manifest
from app.registry.servables.golden import run_golden_tests
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Servable
from app.registry.store import Store, verify_files

_PACKAGES: dict[RuntimeName, str] = {"onnx": "onnxruntime", "tflite": "ai-edge-litert", "openvino": "openvino"}
_MODULES: dict[RuntimeName, str] = {"onnx": "onnxruntime", "tflite": "ai_edge_litert.interpreter"}
_RUNTIMES: dict[str, tuple[RuntimeName, ...]] = {"onnx": ("onnx", "openvino"), "tflite": ("tflite",)}


@dataclass(frozen=True, slots=True)
class Opened:
    """A version that runs with `stack`. As to `golden` see Profile."""

    stack: Stack
    servable: Servable
    golden: str | None


def runtimes_of(manifest: Manifest) -> tuple[RuntimeName, ...]:
    """What reads the version's file, its own runtime first. Raises InvalidContent for a composition."""
    if manifest.runtime == COMPOSITION:
        raise InvalidContent(
            f"{manifest.name}@{manifest.version} is made of other versions, which may run on several stacks: profile "
            "each of its steps; for the whole there is headway evaluate --against-steps"
        )
    return _RUNTIMES[manifest.runtime]


def open_with(store: Store, directory: Path, runtime: RuntimeName, threads: int) -> Opened:
    """Verify and load the version in `directory`. Raises InvalidContent, RegistryError, RuntimeLoadError."""
    try:
        stack = Stack(runtime=runtime, version=version(_PACKAGES[runtime]))
    except PackageNotFoundError as exc:
        extra = {"tflite": "headway[tflite]", "openvino": "headway[openvino]"}.get(runtime, _PACKAGES[runtime])
        raise InvalidContent(f"{RUNTIME_TITLES[runtime]} is not installed: pip install '{extra}'") from exc
    manifest = read_manifest(directory)
    known = runtimes_of(manifest)
    if runtime not in known:
        titles = " or ".join(RUNTIME_TITLES[name] for name in known)
        raise InvalidContent(
            f"{manifest.name}@{manifest.version} runs with {titles}, not with {RUNTIME_TITLES[runtime]}; a twin for "
            "that runtime is another version: headway profile matrix takes both"
        )
    if runtime == manifest.runtime:
        servable = Opener(store, threads).open_directory(directory)
        return Opened(stack, servable, "" if manifest.golden is not None else None)
    verify_files(directory, manifest.files)
    names = [[spec.name for spec in specs] for specs in (manifest.input_specs, manifest.output_specs)]
    other = Servable(manifest, directory, OpenvinoRuntime(directory / manifest.model_file, threads, *names))
    other.check_batch_axis()
    return Opened(stack, other, _try_golden(other))


def import_runtime(runtime: RuntimeName) -> None:
    """So that a library's own memory is not taken for that of the model."""
    if runtime == "openvino":
        import_openvino()
    else:
        importlib.import_module(_MODULES[runtime])


def libraries_of(runtime: RuntimeName) -> Sequence[str]:
    """The packages whose versions are noted beside the runtime's own."""
    return ("numpy", "pillow", _PACKAGES[runtime])


def _try_golden(servable: Servable) -> str | None:
    """Another runtime may round otherwise: that is a finding about the stack, not an error."""
    try:
        return "" if run_golden_tests(servable) else None
    except RegistryError as exc:
        return str(exc).replace(f"{servable.directory}/", "")
