"""What was measured of a version under attack, `robustness.json` beside its model.yaml, and the gate that it opens.

`headway robustness` measures; here it is only read, so a server attacks nothing. The file is not listed in model.yaml:
a measurement of a version is not the version, which never changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import RegistryError
from app.registry.manifest import ClassificationAnswer, Manifest
from app.registry.releases.release_file import FileCalls, replace_release
from app.registry.store import Store
from app.registry.storing.locking import changing
from app.registry.yaml import describe_validation_error

ROBUSTNESS_FILE = "robustness.json"
_MAX_FILE_BYTES = 1_000_000


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measurement(_Section):
    """Of one attack at one strength. All shares are of the `n` samples: `accuracy` right before the attack,
    `robust_accuracy` right before and after it, `changed` with another label after it than before.

    `gradients` says whose they were, of an attack that goes by them. `strength` is in levels of 1/255 of photos, in
    the input's own units of numbers, and a severity of 1 to 5 of corruptions.
    """

    attack: str = Field(min_length=1)
    strength: float = Field(gt=0, allow_inf_nan=False)
    n: int = Field(ge=1)
    accuracy: float = Field(ge=0, le=1)
    robust_accuracy: float = Field(ge=0, le=1)
    changed: float = Field(ge=0, le=1)
    data: str
    seed: int = Field(ge=0)
    how: str
    gradients: str | None = None
    cpu: str
    libraries: Mapping[str, str] = {}


class Record(_Section):
    """`files` are the digests of the model's own files, whose measurements these are."""

    schema_: int = Field(default=1, alias="schema", ge=1, le=1)
    files: Mapping[str, str]
    measurements: tuple[Measurement, ...]

    def find(self, attack: str, strength: float) -> Measurement | None:
        for measurement in self.measurements:
            if (measurement.attack, measurement.strength) == (attack, strength):
                return measurement
        return None


def model_files(manifest: Manifest) -> dict[str, str]:
    """SHA-256 by name of what the version computes with: the model file and the weights that it keeps beside it."""
    labels = manifest.answer.labels if isinstance(manifest.answer, ClassificationAnswer) else None
    golden = manifest.golden.file if manifest.golden is not None else None
    others = {labels, golden, manifest.baseline}
    return {
        name: entry.sha256
        for name, entry in manifest.files.items()
        if name not in others and not name.startswith("golden/")
    }


def read_record(directory: Path) -> Record | None:
    """What was kept in the version's directory; None where nothing was. Raises RegistryError with the field."""
    path = directory / ROBUSTNESS_FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise RegistryError(f"{path}: cannot be read ({exc.strerror}); check its rights") from exc
    if len(data) > _MAX_FILE_BYTES:
        raise RegistryError(f"{path}: is larger than {_MAX_FILE_BYTES} bytes; remove it, and measure anew")
    try:
        content = json.loads(data)
        return Record.model_validate(content)
    except ValidationError as exc:
        raise RegistryError(f"{path}: {describe_validation_error(exc, Record, content)}; measure anew") from exc
    except (ValueError, RecursionError) as exc:
        raise RegistryError(f"{path}: is not JSON ({' '.join(str(exc).split())}); measure anew") from exc


def keep_measurements(store: Store, manifest: Manifest, measurements: Iterable[Measurement]) -> Path:
    """Add to the version's record; the newest of an attack and a strength replaces the one before it.

    What is kept of other files than the version's own goes. Raises RegistryReadOnly, RegistryFull, RegistryBusy.
    """
    directory = store.root / manifest.name / manifest.version
    path = directory / ROBUSTNESS_FILE
    with changing(store.release_path(manifest.name).parent):
        try:
            before = read_record(directory)
        except RegistryError:
            before = None  # damaged: measured anew is what mends it
        files = model_files(manifest)
        kept = before.measurements if before is not None and before.files == files else ()
        found = {(one.attack, one.strength): one for one in (*kept, *measurements)}
        replace_release(path, render_record(files, (found[key] for key in sorted(found))), FileCalls())
    return path


def render_record(files: Mapping[str, str], measurements: Iterable[Measurement]) -> bytes:
    """The same bytes for the same figures."""
    content = {
        "schema": 1,
        "files": dict(sorted(files.items())),
        "measurements": [one.model_dump(mode="json", exclude_none=True) for one in measurements],
    }
    return json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n"


def find_unmet(directory: Path, manifest: Manifest) -> str | None:
    """Which demand of `min_robust_accuracy` the version in `directory` does not meet, and what to do; None: all are
    met. Raises RegistryError where the record cannot be read."""
    if not manifest.min_robust_accuracy:
        return None
    record = read_record(directory)
    fitting = record if record is not None and record.files == model_files(manifest) else None
    for gate in manifest.min_robust_accuracy:
        found = fitting.find(gate.attack, gate.strength) if fitting is not None else None
        demand = f"min_robust_accuracy asks for {gate.value:g} under {gate.attack} of strength {gate.strength:g}"
        remedy = f"measure it: headway robustness {manifest.name}@{manifest.version} DIR"
        if record is not None and fitting is None:
            return f"{demand}, and {ROBUSTNESS_FILE} is of other model files than these; {remedy}"
        if found is None:
            return f"{demand}, and that was not measured of this file; {remedy}"
        if found.n < gate.samples:
            return f"{demand} on {gate.samples} samples, and {found.n} were measured; {remedy}"
        if found.robust_accuracy < gate.value:
            return (
                f"{demand}, and {found.robust_accuracy:.4g} was measured on {found.n} samples of {found.data}; "
                "release another version, or train one that is more robust"
            )
    return None


def check_robustness(directory: Path, manifest: Manifest) -> None:
    """Raises RegistryError where the version does not meet its own demands, or the record cannot be read."""
    unmet = find_unmet(directory, manifest)
    if unmet is not None:
        raise RegistryError(f"{manifest.name}@{manifest.version} may not be released: {unmet}")
