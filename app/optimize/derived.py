"""A new version made from another by some method: its files, its own golden answers, model.yaml and its card.

What stays is copied; what depends on the answers (golden requests) is taken anew. A baseline is left out: it counts the
answers of the parent.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import InvalidContent
from app.optimize import before_after
from app.optimize.before_after import BeforeAfter
from app.optimize.examples import Examples
from app.optimize.machine import describe_machine
from app.registry.drafting.difference import Bump, bumped
from app.registry.drafting.draft import write_manifest
from app.registry.manifest import MODEL_FILES, ClassificationAnswer, Manifest
from app.registry.servables.golden import recorded_outputs
from app.registry.servables.loading import load_servable, weights_beside
from app.registry.servables.servable import Servable
from app.registry.store import Store, verify_files
from app.registry.storing.recycle_bin import RecycleBin
from app.registry.versions import Version
from app.runtimes.packed import SUFFIX as PACKED
from app.runtimes.packed import pack

CARD = "README.md"
_DIGITS = 6
# Names what is done and how many steps it has; what it returns is called after each.
Progress = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Derivation:
    """How a version came to be. `method` is the command's name, `how` one line for people, `parameters` what makes the
    same file again; `summary` opens the card, `sections` are headings with text. `figures` are the method's own, beside
    those of BeforeAfter, made by `before_after.figure`.

    `least_tolerance` is of a confidence in golden requests; that of a value, whose unit we do not know, stays.
    `mixes_rows`: rows of one run do not get the answers that they get alone, so calls do not share runs.
    `is_packed`: the model file is kept compressed, which pays where many weights are 0. `attachments` are further
    files, by their names in the version, such as a picture that the card shows. `content` replaces keys of the
    parent's model.yaml, as where the runtime is another."""

    method: str
    how: str
    parameters: Mapping[str, str]
    summary: str
    command: str
    least_tolerance: float
    sections: Sequence[tuple[str, str]] = ()
    figures: Sequence[Mapping[str, Any]] = ()
    mixes_rows: bool = False
    is_packed: bool = False
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)


def derive(
    store: Store,
    parent: Servable,
    directory: Path,
    model: bytes,
    derivation: Derivation,
    examples: Examples,
    progress: Progress,
) -> BeforeAfter:
    """Fill `directory` (`…/<name>/<version>`; what is there goes) with the version whose model file is `model`, and
    measure it beside `parent` on `examples`.

    It is ready to be published; whether it loses too much is for the caller to say (`BeforeAfter.loss`). Raises
    InvalidContent, RegistryError, RunFailed.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    made = write_files(directory, parent, model, derivation)
    try:
        measured = before_after.measure(store, parent, made, examples, progress("measuring", examples.count))
    finally:
        made.close()
    write_description(directory, parent, derivation, measured)
    return measured


def next_minor(store: Store, name: str, version: str) -> str:
    """The first free number with other weights: a minor step after all of the same MAJOR, those in the bin too."""
    of = Version.parse(version)
    removed = [Version.parse(entry.version) for entry in RecycleBin(store).entries() if entry.name == name]
    taken = [other for other in (of, *store.version_names(name), *removed) if other.release[0] == of.release[0]]
    return bumped(max(taken), Bump.MINOR).text


def find_same(store: Store, name: str, sha256: str) -> str | None:
    """The version of `name` whose model file has this digest, where there is one."""
    for version in store.version_names(name):
        manifest = store.version(name, version).manifest
        if manifest is not None and sha256 in {entry.sha256 for entry in manifest.files.values()}:
            return version.text
    return None


def write_files(directory: Path, parent: Servable, model: bytes, derivation: Derivation) -> Servable:
    """Fill the empty `directory` (`…/<name>/<version>`) with all but evaluation and card, and load it.

    Raises RegistryError where a file of the parent is no longer what its model.yaml says, or the new one cannot serve.
    """
    manifest = parent.manifest
    left_out = {manifest.model_file, manifest.baseline, *weights_beside(parent.directory, manifest)}
    kept = {name: entry for name, entry in manifest.files.items() if name not in left_out}
    verify_files(parent.directory, kept)
    for name in kept:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(parent.directory / name, directory / name)
    content = _content(manifest, directory.name, derivation)
    name = MODEL_FILES[content["runtime"]]
    if derivation.is_packed:
        (directory / (name + PACKED)).write_bytes(pack(model))
    else:
        (directory / name).write_bytes(model)
    for name, attached in derivation.attachments.items():
        (directory / name).write_bytes(attached)
    golden = content.pop("golden", None)
    write_manifest(directory, content)
    if golden is None:
        return load_servable(directory, 1)
    unchecked = load_servable(directory, 1)
    try:
        _record_answers(directory / golden["file"], unchecked)
    finally:
        unchecked.close()
    write_manifest(directory, content | {"golden": golden})
    return load_servable(directory, 1)


def write_description(directory: Path, parent: Servable, derivation: Derivation, measured: BeforeAfter) -> None:
    """Put figures and evaluation into model.yaml of what `write_files` has made, and write the card."""
    content = _content(parent.manifest, directory.name, derivation)
    content["parent"]["figures"] = [*measured.figures(), *map(dict, derivation.figures)]
    content["evaluation"] = [_evaluation(measured, content["runtime"])]
    write_manifest(directory, content)
    (directory / CARD).write_text(_card(directory, parent, derivation, measured, content["runtime"]), encoding="utf-8")


def _content(manifest: Manifest, version: str, derivation: Derivation) -> dict[str, Any]:
    """model.yaml without `files` and `evaluation`. A `serial` names one version only."""
    left_out = {"files", "serial", "baseline", "evaluation", "parent"}
    content = manifest.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=left_out)
    if "golden" in content and isinstance(manifest.answer, ClassificationAnswer):
        content["golden"]["tolerance"] = max(content["golden"]["tolerance"], derivation.least_tolerance)
    if derivation.mixes_rows and "batch" in content:
        content["batch"]["max_size"] = 1
    made = {"version": manifest.version, "how": derivation.how, "method": derivation.method}
    parameters = {name: str(value) for name, value in derivation.parameters.items()}
    return content | {"version": version, "parent": made | {"parameters": parameters}} | dict(derivation.content)


def _record_answers(path: Path, servable: Servable) -> None:
    """The requests stay, their answers become those of `servable`."""
    document = json.loads(path.read_bytes())
    for number, request in enumerate(document["requests"], 1):
        is_photo = request.get("image") is not None
        item: Any = (path.parent / request["image"]).read_bytes() if is_photo else request["inputs"]
        tensors = servable.prepare("image" if is_photo else "tensor", item)
        outputs = servable.run(tensors)
        if request.get("outputs") is not None:
            request["outputs"] = recorded_outputs(outputs)
            continue
        (answer,) = servable.answer(outputs, max(1, len(request.get("top", ())))) or (None,)
        if answer is None:
            raise InvalidContent(f"{path}: request {number} has no answer that could be recorded")
        if answer.predictions:
            request["top"] = [
                {"index": one.index, "confidence": _finite(one.confidence, path)} for one in answer.predictions
            ]
        else:
            request["value"] = answer.value
    lines = ",\n".join("  " + json.dumps(request, ensure_ascii=False) for request in document["requests"])
    path.write_text('{"requests": [\n' + lines + "\n]}\n", encoding="utf-8")


def _finite(confidence: float | None, path: Path) -> float:
    if confidence is None:
        raise InvalidContent(f"{path}: the new version's answer to a golden request is not finite")
    return round(float(confidence), _DIGITS)


def _evaluation(measured: BeforeAfter, runtime: str) -> dict[str, Any]:
    figures = measured.after
    entry: dict[str, Any] = {"data": measured.data, "n": measured.n}
    if figures.top1 is not None:
        entry["top1"] = round(figures.top1, 4)
    entry |= {"latency_ms": {f"run_{name}": value for name, value in figures.run_ms.items()}}
    if figures.memory_bytes is not None:
        entry["rss_mb"] = round(max(figures.memory_bytes, 0) / 1e6, 1)
    return entry | {
        "threads": 1,
        **describe_machine(_libraries(runtime)),
        "date": datetime.date.today().isoformat(),
        "note": "run_p50, run_p95: the model alone, one row",
    }


def _libraries(runtime: str) -> tuple[str, ...]:
    return ("numpy", "ai-edge-litert" if runtime == "tflite" else "onnxruntime")


def _card(directory: Path, parent: Servable, derivation: Derivation, measured: BeforeAfter, runtime: str) -> str:
    machine = describe_machine(_libraries(runtime))
    lines = [f"# {parent.name} {directory.name}", "", derivation.summary, ""]
    lines += [
        "| | |",
        "| --- | --- |",
        f"| Parent | {parent.name} {parent.version} |",
        f"| Method | {derivation.how} |",
    ]
    lines += [f"| Made by | `{derivation.command}` |", f"| Licence | {parent.manifest.licence} |", ""]
    lines += ["## Before and after", f"On {measured.n} inputs ({measured.data}), both in one run.", ""]
    lines += table(("what", f"{parent.version}", directory.name, "difference"), measured.rows())
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    lines += ["", f"CPU: {machine['cpu']} ({', '.join(machine['cpu_features'])}); {libraries}.", ""]
    for heading, text in derivation.sections:
        lines += [f"## {heading}", text, ""]
    card = parent.directory / CARD
    if card.is_file():
        lines += [f"## Card of the parent, {parent.version}", *_demoted(card.read_text(encoding="utf-8"))]
    return "\n".join(lines).rstrip() + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [
        f"| {' | '.join(header)} |",
        f"| {' | '.join('---' for _ in header)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _demoted(card: str) -> list[str]:
    """Without its title, and with headings two steps down."""
    return ["##" + line if line.startswith("#") else line for line in card.splitlines() if not line.startswith("# ")]
