"""The baseline of a version, measured on a folder of photos or a table of rows, and the version that carries it.

Each input takes the path that serves it, alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from app.engine.call import Call
from app.engine.inference import Inference
from app.errors import InvalidContent, RunFailed
from app.monitoring.binning import Bins, ClassBins
from app.optimize.evaluate import IMAGE_SUFFIXES, find_samples
from app.optimize.labels_file import LABELS_FILE
from app.optimize.rows import find_rows
from app.processing.image import ImageProcessing
from app.registry.baseline import (
    BASELINE_FILE,
    PHOTO_FEATURES,
    Baseline,
    answer_features,
    is_name,
    megapixels,
    photo_features,
)
from app.registry.drafting.difference import Bump, bumped
from app.registry.drafting.draft import write_manifest
from app.registry.manifest import FileEntry, Manifest
from app.registry.servables.servable import Content, Resolved, Servable
from app.registry.store import Store, digest_of, verify_files
from app.registry.storing.recycle_bin import RecycleBin
from app.registry.versions import Version
from app.tensors import Array, Tensors

# Deciles of fewer say nothing.
MIN_INPUTS = 50


class Inputs(Protocol):
    """Reference data. `names` are those of all features, `skipped` what could not be read at all."""

    names: tuple[str, ...]
    skipped: tuple[str, ...]

    def __len__(self) -> int: ...

    def where(self, number: int) -> str: ...

    def read(self, number: int) -> tuple[Sequence[float], Content | Tensors]:
        """The features of one input, and what a caller would send. Raises InvalidContent."""


class Photos:
    """Files of encoded images."""

    names: tuple[str, ...] = PHOTO_FEATURES
    skipped: tuple[str, ...] = ()

    def __init__(self, servable: Servable, paths: Sequence[Path]) -> None:
        self._servable = servable
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def where(self, number: int) -> str:
        return str(self._paths[number]).encode(errors="backslashreplace").decode()  # a name need not be UTF-8

    def read(self, number: int) -> tuple[Sequence[float], Content]:
        try:
            photo = self._paths[number].read_bytes()
        except OSError as exc:
            raise InvalidContent(f"cannot be read ({exc.strerror})") from exc
        processing = self._servable.manifest.processing
        assert isinstance(processing, ImageProcessing)
        (tensor,) = self._servable.prepare("image", photo).values()
        features = photo_features(tensor, processing, megapixels(photo))
        return [features[name] for name in PHOTO_FEATURES], Content("image", (photo,))


@dataclass(frozen=True, slots=True)
class Measured:
    """`skipped` names each input that is not in the baseline, and why; `columns` is how many features the data has."""

    baseline: Baseline
    skipped: tuple[str, ...]
    columns: int


def find_inputs(servable: Servable, source: Path) -> Inputs:
    """Photos in a folder: those of its labels.csv, else all; or the rows of a CSV, .npy or .npz file.

    Raises InvalidContent for what is not there, and for a model that takes neither photos nor rows of numbers.
    """
    if servable.kind == "image":
        return Photos(servable, _find_photos(servable, source))
    return find_rows(servable, source)


def measure(
    inference: Inference,
    resolved: Resolved,
    inputs: Inputs,
    data: str,
    progress: Callable[[], None] = lambda: None,
) -> Measured:
    """Ask the version each input. `data` names them. Raises InvalidContent where fewer than 50 can be answered."""
    if not is_name(data):
        raise InvalidContent(f"{data!r} cannot be the name of the data: give it one of 1 to 128 visible characters")
    rows: list[Sequence[float]] = []
    answers: dict[str, list[Array]] = {}
    skipped = list(inputs.skipped)
    of = resolved.servable.manifest, resolved.servable.classification
    for number in range(len(inputs)):
        try:
            features, content = inputs.read(number)
            answer = inference.predict_now(Call(content, deadline=float("inf"), top_k=1), resolved)
        except (InvalidContent, RunFailed) as exc:
            skipped.append(f"{inputs.where(number)}: {exc}")
        else:
            rows.append(features)
            for key, values in answer_features(*of, answer.tensors or {}).items():
                answers.setdefault(key, []).append(values)
        progress()
    if len(rows) < MIN_INPUTS:
        reason = f"; {len(skipped)} could not be used, the first: {skipped[0]}" if skipped else ""
        raise InvalidContent(f"a baseline needs {MIN_INPUTS} inputs or more, and here are {len(rows)}{reason}")
    counted = {key: _bin(resolved, key, np.concatenate(values), len(rows)) for key, values in answers.items()}
    columns = np.array(rows, np.float64).T
    bins = {name: Bins.of(values) for name, values in zip(inputs.names, columns, strict=False)}
    baseline = Baseline(data, len(rows), bins, **counted)
    return Measured(baseline, tuple(skipped), len(inputs.names))


def next_patch(store: Store, name: str, version: str) -> str:
    """The first free number after all of the same MAJOR.MINOR, those in the bin too. Raises InvalidContent for a
    pre-release.

    What was counted of a version that was removed, in bins of another baseline, must not become that of a new one.
    """
    of = Version.parse(version)
    if not of.is_final:
        raise InvalidContent(
            f"{name}@{version} is a pre-release, and the version with its baseline would be a final one: write the "
            "baseline to a file with --output, and put it into the final version"
        )
    removed = [Version.parse(entry.version) for entry in RecycleBin(store).entries() if entry.name == name]
    taken = [other for other in (*store.version_names(name), *removed) if other.release[:2] == of.release[:2]]
    return bumped(max(taken), Bump.PATCH).text


def find_carrier(store: Store, source: Manifest, baseline: Baseline) -> str | None:
    """The version that is `source` with this very baseline, where there is one already."""
    data = baseline.to_json()
    own = source.files[source.baseline] if source.baseline is not None else None
    if own is not None and own.sha256 == digest_of(data):
        return source.version
    entry = FileEntry(sha256=digest_of(data), bytes=len(data))
    files = {name: file for name, file in source.files.items() if name != source.baseline} | {BASELINE_FILE: entry}
    for version in store.version_names(source.name):
        wanted = _content(source, version.text, baseline) | {"files": files}
        if store.version(source.name, version).manifest == Manifest.model_validate(wanted):
            return version.text
    return None


def write_carrier(directory: Path, source: Path, manifest: Manifest, baseline: Baseline) -> None:
    """Fill the empty `directory` (`…/<name>/<version>`) with the version in `source`, and with the baseline.

    Raises RegistryError where a file is no longer what `manifest` says.
    """
    kept = {name: entry for name, entry in manifest.files.items() if name != manifest.baseline}
    verify_files(source, kept)
    for name in (*kept, "README.md"):
        if (source / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, directory / name)
    (directory / BASELINE_FILE).write_bytes(baseline.to_json())
    write_manifest(directory, _content(manifest, directory.name, baseline))


def _content(manifest: Manifest, version: str, baseline: Baseline) -> dict[str, Any]:
    """model.yaml without `files`. A `serial` names one version only."""
    content = manifest.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"files", "serial"})
    how = f"the same, with a baseline of {baseline.n} inputs ({baseline.data})"
    return content | {
        "version": version,
        "baseline": BASELINE_FILE,
        "parent": {"version": manifest.version, "how": how},
    }


def _bin(resolved: Resolved, key: str, values: Array, n: int) -> Any:
    if len(values) != n:
        raise InvalidContent(
            f"{resolved.servable.name} gives {len(values)} answers to {n} inputs; a baseline needs one each"
        )
    return ClassBins.of(values) if key == "classes" else Bins.of(values)


def _find_photos(servable: Servable, folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidContent(f"{folder}: is not a folder of images")
    if (folder / LABELS_FILE).is_file() and servable.classification is not None:
        return [sample.path for sample in find_samples(folder, servable.classification.labels)]
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
