"""Compositions at load: what is refused, what waits for its steps, and when it is tried again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.errors import HeadwayError, ModelFailed, RegistryError
from app.registry.drafting.difference import Bump, compare, needed_bump
from app.registry.drafting.difference import Content as VersionContent
from app.registry.manifest import read_manifest
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import State
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import edit_manifest, write_composition, write_model, write_release

CASCADE = ({"model": "plain", "confidence": 0.5}, {"model": "other"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """plain and other 1.0.0, of one kind."""
    root = tmp_path / "models"
    for name in ("plain", "other"):
        write_model(root, name)
    return root


def _load(root: Path) -> Registry:
    registry = Registry(Store(root))
    registry.load()
    return registry


def _state(registry: Registry, name: str, version: str = "1.0.0") -> tuple[State, str]:
    status = registry.models[name].versions[version]
    return status.state, status.error or ""


def _error(root: Path, name: str = "m") -> str:
    state, error = _state(_load(root), name)
    assert state is State.FAILED
    return error


# --- model.yaml

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no section": ({"composition": None}, "runtime: composition and the section composition go together"),
    "another runtime": ({"runtime": "onnx"}, "files lacks 'model.onnx'"),
    "one step": (
        {"composition": {"steps": [{"model": "plain"}]}},
        "composition.steps: tuple should have at least 2 items",
    ),
    "unknown type": ({"composition": {"type": "stack"}}, "composition"),
    "no weight": (
        {"composition": {"steps": [{"model": "a", "weight": 0}, {"model": "b"}]}},
        "composition.steps[0].weight",
    ),
    "no reference": ({"composition": {"steps": [{"model": "A b"}, {"model": "b"}]}}, "write the model as name"),
    "confidence of an average": (
        {"composition": {"steps": [{"model": "a", "confidence": 0.5}, {"model": "b"}]}},
        "composition.steps[0].confidence: unknown key",
    ),
    "cascade without confidence": (
        {"composition": {"type": "cascade"}},
        "steps[0] needs a confidence, from which on its answer is taken; only the last has none",
    ),
    "confidence of the last": (
        {"composition": {"type": "cascade", "steps": [CASCADE[0], dict(CASCADE[0])]}},
        "the last step has no confidence: its answer is always taken",
    ),
    "batch": ({"batch": {"max_size": 8}}, "a composition takes no batch and no limits.instances"),
    "instances": ({"limits": {"instances": 2}}, "a composition takes no batch and no limits.instances"),
    "activation": ({"answer": {"activation": "softmax"}}, "a composition answers {type: classification, activation"),
    "fixed rows": (
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}]},
        "the inputs of a composition have a free first size (-1)",
    ),
    "two outputs": (
        {"outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("scores", "more")]},
        "a composition has one output, FP32 or FP64 of the shape [-1, number of labels]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_manifest_refused(root: Path, name: str) -> None:
    overrides, message = BAD[name]
    directory = write_composition(root, "m", "average", ["plain", "other"])
    edit_manifest(directory, **overrides)
    with pytest.raises(RegistryError) as caught:
        read_manifest(directory)
    assert message in str(caught.value)
    assert "model.yaml" in str(caught.value)


def test_manifest_of_a_composition(root: Path) -> None:
    manifest = read_manifest(write_composition(root, "m", "cascade", CASCADE))
    assert (manifest.runtime, manifest.model_file, list(manifest.files)) == (
        "composition",
        "model.yaml",
        ["labels.txt"],
    )
    assert manifest.composition is not None
    assert [step.ref for step in manifest.composition.steps] == [ModelRef("plain"), ModelRef("other")]


# --- what does not fit


def _misfit_labels(root: Path) -> None:
    write_model(root, "odd", files={"labels.txt": b"low\nhigh\nmiddle\n"})


def _misfit_inputs(root: Path) -> None:
    write_model(root, "odd", inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 3], "batched": True}])
    edit_manifest(root / "odd/1.0.0", inputs=[{"name": "x", "datatype": "FP32", "shape": [4, 3]}], batch={"axis": None})
    edit_manifest(root / "odd/1.0.0", outputs=[{"name": "scores", "datatype": "FP32", "shape": [4, 3]}])


MISFITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other labels": (
        _misfit_labels,
        "odd@1.0.0 has the label 'high' at index 1, where this version has 'middle'; all steps need the same labels in "
        "the same order",
    ),
    "a regression": (
        lambda root: write_model(root, "odd", kind="sum"),
        "odd@1.0.0 is no classifier (answer: regression)",
    ),
    "photos": (
        lambda root: write_model(root, "odd", kind="colour", files={"labels.txt": b"low\nmiddle\nhigh\n"}),
        "odd@1.0.0 takes content of kind image, and this version tensor; all steps take the same kind",
    ),
    "no rows": (_misfit_inputs, "odd@1.0.0 does not answer each row for itself (batch.axis)"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_steps_that_do_not_fit_are_refused(root: Path, name: str) -> None:
    write, message = MISFITS[name]
    write(root)
    directory = write_composition(root, "m", "average", ["plain", "odd"])
    error = _error(root)
    assert error.startswith(f"{directory / 'model.yaml'}: composition.steps[1]: ")
    assert message in error


def test_labels_of_another_number_are_refused(root: Path) -> None:
    overrides = {"outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}]}
    write_composition(root, "m", "average", ["plain", "other"], labels=("low", "middle"), **overrides)
    assert "plain@1.0.0 has 3 labels, and labels says 2; all steps need the same labels" in _error(root)


def test_numbers_of_another_shape_are_refused(root: Path) -> None:
    overrides = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}
    write_composition(root, "m", "average", ["plain", "other"], **overrides)
    assert "takes x: FP32 [n, 3], but inputs says x: FP32 [n, 4]; all steps take what the composition does" in _error(
        root
    )


def test_the_name_of_an_only_input_does_not_matter(root: Path) -> None:
    overrides = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3]}]}
    write_composition(root, "m", "average", ["plain", "other"], **overrides)
    servable = _load(root).resolve(ModelRef("m")).servable
    assert servable.run_item("tensor", [[1, 0, 0]])["scores"].tolist() == [[1, 0, 0]]


def test_processing_is_that_of_the_first_step(root: Path) -> None:
    write_model(root, "colour", kind="colour")
    directory = write_composition(
        root, "m", "average", ["colour", "colour"], kind="colour", processing={"filter": "nearest"}
    )
    error = _error(root)
    assert error.startswith(f"{directory / 'model.yaml'}: processing: is not that of the first step, colour@1.0.0")


# --- circles


def test_circles_are_refused(root: Path) -> None:
    write_composition(root, "a", "average", ["b", "plain"])
    write_composition(root, "b", "average", ["plain", "c@stable"])
    write_composition(root, "c", "average", ["a@1.0.0", "plain"])
    write_composition(root, "self", "average", ["self", "plain"])
    write_composition(root, "outside", "average", ["a", "plain"])
    registry = _load(root)
    for name, circle in (
        ("a", "a@1.0.0 → b@1.0.0 → c@1.0.0 → a@1.0.0"),
        ("b", "b@1.0.0 → c@1.0.0 → a@1.0.0 → b@1.0.0"),
        ("self", "self@1.0.0 → self@1.0.0"),
        ("outside", "a@1.0.0 → b@1.0.0 → c@1.0.0 → a@1.0.0"),
    ):
        state, error = _state(registry, name)
        assert state is State.FAILED
        assert error.startswith(f"{root / name / '1.0.0' / 'model.yaml'}: composition.steps: ")
        assert f"{circle} name each other in a circle; take one step out" in error
    with pytest.raises(RegistryError, match="in a circle"):
        registry.open(ModelRef("a"))


def test_circle_by_a_canary_is_refused(root: Path) -> None:
    """A step without a tag may be answered by every version that gets traffic."""
    write_composition(root, "m", "average", ["plain", "other"])
    write_composition(root, "plain", "average", ["m", "other"], "2.0.0")
    write_release(root, "plain", "1.0.0", aliases={"canary": {"version": "2.0.0", "weight": 5}})
    state, error = _state(_load(root), "plain", "2.0.0")
    assert state is State.FAILED
    assert "plain@2.0.0 → m@1.0.0 → plain@2.0.0 name each other in a circle" in error


def test_too_many_levels_are_refused(root: Path) -> None:
    for level in range(1, 6):
        write_composition(root, f"m{level}", "average", [f"m{level - 1}" if level > 1 else "plain", "other"])
    registry = _load(root)
    assert [_state(registry, f"m{level}")[0] for level in range(1, 6)] == [State.READY] * 4 + [State.FAILED]
    assert "are more than 4 levels" in _state(registry, "m5")[1]


# --- waiting


def test_loaded_after_its_steps_whatever_their_names(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_composition(root, "a", "average", ["b", "other"])
    write_composition(root, "b", "average", ["plain", "other"])
    registry = _load(root)
    assert {name: _state(registry, name)[0] for name in ("a", "b")} == {"a": State.READY, "b": State.READY}
    assert list(registry.models) == ["a", "b", "other", "plain"]
    assert registry.models["a"].has_converged
    assert not caplog.messages  # nothing was tried too soon


def test_waits_for_a_step_that_is_not_there(root: Path) -> None:
    write_composition(root, "m", "average", ["plain", "late@1.0.0"])
    registry = _load(root)
    state, error = _state(registry, "m")
    assert state is State.FAILED
    assert "composition.steps[1]: late@1.0.0 cannot answer: there is no model 'late'" in error
    with pytest.raises(ModelFailed):
        registry.resolve(ModelRef("m"))
    before = registry.models["m"]
    registry.reconcile()
    assert registry.models["m"] is before  # not tried for nothing
    write_model(root, "late")
    write_release(root, "late", "1.0.0")
    registry.reconcile()
    assert _state(registry, "m")[0] is State.READY


def test_waits_for_a_step_that_is_not_released(root: Path) -> None:
    write_model(root, "plain", "2.0.0")
    write_release(root, "plain", "1.0.0")
    write_composition(root, "m", "average", ["plain@2.0.0", "other"])
    registry = _load(root)
    assert (
        "plain@2.0.0 cannot answer: version 2.0.0 of 'plain' is in the registry but not released"
        in _state(registry, "m")[1]
    )
    write_release(root, "plain", "1.0.0", also_serve=["2.0.0"])
    registry.reconcile()
    assert _state(registry, "m")[0] is State.READY


def test_tried_again_when_another_version_answers_for_a_step(root: Path) -> None:
    write_model(root, "plain", "2.0.0", files={"labels.txt": b"a\nb\nc\n"})
    write_release(root, "plain", "2.0.0")
    write_composition(root, "m", "average", ["plain", "other"])
    registry = _load(root)
    assert "has the label 'a' at index 0" in _state(registry, "m")[1]
    write_model(root, "plain", "1.0.0")
    write_release(root, "plain", "1.0.0")
    registry.reconcile()
    assert _state(registry, "m")[0] is State.READY


def test_step_that_is_loaded_on_demand_is_loaded_for_it(root: Path) -> None:
    write_release(root, "plain", "1.0.0", load="lazy")
    write_composition(root, "m", "average", ["plain", "other"])
    registry = _load(root)
    assert "is being loaded" in _state(registry, "m")[1]
    registry.reconcile()
    assert _state(registry, "plain")[0] is State.READY
    assert _state(registry, "m")[0] is State.READY


def test_new_version_of_a_composition_takes_over(root: Path) -> None:
    write_composition(root, "m", "average", ["plain", "other"])
    write_composition(root, "m", "cascade", CASCADE, "2.0.0")
    write_release(root, "m", "1.0.0")
    registry = _load(root)
    write_release(root, "m", "2.0.0")
    (old,) = registry.reconcile()
    assert (old.name, old.version) == ("m", "1.0.0")
    assert registry.resolve(ModelRef("m")).servable.version == "2.0.0"
    write_composition(root, "m", "average", ["plain", "nowhere"], "3.0.0")
    write_release(root, "m", "3.0.0")
    registry.reconcile()
    assert registry.resolve(ModelRef("m")).servable.version == "2.0.0"  # what does not load leaves the old one


# --- golden requests, and without a server


def _with_golden(root: Path, index: int) -> None:
    top = [{"index": index, "confidence": 0.75}]
    data = json.dumps({"requests": [{"inputs": [[0.75, 0.25, 0]], "top": top}]}).encode()
    directory = write_composition(root, "m", "average", ["plain", "other"])
    (directory / "golden").mkdir(exist_ok=True)
    (directory / "golden/golden.json").write_bytes(data)
    manifest = yaml.safe_load((directory / "model.yaml").read_text())
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    files = manifest["files"] | {"golden/golden.json": entry}
    golden = {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.01}
    edit_manifest(directory, files=files, golden=golden)


def test_golden_requests_hold_for_the_whole(root: Path) -> None:
    _with_golden(root, 0)
    registry = _load(root)
    assert _state(registry, "m")[0] is State.READY
    _with_golden(root, 1)
    registry.reconcile()
    registry.load()
    assert "request 1 no longer gives its recorded answer: the first label is 'low'" in _state(registry, "m")[1]


def test_open_needs_no_release_of_the_steps(root: Path) -> None:
    write_model(root, "plain", "2.0.0")
    write_release(root, "plain", "1.0.0")
    write_composition(root, "m", "average", ["plain@2.0.0", "b@1.0.0"])
    write_composition(root, "b", "average", ["plain@2.0.0", "other@stable"])
    servable = Registry(Store(root)).open(ModelRef("m", "1.0.0")).servable
    assert servable.run_item("tensor", [[0.5, 0.25, 0.25]])["scores"].tolist() == [[0.5, 0.25, 0.25]]


def test_open_says_which_step_is_missing(root: Path) -> None:
    directory = write_composition(root, "m", "average", ["plain", "nowhere@1.0.0"])
    with pytest.raises(HeadwayError) as caught:
        Registry(Store(root)).open(ModelRef("m"))
    assert str(caught.value).startswith(
        f"{directory / 'model.yaml'}: composition.steps[1]: nowhere@1.0.0 cannot answer"
    )


def test_difference_between_two_compositions(root: Path) -> None:
    old = write_composition(root, "m", "average", ["plain", {"model": "other", "weight": 2}])
    new = write_composition(root, "m", "vote", ["plain", {"model": "other@stable", "weight": 2}], "1.1.0")
    changes = compare(*(VersionContent.read(path, read_manifest(path)) for path in (old, new)))
    assert [str(change) for change in changes] == [
        "composition: type was average and is vote",
        "composition: steps[1].model was other and is other@stable",
    ]
    assert needed_bump(changes) is Bump.MINOR
