"""What differs between two versions, and what that means for whoever calls them: a patch, a minor or a major step.

Major is what a caller notices: what is sent, what comes back, and the labels. https://semver.org
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.registry.manifest import ClassificationAnswer, Manifest, RegressionAnswer, TensorEntry
from app.registry.servables.batch_axis import BatchAxis
from app.registry.store import read_labels
from app.registry.versions import Version
from app.tensors import TensorSpec

# Of `answer`: what callers notice.
_IN_SIGNATURE = ("type", "output", "unit")


class Bump(enum.IntEnum):
    """How far one version is from another."""

    NONE = 0
    PATCH = 1
    MINOR = 2
    MAJOR = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Content:
    """A version's manifest and labels (None where it has none)."""

    manifest: Manifest
    labels: tuple[str, ...] | None

    @classmethod
    def read(cls, directory: Path, manifest: Manifest) -> Content:
        """Raises RegistryError for labels that cannot be read."""
        answer = manifest.answer
        if not isinstance(answer, ClassificationAnswer):
            return cls(manifest, None)
        return cls(manifest, tuple(read_labels(directory / answer.labels)))


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs; None stands for what is not there."""

    section: str
    key: str
    old: str | None
    new: str | None
    bump: Bump

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.section}: {self.key} is new ({self.new})"
        if self.new is None:
            return f"{self.section}: {self.key} is gone (was {self.old})"
        return f"{self.section}: {self.key} was {self.old} and is {self.new}"


def compare(old: Content, new: Content) -> list[Change]:
    """All that differs, what callers notice first."""
    before, after = old.manifest, new.manifest
    sections: Iterable[tuple[str, Mapping[str, str], Mapping[str, str], Bump]] = [
        ("signature", _signature(before), _signature(after), Bump.MAJOR),
        ("labels", _numbered(old.labels), _numbered(new.labels), Bump.MAJOR),
        ("files", _model_files(before, model=True), _model_files(after, model=True), Bump.MINOR),
        ("composition", _composition(before), _composition(after), Bump.MINOR),
        ("values", _values(before), _values(after), Bump.MINOR),
        ("processing", _flat(before.processing, "type"), _flat(after.processing, "type"), Bump.PATCH),
        ("answer", _flat(before.answer, *_IN_SIGNATURE), _flat(after.answer, *_IN_SIGNATURE), Bump.PATCH),
        *(
            (section, _flat(getattr(before, section)), _flat(getattr(after, section)), Bump.PATCH)
            for section in ("batch", "limits", "golden", "training", "parent")
        ),
        ("evaluation", _evaluation(before), _evaluation(after), Bump.PATCH),
        ("manifest", _rest(before), _rest(after), Bump.PATCH),
        ("files", _model_files(before, model=False), _model_files(after, model=False), Bump.PATCH),
    ]
    return [change for section in sections for change in _changes(*section)]


def needed_bump(changes: Iterable[Change]) -> Bump:
    """The smallest step that tells callers the truth about these changes."""
    return max((change.bump for change in changes), default=Bump.NONE)


def bump_between(old: Version, new: Version) -> Bump:
    """The step that two version numbers say; NONE where they are of the same MAJOR.MINOR.PATCH."""
    for place, bump in enumerate((Bump.MAJOR, Bump.MINOR, Bump.PATCH)):
        if old.release[place] != new.release[place]:
            return bump
    return Bump.NONE


def bumped(old: Version, bump: Bump) -> Version:
    """The version that is one step from `old`; of a bare integer a bare integer, where the step is major."""
    major, minor, patch = old.release
    if bump is Bump.MAJOR:
        return Version.parse(str(major + 1) if old.text == str(major) else f"{major + 1}.0.0")
    return Version.parse(f"{major}.{minor + 1}.0" if bump is Bump.MINOR else f"{major}.{minor}.{patch + 1}")


def base_of(new: Version, versions: Iterable[Version]) -> Version | None:
    """The version whose callers `new` is for: the highest final one below it.

    None where there is none, or both are 0.x, in which anything may change.
    """
    below = [version for version in versions if version.is_final and version.release < new.release]
    base = max(below, default=None)
    return None if base is None or base.release[0] == new.release[0] == 0 else base


def _changes(section: str, old: Mapping[str, str], new: Mapping[str, str], bump: Bump) -> Iterator[Change]:
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield Change(section, key, old.get(key), new.get(key), bump)


def _signature(manifest: Manifest) -> dict[str, str]:
    """What callers send and get. The order of the tensors does not count, and not whether rows are run one by one."""
    axis, answer = BatchAxis.of(manifest), manifest.answer
    names = axis.names if axis is not None else ()
    outputs = manifest.outputs if axis is not None else ()
    signature: dict[str, str] = {"task": manifest.task, "content": manifest.content_kind, "answer": answer.type}
    signature |= {f"input {entry.name}": _tensor(entry, entry.name in names) for entry in manifest.inputs}
    signature |= {f"output {entry.name}": _tensor(entry, entry in outputs) for entry in manifest.outputs}
    if isinstance(answer, ClassificationAnswer | RegressionAnswer):
        signature["answer.output"] = answer.output
    if isinstance(answer, RegressionAnswer) and answer.unit is not None:
        signature["answer.unit"] = answer.unit
    return signature


def _tensor(entry: TensorEntry, is_batched: bool) -> str:
    shape = (-1, *entry.shape[1:]) if is_batched else entry.shape
    return str(TensorSpec(entry.name, entry.datatype, shape)).removeprefix(f"{entry.name}: ")


def _numbered(labels: Sequence[str] | None) -> dict[str, str]:
    return {str(index): repr(label) for index, label in enumerate(labels or ())}


def _model_files(manifest: Manifest, *, model: bool) -> dict[str, str]:
    """Digests of the files that are the model, or of the others."""
    golden = manifest.golden.file if manifest.golden else None
    named = {golden, getattr(manifest.answer, "labels", None), manifest.baseline}
    return {
        name: f"{entry.sha256[:12]} ({entry.bytes} bytes)"
        for name, entry in manifest.files.items()
        if model == (name not in named and "/" not in name)
    }


def _composition(manifest: Manifest) -> dict[str, str]:
    """How it combines, and each step."""
    if manifest.composition is None:
        return {}
    steps = [step.model_dump(mode="json", exclude_none=True) for step in manifest.composition.steps]
    numbered = {f"steps[{number}]": step for number, step in enumerate(steps)}
    return dict(_leaves({"type": manifest.composition.type, **numbered}, ""))


def _evaluation(manifest: Manifest) -> dict[str, str]:
    found = {}
    for number, entry in enumerate(manifest.evaluation):
        for key, value in _flat(entry).items():
            found[f"[{number}].{key}"] = value
    return found


def _values(manifest: Manifest) -> dict[str, str]:
    """What is done about values that are missing or out of range: what one version takes another may refuse."""
    policies = {entry.name: _flat(entry.values) for entry in manifest.inputs}
    return {f"{name}.{key}": value for name, flat in policies.items() for key, value in flat.items()}


def _rest(manifest: Manifest) -> dict[str, str]:
    found = {"runtime": manifest.runtime, "licence": manifest.licence}
    for gate in manifest.min_robust_accuracy:
        key = f"min_robust_accuracy.{gate.attack} of {gate.strength:g}"
        found[key] = f"{gate.value:g} on {gate.samples} samples"
    return found | ({"serial": str(manifest.serial)} if manifest.serial is not None else {})


def _flat(section: Any, *without: str) -> dict[str, str]:
    """`section` as dotted keys and their values."""
    if section is None:
        return {}
    leaves = _leaves(section.model_dump(mode="json", exclude_none=True), "")
    return {key: value for key, value in leaves if key not in without}


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, str(value)
