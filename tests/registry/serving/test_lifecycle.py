"""Each broken version is reported for itself, with the file, the field and the fix; the others go on serving."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from app.errors import (
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    ModelRequired,
    RegistryError,
    RuntimeLoadError,
    VersionNotFound,
    VersionNotReleased,
)
from app.registry.servables.loading import load_servable
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import State
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import edit_manifest, onnx_bytes, onnx_file, write_model, write_release, write_yaml


@pytest.fixture
def registry(root: Path) -> Iterator[Registry]:
    registry = Registry(Store(root))
    yield registry
    registry.close()


def _resolve(registry: Registry, text: str, key: bytes | None = None) -> tuple[str, str | None]:
    resolved = registry.resolve(ModelRef.parse(text), key)
    return resolved.servable.version, resolved.alias


def _flip_a_byte(directory: Path) -> None:
    data = bytearray((directory / "model.onnx").read_bytes())
    data[-1] ^= 1
    (directory / "model.onnx").write_bytes(data)


def _entries(name: str, datatype: str, shape: list[int]) -> list[dict[str, object]]:
    return [{"name": name, "datatype": datatype, "shape": shape}]


def _rewrite(**files: bytes) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        names = {"model": "model.onnx", "labels": "labels.txt"}
        contents = {names[name]: data for name, data in files.items()}
        write_model(directory.parent.parent, directory.parent.name, directory.name, files=contents)

    return change


def _edit(**overrides: object) -> Callable[[Path], None]:
    return lambda directory: edit_manifest(directory, **overrides)


# What is wrong, and what the message must say, the file first.
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda directory: (directory / "model.yaml").unlink(), r"model\.yaml: cannot be read"),
    "digest": (_flip_a_byte, r"model\.onnx: has SHA-256 .* model\.yaml \(files\) says .*; copy the version again"),
    "missing file": (
        lambda directory: (directory / "model.onnx").unlink(),
        r"model\.onnx: is listed in model\.yaml, but",
    ),
    "missing labels": (lambda directory: (directory / "labels.txt").unlink(), r"labels\.txt: is listed in model\.yaml"),
    "input name": (_edit(inputs=_entries("y", "FP32", [-1, 3])), r"model\.yaml: inputs: the file has no 'y'; it has x"),
    "input shape": (
        _edit(inputs=_entries("x", "FP32", [-1, 4])),
        r"model\.yaml: inputs: says x: FP32 \[n, 4\], but the file says x: FP32 \[n, 3\]; correct the former",
    ),
    "input wider than the file": (_edit(inputs=_entries("x", "FP32", [-1, -1])), r"inputs: says x: FP32 \[n, n\]"),
    "input datatype": (
        _edit(inputs=_entries("x", "FP64", [-1, 3])),
        r"says x: FP64 \[n, 3\], but the file says x: FP32",
    ),
    "output shape": (_edit(outputs=_entries("scores", "FP32", [-1, 9])), r"outputs: says scores: FP32 \[n, 9\], but"),
    "input too many": (
        _edit(inputs=[*_entries("x", "FP32", [-1, 3]), *_entries("z", "FP32", [-1])]),
        r"inputs: the file has no 'z'",
    ),
    "input too few": (
        _rewrite(model=onnx_bytes("two_inputs")),
        r"model\.yaml: inputs: the file has no 'x'; it has a, b",
    ),
    "too few labels": (_rewrite(labels=b"a\nb\n"), r"labels\.txt: has 2 labels, but output 'scores' has 3 classes"),
    "a label twice": (_rewrite(labels=b"a\nb\na\n"), r"labels\.txt: the label 'a' stands twice"),
    "no UTF-8": (_rewrite(labels=b"a\nb\n\xff\n"), r"labels\.txt: is not UTF-8"),
    "no ONNX": (_rewrite(model=b"this is no model"), r"model\.onnx: is no ONNX model"),
    "no graph": (_rewrite(model=b"\x08\x08"), r"model\.onnx: ONNX Runtime .* cannot load it"),
    "empty file": (_rewrite(model=b""), r"model\.onnx: is empty; it is no ONNX model"),
    "unknown key": (_edit(activation="none"), r"model\.yaml: activation: unknown key"),
    "tag": (
        lambda directory: (directory / "model.yaml").write_text("schema: !!int x\n"),
        r"model\.yaml: is not valid YAML",
    ),
    "golden difference": (
        lambda directory: _with_golden(
            directory, b'{"requests": [{"inputs": [[1, 0, 0]], "top": [{"index": 1, "confidence": 1}]}]}'
        ),
        r"golden\.json: request 1 no longer gives its recorded answer: the first label is 'low'",
    ),
}


def _with_golden(directory: Path, data: bytes) -> None:
    golden = {"file": "golden.json", "top1": "equal", "tolerance": 0}
    write_model(
        directory.parent.parent, directory.parent.name, directory.name, files={"golden.json": data}, golden=golden
    )


@pytest.mark.parametrize("name", BROKEN)
def test_broken_version_is_reported_and_the_others_serve(
    root: Path, registry: Registry, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    break_it, message = BROKEN[name]
    write_model(root, "good")
    write_model(root, "partly", "1.0.0")
    break_it(write_model(root, "partly", "1.1.0"))
    write_release(root, "partly", "1.0.0", aliases={"canary": {"version": "1.1.0", "weight": 50}})
    registry.load()
    assert _resolve(registry, "good") == ("1.0.0", "stable")
    assert _resolve(registry, "partly@stable") == ("1.0.0", "stable")
    with pytest.raises(ModelFailed, match=rf"partly@1\.1\.0 cannot be served: {root}.*{message}"):
        registry.resolve(ModelRef("partly", "canary"))
    statuses = registry.models["partly"].versions
    assert (statuses["1.0.0"].state, statuses["1.1.0"].state) == (State.READY, State.FAILED)
    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "partly@1.1.0 cannot be served" in line.getMessage()
    assert line.exc_info is None  # what the operator can mend is no traceback


def test_broken_release_is_reported_and_the_others_serve(root: Path, registry: Registry) -> None:
    write_model(root, "good")
    write_model(root, "bad")
    for text, message in (
        ("aliases: {canary: {version: 1.0.0}}", "aliases.stable is missing"),
        ("aliases: {stable: {version: 1.0.0}}\nalso_server: []", "did you mean 'also_serve'"),
        ("aliases: !!timestamp x", "is not valid YAML"),
        ("[" * 900_000, "is not valid YAML"),
    ):
        (root / "bad" / "release.yaml").write_text(text)
        registry.load()
        assert _resolve(registry, "good") == ("1.0.0", "stable")
        with pytest.raises(ModelFailed, match=f"bad/release.yaml: .*{message}"):
            registry.resolve(ModelRef("bad"))


def test_alias_to_a_missing_version(root: Path, registry: Registry) -> None:
    write_model(root, "m")
    write_release(root, "m", "1.0.0", aliases={"canary": {"version": "2.0.0", "weight": 1}})
    registry.load()
    assert _resolve(registry, "m@stable") == ("1.0.0", "stable")
    with pytest.raises(ModelFailed, match=r"m@2\.0\.0 cannot be served: .*m/2\.0\.0/model\.yaml: cannot be read"):
        registry.resolve(ModelRef("m", "canary"))


def test_model_without_a_final_version(root: Path, registry: Registry) -> None:
    write_model(root, "good")
    write_model(root, "early", "1.0.0-rc.1")
    registry.load()
    with pytest.raises(ModelFailed, match=r"early: holds no final version; add a directory named like 1.0.0"):
        registry.resolve(ModelRef("early"))
    assert _resolve(registry, "good") == ("1.0.0", "stable")


def test_broken_registry_file_is_reported_and_all_serve(
    root: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(root, "good")
    (root / "registry.yaml").write_text("default: {}\n")
    registry.load()
    assert "registry.yaml: default: unknown key; did you mean 'defaults'?" in caplog.text
    assert _resolve(registry, "good") == ("1.0.0", "stable")


def test_implicit_release_is_the_newest_final_version(root: Path, registry: Registry) -> None:
    for version in ("1.9.0", "1.10.0", "2.0.0-rc.1"):
        write_model(root, "m", version)
    registry.load()
    assert _resolve(registry, "m") == ("1.10.0", "stable")
    assert registry.models["m"].desired.is_explicit is False
    assert list(registry.models["m"].versions) == ["1.10.0"]
    for version in ("1.9.0", "2.0.0-rc.1"):
        with pytest.raises(
            VersionNotReleased, match=r"is in the registry but not released; released are stable, 1.10.0"
        ):
            registry.resolve(ModelRef("m", version))


def test_resolve_by_alias_version_and_traffic(root: Path, registry: Registry) -> None:
    for version in ("0.9.0", "1.0.0", "1.1.0"):
        write_model(root, "m", version)
    write_release(
        root, "m", "1.0.0", aliases={"canary": {"version": "1.1.0", "weight": 100}}, also_serve=["0.9.0"], revision=7
    )
    registry.load()
    assert _resolve(registry, "m") == ("1.1.0", "canary")
    assert _resolve(registry, "m", b"key") == ("1.1.0", "canary")
    assert _resolve(registry, "m@stable") == ("1.0.0", "stable")
    assert _resolve(registry, "m@1.0.0") == ("1.0.0", None)
    assert _resolve(registry, "m@0.9.0") == ("0.9.0", None)
    release = registry.models["m"].release
    assert release is not None
    assert release.revision == 7


def test_resolve_errors(root: Path, registry: Registry) -> None:
    with pytest.raises(ModelNotReady, match="still loading"):
        registry.resolve(ModelRef("m"))
    write_model(root, "m")
    write_model(root, "m", "0.1.0")
    registry.load()
    with pytest.raises(ModelNotFound, match="there is no model 'n'; served are m"):
        registry.resolve(ModelRef("n"))
    with pytest.raises(VersionNotFound, match=r"has no alias 'canary'; it has stable, 1.0.0"):
        registry.resolve(ModelRef("m", "canary"))
    with pytest.raises(VersionNotFound, match=r"has no version 2.0.0; it has stable, 1.0.0"):
        registry.resolve(ModelRef("m", "2.0.0"))
    with pytest.raises(VersionNotReleased):
        registry.resolve(ModelRef("m", "0.1.0"))


def test_empty_registry(root: Path, registry: Registry) -> None:
    registry.load()
    assert registry.is_loaded
    with pytest.raises(ModelNotFound, match="served are none"):
        registry.resolve(ModelRef("m"))
    with pytest.raises(ModelRequired, match="none is served"):
        registry.default_for("image")
    assert Registry(Store(root / "nowhere")).models == {}


def test_default_for_kind(root: Path, registry: Registry) -> None:
    with pytest.raises(ModelNotReady):
        registry.default_for("tensor")
    write_model(root, "colours", kind="colour")
    write_model(root, "b")
    registry.load()
    assert registry.default_for("image") == ModelRef("colours")
    assert registry.default_for("tensor") == ModelRef("b")
    write_model(root, "a")
    registry.load()
    with pytest.raises(ModelRequired, match="name the model that shall take this tensor: choose one of a, b"):
        registry.default_for("tensor")
    write_yaml(root / "registry.yaml", {"schema": 1, "defaults": {"tensor": "b"}})
    registry.load()
    assert registry.default_for("tensor") == ModelRef("b")
    assert registry.defaults == {"tensor": "b"}


def test_failed_model_is_no_default(root: Path, registry: Registry) -> None:
    write_model(root, "a")
    (write_model(root, "b") / "labels.txt").unlink()
    registry.load()
    assert registry.default_for("tensor") == ModelRef("a")


def test_load_again_sees_what_is_there_now(root: Path, registry: Registry) -> None:
    write_model(root, "m", "1.0.0")
    registry.load()
    write_model(root, "m", "1.1.0")
    registry.load()
    assert _resolve(registry, "m") == ("1.1.0", "stable")
    shutil.rmtree(root / "m")
    registry.load()
    assert registry.models == {}


def test_open_takes_what_is_not_released(root: Path, registry: Registry) -> None:
    write_model(root, "m", "1.0.0")
    write_model(root, "m", "2.0.0-rc.1")
    write_release(root, "m", "1.0.0", aliases={"canary": {"version": "1.0.0"}})
    opened = {text: registry.open(ModelRef.parse(text)) for text in ("m", "m@canary", "m@2.0.0-rc.1", "m@1.0.0")}
    assert {text: (found.servable.version, found.alias) for text, found in opened.items()} == {
        "m": ("1.0.0", "stable"),
        "m@canary": ("1.0.0", "canary"),
        "m@2.0.0-rc.1": ("2.0.0-rc.1", None),
        "m@1.0.0": ("1.0.0", None),
    }
    for text, kind, message in (
        ("n", ModelNotFound, "there is no model 'n' in .*; it has m"),
        ("m@3.0.0", VersionNotFound, r"has no version 3\.0\.0 in .*; it has 1\.0\.0, 2\.0\.0-rc\.1|it has 2"),
        ("m@beta", VersionNotFound, "has no alias 'beta'"),
    ):
        with pytest.raises(kind, match=message):
            registry.open(ModelRef.parse(text))
    for found in opened.values():
        found.servable.close()


def test_open_of_a_broken_version_raises(root: Path, registry: Registry) -> None:
    (write_model(root, "m") / "labels.txt").unlink()
    with pytest.raises(RegistryError, match=r"labels.txt"):
        registry.open(ModelRef("m"))
    write_model(root, "m", files={"model.onnx": b"nothing"})
    with pytest.raises(RuntimeLoadError, match=r"model.onnx"):
        registry.open(ModelRef("m"))


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("colour", {"processing": {"crop": 3}}, r"processing: makes image: UINT8 \[1, 3, 3, 3\], but the model takes"),
        ("colour", {"processing": {"layout": "NCHW"}}, r"processing: makes image: UINT8 \[1, 3, 4, 4\]"),
        ("colour", {"processing": {"colour": "GRAY"}}, r"processing: makes image: UINT8 \[1, 4, 4, 1\]"),
        ("colour", {"processing": {"normalise": {"mean": [0], "scale": [255]}}}, r"processing: makes image: FP32"),
        ("positive", {"answer": {"type": "regression", "output": "is_positive"}}, r"gives 3 answers to one row"),
    ],
)
def test_load_of_sections_that_contradict_each_other(
    root: Path, kind: str, overrides: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(RegistryError, match=rf"model\.yaml: .*{message}"):
        load_servable(write_model(root, "m", kind=kind, **overrides), 1)


def test_load_of_labels_where_the_file_leaves_the_classes_open(root: Path) -> None:
    """Nothing on paper contradicts them, but the first run does."""
    node = helper.make_node("Identity", ["x"], ["scores"])
    model = onnx_file([node], [("x", "FP32", [-1, -1])], [("scores", "FP32", [-1, -1])])
    sections = {"inputs": _entries("x", "FP32", [-1, 6]), "outputs": _entries("scores", "FP32", [-1, -1])}
    with pytest.raises(
        RegistryError, match=r"labels\.txt: has 3 labels, but output 'scores' gives 6 scores; write one"
    ):
        load_servable(write_model(root, files={"model.onnx": model}, **sections), 1)
    labels = b"a\nb\nc\nd\ne\nf\n"
    load_servable(write_model(root, files={"model.onnx": model, "labels.txt": labels}, **sections), 1).close()


def test_load_of_a_model_that_fails_on_its_trial_run(root: Path) -> None:
    model = onnx_file(
        [helper.make_node("Gather", ["table", "at"], ["found"])],
        [("at", "INT64", [-1])],
        [("found", "FP32", [-1])],
        {"table": np.zeros(0, np.float32)},
    )
    directory = write_model(root, "m", kind="lookup", files={"model.onnx": model})
    with pytest.raises(
        RegistryError, match=r"model\.onnx: fails on a trial run, so it cannot serve: .*out of data bounds"
    ):
        load_servable(directory, 1)


def test_missing_cpu_features_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(root, "m", evaluation=[{"data": "d", "n": 1, "cpu_features": ["avx2", "avx512_vnni"]}])
    for features, is_told in (({"avx2"}, True), ({"avx2", "avx512_vnni"}, False), (set(), False)):
        caplog.clear()
        registry = Registry(Store(root), cpu_features=frozenset(features))
        registry.load()
        assert ("CPU with avx512_vnni, which this one lacks" in caplog.text) is is_told
        registry.close()


@pytest.mark.parametrize(
    "kind", ["scores", "sum", "colour", "mood", "two_inputs", "echo", "double", "transpose", "positive", "lookup"]
)
def test_every_kind_of_model_loads(root: Path, kind: str) -> None:
    servable = load_servable(write_model(root, "m", kind=kind), 1)
    assert servable.kind == {"colour": "image", "mood": "text"}.get(kind, "tensor")
    servable.close()
