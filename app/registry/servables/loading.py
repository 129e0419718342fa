"""From a directory to something that serves: digests, load, signature, warm-up, batch axis, golden tests."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from app.errors import InsufficientMemory, RegistryError, RunFailed
from app.processing.text import TextProcessing
from app.registry.baseline import Baseline, load_baseline
from app.registry.manifest import Manifest, read_manifest
from app.registry.servables.bin_sample import BinSample
from app.registry.servables.composed import Composed, ResolveStep
from app.registry.servables.golden import run_golden_tests
from app.registry.servables.servable import Servable
from app.registry.step_graph import check_steps
from app.registry.store import Store, verify_files
from app.runtimes.base import Runtime
from app.runtimes.onnx import OnnxRuntime
from app.runtimes.onnx_file import external_locations
from app.runtimes.packed import unpacked_size
from app.runtimes.pool import RuntimePool
from app.runtimes.tflite import TfliteRuntime
from app.tensors import NUMPY_DTYPES, Array

# Whether a model is run in the event loop hangs on this figure, and one run of so little is mostly noise.
_QUICK_SECONDS = 0.002
_MORE_RUNS = 5


def load_servable(
    directory: Path,
    threads: int,
    available_bytes: int | None = None,
    steps: tuple[Store, ResolveStep] | None = None,
) -> Servable:
    """Load one version ready to run: every check of the lifecycle, warm-up among them.

    `steps`: where a composition finds the versions that it names, and who answers for them. Raises RegistryError or
    RuntimeLoadError with the file, the field and the fix, StepNotReady where a step cannot answer, and
    InsufficientMemory where it needs more than `available_bytes`.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest.files)
    baseline = load_baseline(directory, manifest)
    needed = manifest.needed_bytes
    if available_bytes is not None and needed > available_bytes:
        raise InsufficientMemory(
            f"{directory}: needs about {needed / 1e6:.0f} MB of memory, and {available_bytes / 1e6:.0f} MB are free; "
            "release fewer versions at one time, or give the server more"
        )
    if manifest.composition is not None:
        return _load_composed(manifest, directory, steps, baseline)
    if manifest.is_packed:
        _check_unpacked_size(directory, manifest)
    _check_external_files(directory, manifest)
    runtime = _open_runtime(manifest, directory / manifest.model_file, threads)
    try:
        servable = Servable(manifest, directory, runtime)
        _warm_up(servable)
        servable.check_batch_axis()
        run_golden_tests(servable)
    except BaseException:
        runtime.close()
        raise
    if baseline is not None:
        servable.sample = BinSample(manifest, servable.classification, baseline)
    return servable


def _check_unpacked_size(directory: Path, manifest: Manifest) -> None:
    """Before it is unpacked: what memory it takes has been decided by what model.yaml says."""
    path, entry = directory / manifest.model_file, manifest.files[manifest.model_file]
    found = unpacked_size(path)
    if found != entry.unpacked_bytes:
        raise RegistryError(
            f"{path}: unpacks to {found} bytes, model.yaml (files) says {entry.unpacked_bytes}; copy the version again"
        )


def weights_beside(directory: Path, manifest: Manifest) -> list[str]:
    """The files that the model file keeps weights in, as `files` names them; LiteRT's keep all in themselves."""
    if manifest.runtime != "onnx":
        return []
    return [str(PurePosixPath(location)) for location in external_locations(directory / manifest.model_file)]


def _check_external_files(directory: Path, manifest: Manifest) -> None:
    """Weights that a model file keeps in other files must be files of this version: their digests are held, too."""
    for name in weights_beside(directory, manifest):
        if name not in manifest.files:
            raise RegistryError(
                f"{directory / manifest.model_file}: keeps weights in {name!r}, which is not listed in model.yaml "
                "(files); put that file into the version's directory and list it, or save the model as one file"
            )


def _load_composed(
    manifest: Manifest, directory: Path, steps: tuple[Store, ResolveStep] | None, baseline: Baseline | None
) -> Servable:
    if steps is None:
        raise RegistryError(f"{directory / 'model.yaml'}: names other versions, so it is loaded with its registry only")
    store, resolve_step = steps
    check_steps(store, manifest)
    servable = Composed(manifest, directory, resolve_step)
    _warm_up(servable)
    run_golden_tests(servable)
    if baseline is not None:
        servable.sample = BinSample(manifest, servable.classification, baseline)
    return servable


def _open_runtime(manifest: Manifest, path: Path, threads: int) -> Runtime:
    open_one = _RUNTIMES[manifest.runtime]
    if manifest.limits.instances is None:
        return open_one(manifest, path, threads)
    return RuntimePool([open_one(manifest, path, threads) for _ in range(manifest.limits.instances)])


def _open_onnx(_: Manifest, path: Path, threads: int) -> Runtime:
    return OnnxRuntime(path, threads)


def _open_tflite(manifest: Manifest, path: Path, threads: int) -> Runtime:
    inputs, outputs = (
        [spec.name for spec in specs if spec.datatype == "FP32"]
        for specs in (manifest.input_specs, manifest.output_specs)
    )
    return TfliteRuntime(path, threads, inputs, outputs)


_RUNTIMES: Mapping[str, Callable[[Manifest, Path, int], Runtime]] = {"onnx": _open_onnx, "tflite": _open_tflite}


def _warm_up(servable: Servable) -> None:
    """Run the whole path twice, a quick one more often: the first run of a session takes twice as long as the next.

    Raises RegistryError where the model fails, or gives what its manifest does not say.
    """
    content = _trial_content(servable)
    _try_run(servable, content)
    servable.warm_seconds = _try_run(servable, content)
    for _ in range(_MORE_RUNS):
        if servable.warm_seconds < _QUICK_SECONDS:
            servable.warm_seconds = min(servable.warm_seconds, _try_run(servable, content))


def _try_run(servable: Servable, content: bytes | None) -> float:
    """One run of the whole path, without content on zeros; returns what it took in seconds."""
    started = time.monotonic()
    try:
        if content is not None:
            outputs = servable.run_item(servable.kind, content)
        else:
            specs = servable.manifest.input_specs
            outputs = servable.run({spec.name: _zeros(spec.datatype, spec.shape) for spec in specs})
    except RunFailed as exc:
        path = servable.directory / servable.manifest.model_file
        raise RegistryError(f"{path}: fails on a trial run, so it cannot serve: {exc}") from exc
    servable.check_outputs(outputs)
    servable.answer(outputs, 1)
    return time.monotonic() - started


def _trial_content(servable: Servable) -> bytes | None:
    """A photo, or a text that is as long as a sentence."""
    processing = servable.manifest.processing
    if isinstance(processing, TextProcessing):
        return b"The quick brown fox jumps over the lazy dog, twice."[: processing.max_characters]
    return _grey_photo() if servable.kind == "image" else None


def _grey_photo() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (320, 320), "grey").save(buffer, "JPEG")
    return buffer.getvalue()


def _zeros(datatype: str, shape: tuple[int, ...]) -> Array:
    sizes = [1 if size == -1 else size for size in shape]
    if datatype == "BYTES":
        return np.full(sizes, b"", dtype=object)
    return np.zeros(sizes, dtype=NUMPY_DTYPES[datatype])
