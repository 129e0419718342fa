"""A complete version made of a bare model file: what the file says, what trial runs show, and what its owner says.

What the file cannot say and what would be wrong without an error (how a photo becomes the input, whether scores are
probabilities) is never guessed: it is asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from app.errors import InvalidContent
from app.processing.text import DEFAULT_MAX_CHARACTERS, takes_text
from app.registry.drafting.golden_record import GOLDEN_FILE, record_golden
from app.registry.drafting.probe import are_probable, are_shares, last_size, open_model_file, photo_form, try_one
from app.registry.manifest import MODEL_FILES
from app.registry.servables.batch_axis import BatchAxis, mixes_rows
from app.registry.store import file_sha256, read_labels
from app.runtimes.base import Runtime
from app.runtimes.onnx_file import external_locations
from app.runtimes.packed import SUFFIX as PACKED
from app.runtimes.packed import unpacked_size
from app.tensors import Tensors, TensorSpec

LABELS_FILE = "labels.txt"
_IMAGE_KEYS = ("resize", "crop", "filter", "colour", "layout", "normalise")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the owner says.

    `image` holds keys of `processing` of type image; `content` "tensor" says that an input that looks like a photo or a
    text is none. `golden` is a directory: golden.json with its images, or requests whose answers are recorded now.
    """

    name: str
    version: str
    labels: Path | None = None
    task: str | None = None
    output: str | None = None
    activation: str | None = None
    content: Literal["image", "text", "tensor"] | None = None
    image: Mapping[str, Any] = field(default_factory=dict)
    batch_axis: Literal["auto", "0", "none"] = "auto"
    shared: tuple[str, ...] = ()
    max_batch_size: int = 1
    golden: Path | None = None
    tolerance: float = 0.01
    licence: str = "unknown"


class Draft:
    """Writes one version's directory. Raises InvalidContent with the flag that is missing or wrong."""

    def __init__(self, source: Path, wishes: Wishes) -> None:
        """Raises RuntimeLoadError where the file cannot be loaded."""
        self._source = source
        self._wishes = wishes
        self._runtime_name = runtime_of(source)
        self._labels = _read_labels(wishes.labels) if wishes.labels is not None else None

    def write(self, directory: Path) -> None:
        """Fill the empty `directory` (`…/<name>/<version>`): model, labels, golden requests, model.yaml."""
        _copy(self._source, directory / MODEL_FILES[self._runtime_name])
        if self._runtime_name == "onnx":
            self._copy_weights(directory)
        if self._wishes.labels is not None:
            _copy(self._wishes.labels, directory / LABELS_FILE)
        content = self._describe(directory / MODEL_FILES[self._runtime_name])
        write_manifest(directory, content)
        if self._wishes.golden is not None:
            is_classifier = content["answer"]["type"] == "classification"
            record_golden(directory, self._wishes.golden)
            golden = {"file": GOLDEN_FILE, "top1": "equal", "tolerance": self._wishes.tolerance}
            write_manifest(directory, content | {"golden": golden if is_classifier else _without(golden, "top1")})

    def _copy_weights(self, directory: Path) -> None:
        """Weights that the file keeps in files beside it."""
        for location in external_locations(self._source):
            path = PurePosixPath(location)
            if path.is_absolute() or ".." in path.parts:
                raise InvalidContent(
                    f"{self._source}: keeps weights in {location!r}; save the model with its weights beside it"
                )
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            _copy(self._source.parent / path, directory / path)

    def _describe(self, path: Path) -> dict[str, Any]:
        runtime = open_model_file(
            self._runtime_name, path, takes_floats=self._wishes.image.get("normalise") != "in_graph"
        )
        try:
            self._check_shared(runtime)
            sample = try_one(runtime)
            axis = self._batch_axis(runtime, sample is not None)
            processing = self._processing(runtime)
            answer = self._answer(runtime, sample)
            inputs, outputs = runtime.inputs, runtime.outputs
        finally:
            runtime.close()
        return {
            "schema": 1,
            "name": self._wishes.name,
            "version": self._wishes.version,
            "task": self._task(answer["type"], processing["type"], inputs),
            "runtime": self._runtime_name,
            "inputs": [_tensor(spec) | self._not_batched(spec) for spec in inputs],
            "outputs": [_tensor(spec) for spec in outputs],
            "batch": {"axis": axis, "max_size": self._wishes.max_batch_size},
            "processing": processing,
            "answer": answer,
            "licence": self._wishes.licence,
        }

    def _check_shared(self, runtime: Runtime) -> None:
        names = [spec.name for spec in runtime.inputs]
        for name in self._wishes.shared:
            if name not in names:
                raise InvalidContent(f"--shared: the file has no input {name!r}; it has {', '.join(names)}")

    def _not_batched(self, spec: TensorSpec) -> dict[str, bool]:
        return {"batched": False} if spec.name in self._wishes.shared else {}

    def _batch_axis(self, runtime: Runtime, has_run: bool) -> int | None:
        """0 where trial runs show that rows are answered each for itself."""
        if self._wishes.batch_axis != "auto":
            return 0 if self._wishes.batch_axis == "0" else None
        batched = [spec for spec in runtime.inputs if spec.name not in self._wishes.shared]
        firsts = {spec.shape[:1] for spec in (*batched, *runtime.outputs)}
        names = tuple(spec.name for spec in batched)
        if firsts == {(1,)}:
            return 0
        if firsts == {(-1,)}:
            if not has_run:
                raise InvalidContent(
                    "the file fails on trial rows, so whether rows are answered each for itself is not known: say "
                    "--batch-axis 0, or --batch-axis none"
                )
            return None if mixes_rows(BatchAxis(names, False), runtime.inputs, runtime.run) else 0
        if (-1,) not in firsts:
            return None
        shapes = ", ".join(map(str, (*runtime.inputs, *runtime.outputs)))
        raise InvalidContent(
            f"which tensors have one row for each item cannot be told ({shapes}): say --batch-axis none, or --shared "
            "NAME for each input that all rows of a call share"
        )

    def _processing(self, runtime: Runtime) -> dict[str, Any]:
        wishes = self._wishes
        if wishes.content == "tensor":
            if wishes.image:
                raise InvalidContent(f"--content tensor contradicts --{min(wishes.image)}")
            return {"type": "tensor"}
        if wishes.content == "text" or (wishes.content is None and takes_text(runtime.inputs)):
            return self._text(runtime)
        photo = photo_form(runtime.inputs)
        if not wishes.image and wishes.content is None and photo is None:
            return {"type": "tensor"}
        if len(runtime.inputs) != 1:
            raise InvalidContent("a photo needs a model with one input; this one has " + _list(runtime.inputs))
        known = dict(zip(("layout", "crop", "colour"), photo, strict=True)) if photo is not None else {}
        found = {key: value for key, value in known.items() if value is not None} | dict(wishes.image)
        missing = [f"--{key}" for key in _IMAGE_KEYS if key not in found]
        if missing:
            raise InvalidContent(
                f"input {runtime.inputs[0]} takes photos, it seems. How one becomes it the file does not say, and a "
                f"wrong way costs accuracy without an error: say {', '.join(missing)}; or --content tensor, if callers "
                "send numbers"
            )
        return {"type": "image", **{key: found[key] for key in _IMAGE_KEYS}}

    def _text(self, runtime: Runtime) -> dict[str, Any]:
        if self._wishes.image:
            raise InvalidContent(f"{_list(runtime.inputs)} takes texts, and --{min(self._wishes.image)} is for photos")
        if not takes_text(runtime.inputs):
            raise InvalidContent(
                f"--content text needs a model with one input, BYTES [n] or [n, 1]; this has {_list(runtime.inputs)}"
            )
        return {"type": "text", "max_characters": DEFAULT_MAX_CHARACTERS}

    def _answer(self, runtime: Runtime, sample: Tensors | None) -> dict[str, Any]:
        wishes, labels = self._wishes, self._labels
        if labels is None:
            if wishes.task is not None and "classification" in wishes.task:
                raise InvalidContent(f"--task {wishes.task} needs --labels: one label a line, in the order of classes")
            if wishes.task != "regression":
                return {"type": "tensor"}
            return {"type": "regression", "output": self._choose_output(runtime.outputs)}
        fitting = [spec for spec in runtime.outputs if last_size(spec, sample) in (len(labels), -1)]
        if not fitting:
            raise InvalidContent(
                f"{wishes.labels}: has {len(labels)} labels, but no output has as many scores: {_list(runtime.outputs)}"
            )
        output = self._choose_output(fitting)
        self._check_activation(output, sample)
        return {
            "type": "classification",
            "output": output,
            "activation": wishes.activation,
            "labels": LABELS_FILE,
        }

    def _choose_output(self, fitting: Any) -> str:
        names = [spec.name for spec in fitting]
        wanted = self._wishes.output
        if wanted is None and len(names) > 1:
            raise InvalidContent(f"which output is the answer? say --output, one of {', '.join(names)}")
        if wanted is not None and wanted not in names:
            raise InvalidContent(f"--output {wanted}: is not one of {', '.join(names)}")
        return wanted or str(names[0])

    def _check_activation(self, output: str, sample: Tensors | None) -> None:
        """Ask where it is not given, and refuse what the trial rows contradict."""
        scores = sample[output] if sample is not None else None
        is_share = scores is not None and are_shares(scores)
        activation = self._wishes.activation
        if activation is None:
            seen = "add up to 1" if is_share else "do not add up to 1"
            raise InvalidContent(
                f"whether the scores of {output!r} are probabilities the file does not say (those of a trial {seen}); "
                "say --activation: none for probabilities, softmax or sigmoid for logits"
            )
        if activation == "softmax" and is_share and scores is not None and scores.shape[-1] > 1:
            raise InvalidContent(
                f"--activation softmax: the scores of {output!r} add up to 1 for trial rows, so they are probabilities "
                "already; say --activation none"
            )
        if activation == "none" and scores is not None and not are_probable(scores):
            raise InvalidContent(
                f"--activation none: the scores of {output!r} are not from 0 to 1 for trial rows, so they are no "
                "probabilities; say --activation softmax or sigmoid"
            )

    def _task(self, answer: str, processing: str, inputs: tuple[TensorSpec, ...]) -> str:
        if self._wishes.task is not None:
            return self._wishes.task
        if answer != "classification":
            return answer
        if processing == "image":
            return "image-classification"
        is_text = processing == "text" or all(spec.datatype == "BYTES" for spec in inputs)
        return "text-classification" if is_text else "tabular-classification"


def runtime_of(source: Path) -> str:
    """The runtime that reads files of this suffix. Raises InvalidContent."""
    for runtime, name in MODEL_FILES.items():
        if Path(name).suffix == source.suffix.lower():
            return runtime
    known = ", ".join(sorted(Path(name).suffix for name in MODEL_FILES.values()))
    raise InvalidContent(f"{source}: is no model file that can be served; known are {known}, and version directories")


def write_manifest(directory: Path, content: Mapping[str, Any]) -> None:
    """model.yaml, with the digest and size of every other file in `directory`. Card and measurements may change."""
    files = {
        str(path.relative_to(directory)): _file_entry(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("model.yaml", "README.md", "profiles.json")
    }
    head = {key: content[key] for key in ("schema", "name", "version", "task", "runtime")}
    whole = {**head, "files": files, **_without(content, *head)}
    text = yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    (directory / "model.yaml").write_text(text, encoding="utf-8")


def _file_entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    if path.name.removesuffix(PACKED) in MODEL_FILES.values() and path.suffix == PACKED:
        entry["unpacked_bytes"] = unpacked_size(path)
    return entry


class _Dumper(yaml.SafeDumper):
    """Without anchors, which are refused when read."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _list(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs))


def _without(content: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _read_labels(path: Path) -> list[str]:
    try:
        return read_labels(path)
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as exc:
        if exc.filename != str(source):
            raise  # of the registry's disk
        raise InvalidContent(f"{source}: cannot be read ({exc.strerror})") from exc
