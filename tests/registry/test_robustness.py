"""The record of robustness, and the gate of a release: of our own tools, and of a release.yaml written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import Conflict, ModelFailed, RegistryError
from app.registry.manifest import read_manifest
from app.registry.releases.changes import AlsoServe, Change, Promote, Replace, SetAlias, SetShadow
from app.registry.releases.editor import ReleaseEditor
from app.registry.releases.release import AliasEntry
from app.registry.robustness import (
    ROBUSTNESS_FILE,
    Measurement,
    find_unmet,
    keep_measurements,
    model_files,
    read_record,
)
from app.registry.servables.opening import Opener
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import edit_manifest, write_composition, write_model, write_release

GATE = {"attack": "fgsm", "strength": 2, "value": 0.5}


def _measured(robust: float = 0.6, attack: str = "fgsm", strength: float = 2, n: int = 50) -> Measurement:
    return Measurement(
        attack=attack, strength=strength, n=n, accuracy=0.9, robust_accuracy=robust, changed=0.4, data="photos",
        seed=0, how="L∞", cpu="any",
    )  # fmt: skip


def _write(root: Path, version: str, gate: Any = GATE) -> Path:
    return write_model(root, "m", version, min_robust_accuracy=gate)


@pytest.fixture
def store(root: Path) -> Store:
    """m 1.0.0, released; 2.0.0, which asks for a robust accuracy of 0.5 under FGSM of strength 2."""
    write_model(root, "m", "1.0.0")
    _write(root, "2.0.0")
    write_release(root, "m", "1.0.0")
    return Store(root)


def _keep(store: Store, *measurements: Measurement, version: str = "2.0.0") -> None:
    keep_measurements(store, read_manifest(store.root / "m" / version), measurements)


@pytest.mark.parametrize(
    "change",
    [
        Promote("2.0.0"),
        SetAlias("canary", "2.0.0", 5),
        SetAlias("canary", "2.0.0"),
        SetShadow("2.0.0", 10),
        AlsoServe("2.0.0"),
        Replace({"stable": AliasEntry(version="2.0.0")}),
    ],
)
def test_editor_gives_no_place_to_a_version_that_was_not_measured(store: Store, change: Change) -> None:
    before = store.release_path("m").read_bytes()
    with pytest.raises(Conflict, match=r"m@2\.0\.0 may not be released: min_robust_accuracy asks for 0\.5 under fgsm"):
        ReleaseEditor(store).change("m", change, unverified=True)
    assert store.release_path("m").read_bytes() == before
    _keep(store, _measured())
    assert ReleaseEditor(store).change("m", change, unverified=True).release is not None


@pytest.mark.parametrize(
    ("measured", "gate", "says"),
    [
        ([], GATE, "that was not measured of this file; measure it: headway robustness m@2.0.0 DIR"),
        ([_measured(strength=4)], GATE, "that was not measured of this file"),
        ([_measured(attack="pgd")], GATE, "that was not measured of this file"),
        ([_measured(0.4999)], GATE, "0.4999 was measured on 50 samples of photos; release another version"),
        ([_measured()], GATE | {"samples": 51}, "on 51 samples, and 50 were measured"),
        ([_measured()], [GATE, GATE | {"attack": "corruptions"}], "under corruptions of strength 2"),
        ([_measured(0.5)], GATE, None),
        ([_measured(), _measured(0.7, "corruptions")], [GATE, GATE | {"attack": "corruptions"}], None),
        ([], [], None),
    ],
)
def test_what_is_asked_and_what_was_measured(root: Path, measured: list[Measurement], gate: Any, says: str) -> None:
    directory = _write(root, "2.0.0", gate)
    if measured:
        _keep(Store(root), *measured)
    unmet = find_unmet(directory, read_manifest(directory))
    assert unmet is None if says is None else says in str(unmet)


def test_measurements_of_another_file_do_not_count(store: Store) -> None:
    _keep(store, _measured())
    directory = store.root / "m" / "2.0.0"
    other = _write(store.root, "3.0.0")
    (other / "model.onnx").write_bytes((other / "model.onnx").read_bytes() + b"\x00")
    (other / ROBUSTNESS_FILE).write_bytes((directory / ROBUSTNESS_FILE).read_bytes())
    edit_manifest(other, files={"model.onnx": {"sha256": "0" * 64, "bytes": 1}})
    assert "is of other model files than these" in str(find_unmet(other, read_manifest(other)))


def test_hand_written_release_meets_the_gate_when_it_is_loaded(store: Store) -> None:
    registry = Registry(store)
    registry.load()
    write_release(store.root, "m", "2.0.0")
    registry.reconcile()
    assert registry.resolve(ModelRef("m")).servable.version == "1.0.0"
    status = registry.models["m"].versions["2.0.0"]
    assert "m@2.0.0 may not be released: min_robust_accuracy asks for 0.5 under fgsm of strength 2" in str(status.error)
    _keep(store, _measured())  # and no touch of release.yaml: the version is tried again
    registry.reconcile()
    assert registry.resolve(ModelRef("m")).servable.version == "2.0.0"
    registry.close()
    fresh = Registry(store)
    (store.root / "m" / "2.0.0" / ROBUSTNESS_FILE).unlink()
    fresh.load()
    with pytest.raises(ModelFailed, match="may not be released"):
        fresh.resolve(ModelRef("m"))
    fresh.close()


def test_version_that_may_not_be_released_can_be_opened_to_be_measured(store: Store) -> None:
    assert Opener(store).open(ModelRef.parse("m@2.0.0")).servable.version == "2.0.0"


def test_record_keeps_the_newest_of_each(store: Store) -> None:
    _keep(store, _measured(0.1), _measured(0.3, "pgd"))
    _keep(store, _measured(0.8))
    record = read_record(store.root / "m" / "2.0.0")
    assert record is not None
    assert [(one.attack, one.robust_accuracy) for one in record.measurements] == [("fgsm", 0.8), ("pgd", 0.3)]
    assert record.files == model_files(read_manifest(store.root / "m" / "2.0.0"))
    assert set(record.files) == {"model.onnx"}
    written = (store.root / "m" / "2.0.0" / ROBUSTNESS_FILE).read_bytes()
    _keep(store, _measured(0.8))
    assert (store.root / "m" / "2.0.0" / ROBUSTNESS_FILE).read_bytes() == written


def test_weights_beside_the_model_file_are_bound_too(root: Path) -> None:
    directory = write_model(root, "m", "1.0.0", files={"weights.bin": b"1", "golden/cat.jpg": b"2"})
    assert set(model_files(read_manifest(directory))) == {"model.onnx", "weights.bin"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "is not JSON"),
        (b"[]", "measure anew"),
        (b'{"schema": 2, "files": {}, "measurements": []}', "schema: "),
        (b'{"schema": 1, "files": {}, "measurements": [], "more": 1}', "more: unknown key"),
        (b'{"schema": 1, "files": {}, "measurements": [{"attack": "fgsm"}]}', "measurements[0].strength: is missing"),
        (b" " * 1_000_001, "is larger than 1000000 bytes"),
        (json.dumps({"schema": 1, "files": {}, "measurements": [
            _measured().model_dump(mode="json") | {"robust_accuracy": float("nan")}]}).encode(), "robust_accuracy: "),
    ],
)  # fmt: skip
def test_damaged_record_is_refused_with_the_field(store: Store, data: bytes, says: str) -> None:
    path = store.root / "m" / "2.0.0" / ROBUSTNESS_FILE
    path.write_bytes(data)
    with pytest.raises(RegistryError) as caught:
        ReleaseEditor(store).change("m", SetAlias("canary", "2.0.0"))
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    registry = Registry(store)
    registry.load()  # of 1.0.0, which asks for nothing
    assert registry.resolve(ModelRef("m")).servable.version == "1.0.0"
    registry.close()
    _keep(store, _measured())
    assert ReleaseEditor(store).change("m", SetAlias("canary", "2.0.0")).release is not None


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({"attack": "fgsm", "strength": 2}, "value: is missing"),
        (GATE | {"value": 50}, "value: input should be less than or equal to 1"),
        ([GATE | {"atack": "x"}], "min_robust_accuracy[0].atack: unknown key; did you mean 'attack'?"),
        (GATE | {"strength": 0}, "strength: input should be greater than 0"),
        ("fgsm", "min_robust_accuracy: "),
    ],
)
def test_gates_that_are_none(root: Path, gate: Any, says: str) -> None:
    with pytest.raises(RegistryError) as caught:
        read_manifest(write_model(root, min_robust_accuracy=gate))
    assert says in str(caught.value)


def test_gate_is_for_classifiers_with_a_model_file(root: Path) -> None:
    with pytest.raises(RegistryError, match="min_robust_accuracy is for classifiers"):
        read_manifest(write_model(root, "sums", kind="sum", min_robust_accuracy=GATE))
    with pytest.raises(RegistryError, match="a composition takes no min_robust_accuracy"):
        read_manifest(write_composition(root, "both", "average", ["a", "b"], min_robust_accuracy=[GATE]))
