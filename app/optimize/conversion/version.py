"""From an opened source to a version's directory: converted, held against the source on samples, described."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from app.errors import HeadwayError, InvalidContent, RunFailed, RuntimeLoadError
from app.optimize.conversion.forms import form_of
from app.optimize.conversion.samples import Agreement, Samples, by_rows, compare
from app.optimize.conversion.source import Source, Target, digest_of, versions_of
from app.optimize.derived import CARD, table
from app.registry.drafting.draft import Draft, Wishes, write_manifest
from app.registry.drafting.probe import open_model_file
from app.registry.manifest import MODEL_FILES
from app.tensors import Tensors

_UNKNOWN = "not known to the converter"
# Names a step and how many parts it has; what it returns is called after each.
Progress = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Origin:
    """What was converted, as its card names it: without where it lies on this machine."""

    source: str
    form: str
    target: Target
    command: str
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Conversion:
    """`path` is the new file. `labels` are the source's own classes."""

    path: Path
    origin: Origin
    libraries: Mapping[str, str]
    samples: str
    agreement: Agreement
    labels: Path | None = None


def origin_of(source: str, weights: Path | None, target: Target, command: str) -> Origin:
    files = {Path(source).resolve().name: Path(source)} if Path(source).exists() else {}
    files |= {weights.resolve().name: weights} if weights is not None else {}
    name = next(iter(files)) if Path(source).exists() else source
    shown = f"{name} with {weights.resolve().name}" if weights is not None else name
    digests = {name: digest_of(path) for name, path in files.items()}
    return Origin(shown, form_of(source).name, target, command, digests)


def convert_source(
    source: Source, origin: Origin, samples: Samples, folder: Path, tolerance: float, progress: Progress
) -> Conversion:
    """Write the new file into `folder`. Raises InvalidContent where it cannot be converted, or answers otherwise than
    the source: by more than `tolerance` in any value, or with another top-1."""
    path = folder / MODEL_FILES[origin.target]
    advance = progress("converting", 1)
    try:
        libraries = source.convert(origin.target, path)
    except ImportError as exc:
        raise InvalidContent(f"a package is missing ({exc}): pip install 'headway[training]'") from exc
    advance()
    agreement = _compare(source, origin.target, path, samples, progress)
    if not agreement.largest <= tolerance or agreement.other_top1:
        raise InvalidContent(
            f"not registered: the result answers otherwise than the source, on {samples.data}: {agreement}, of "
            f"{agreement.rows} rows; --tolerance is {tolerance:g}. Where only the figures are large, allow more with "
            "--tolerance; give inputs such as the network was trained on with --samples"
        )
    labels = None
    if source.labels is not None:
        labels = folder / "labels.txt"
        labels.write_text("".join(f"{label}\n" for label in source.labels), encoding="utf-8")
    return Conversion(path, origin, libraries, samples.data, agreement, labels)


def write_version(directory: Path, conversion: Conversion, wishes: Wishes) -> None:
    """Fill `directory` (`…/<name>/<version>`, empty). Raises InvalidContent with the flag that is missing or wrong."""
    if conversion.labels is not None and wishes.labels is None:
        wishes = replace(wishes, labels=conversion.labels, activation=wishes.activation or "none")
    Draft(conversion.path, wishes).write(directory)
    content = yaml.safe_load((directory / "model.yaml").read_text(encoding="utf-8"))
    del content["files"]
    write_manifest(directory, content | _provenance(conversion))
    (directory / CARD).write_text(_card(directory, content, conversion), encoding="utf-8")


def _compare(source: Source, target: Target, path: Path, samples: Samples, progress: Progress) -> Agreement:
    advance = progress("comparing", len(samples.runs))
    # Quantised values as what they stand for: the source has no others.
    try:
        runtime = open_model_file(target, path, takes_floats=True)
    except RuntimeLoadError as exc:
        raise InvalidContent(f"the result cannot be served: {str(exc).replace(f'{path.parent}/', '')}") from exc
    names = {spec.name for spec in runtime.inputs}
    if names != {spec.name for spec in source.inputs}:
        raise InvalidContent(f"the result takes {', '.join(sorted(names))}, and the source {_names(source)}")

    def answer(tensors: Tensors) -> Tensors:
        try:
            return runtime.run({name: np.ascontiguousarray(array) for name, array in tensors.items()})
        except RunFailed as exc:
            raise InvalidContent(f"the result fails on samples that the source takes: {exc}") from exc

    def of_source(tensors: Tensors) -> Tensors:
        expected = source.run(tensors)
        advance()
        return expected

    try:
        return compare(samples, of_source, by_rows(answer, runtime.inputs))
    except HeadwayError as exc:
        raise InvalidContent(f"not registered: {exc}") from exc
    finally:
        runtime.close()


def _names(source: Source) -> str:
    return ", ".join(sorted(spec.name for spec in source.inputs))


def _provenance(conversion: Conversion) -> dict[str, Any]:
    """What is known of its making: nothing of its training, all of its conversion."""
    origin = conversion.origin
    libraries = {"python": platform.python_version(), **conversion.libraries, **versions_of("onnxruntime")}
    return {
        "training": {
            "algorithm": f"{_UNKNOWN}; converted to {origin.target} from {origin.source} ({origin.form})",
            "data": _UNKNOWN,
            "parameters": {f"sha256 of {name}": digest for name, digest in origin.digests.items()},
        },
        "evaluation": [
            {
                "data": f"the source, on {conversion.samples}",
                "n": conversion.agreement.rows,
                "libraries": libraries,
                "date": datetime.date.today().isoformat(),
                "note": str(conversion.agreement),
            }
        ],
    }


def _card(directory: Path, content: Mapping[str, Any], conversion: Conversion) -> str:
    origin = conversion.origin
    rows = [
        ("Converted from", f"{origin.source} ({origin.form})"),
        *((f"SHA-256 of {name}", f"`{digest}`") for name, digest in origin.digests.items()),
        ("Converted by", ", ".join(f"{name} {version}" for name, version in conversion.libraries.items())),
        ("Made by", f"`{origin.command}`"),
        ("Licence", str(content["licence"])),
    ]
    lines = [f"# {content['name']} {directory.name}", "", f"{origin.source}, converted to {origin.target}.", ""]
    lines += [*table(("", ""), rows), "", "## Inputs and outputs"]
    for what in ("inputs", "outputs"):
        lines += [f"- {what[:-1]} `{one['name']}` {one['datatype']} {one['shape']}" for one in content[what]]
    lines += ["", "## Against the source", f"On {conversion.samples}: {conversion.agreement}."]
    lines += ["How well it does its task was not measured: `headway evaluate` does."]
    return "\n".join(lines) + "\n"
