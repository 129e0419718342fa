"""Loading and unloading by wish, beside what the release asks for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import ModelFailed, ModelUnloaded
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import State
from app.registry.serving.wishes import Wishes
from app.registry.serving.worker_states import describe_model
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import write_composition, write_model, write_release

M = ModelRef("m")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """m 1.0.0, released, and 2.0.0, not."""
    path = tmp_path / "models"
    for version in ("1.0.0", "2.0.0"):
        write_model(path, "m", version)
    write_release(path, "m", "1.0.0")
    return path


@pytest.fixture
def wishes(tmp_path: Path) -> Wishes:
    return Wishes(tmp_path)


@pytest.fixture
def registry(root: Path, wishes: Wishes) -> Iterator[Registry]:
    registry = Registry(Store(root), wishes=wishes)
    registry.load()
    yield registry
    registry.close()


def state(registry: Registry, name: str = "m") -> dict[str, State]:
    return {version: status.state for version, status in registry.models[name].versions.items()}


def test_unloaded_memory_is_given_back_and_nothing_is_served(registry: Registry, wishes: Wishes) -> None:
    held = registry.resolve(M)
    reference = weakref.ref(held.servable)
    wishes.make("m", is_load=False)
    (retired,) = registry.reconcile()
    assert retired is held.servable
    with pytest.raises(ModelUnloaded, match="unloaded by request"):
        registry.resolve(M)
    with pytest.raises(ModelUnloaded):
        registry.find(M)
    assert state(registry) == {"1.0.0": State.UNLOADED}
    assert not registry.models["m"].has_converged
    held.servable.run_item("tensor", [[0.0, 0.0, 1.0]])  # who began before goes on
    del held, retired
    gc.collect()
    assert reference() is None


def test_a_new_release_does_not_undo_it(root: Path, registry: Registry, wishes: Wishes) -> None:
    wishes.make("m", is_load=False)
    registry.reconcile()
    write_release(root, "m", "2.0.0")
    assert registry.reconcile() == []
    assert state(registry) == {"2.0.0": State.UNLOADED}
    wishes.make("m", is_load=True)
    registry.reconcile()
    assert registry.resolve(M).servable.version == "2.0.0"
    assert registry.reconcile() == []


def test_another_process_sees_it_also_at_its_start(root: Path, registry: Registry, wishes: Wishes) -> None:
    wish = wishes.make("m", is_load=False)
    assert registry.reconcile() != []
    assert describe_model(registry.models["m"])["wish"] == wish.number
    late = Registry(Store(root), wishes=Wishes(root.parent))
    late.load()
    assert late.models["m"].wish == wish
    with pytest.raises(ModelUnloaded):
        late.resolve(M)
    late.close()


def test_load_loads_what_is_loaded_on_demand(root: Path, wishes: Wishes) -> None:
    write_release(root, "m", "1.0.0", load="lazy", also_serve=["2.0.0"])
    registry = Registry(Store(root), wishes=wishes)
    registry.load()
    assert set(state(registry).values()) == {State.UNLOADED}
    assert registry.find(M).state is State.UNLOADED  # to look is not to load
    registry.reconcile()
    assert set(state(registry).values()) == {State.UNLOADED}
    wishes.make("m", is_load=True)
    registry.reconcile()
    assert set(state(registry).values()) == {State.READY}
    registry.close()


def test_load_tries_again_what_failed(root: Path, registry: Registry, wishes: Wishes) -> None:
    (root / "m" / "2.0.0" / "labels.txt").write_text("one\n")
    write_release(root, "m", "2.0.0")
    registry.reconcile()
    assert state(registry)["2.0.0"] is State.FAILED
    first = registry.models["m"].versions["2.0.0"]
    wishes.make("m", is_load=True)
    registry.reconcile()
    assert registry.models["m"].versions["2.0.0"] is not first
    assert registry.resolve(M).servable.version == "1.0.0"  # which goes on


def test_a_composition_of_what_is_unloaded_fails_until_it_is_back(root: Path, wishes: Wishes) -> None:
    write_model(root, "other")
    write_composition(root, "both", "average", ["m", "other"])
    write_release(root, "both", "1.0.0")
    registry = Registry(Store(root), wishes=wishes)
    registry.load()
    composed = registry.resolve(ModelRef("both")).servable
    wishes.make("m", is_load=False)
    registry.reconcile()
    with pytest.raises(ModelFailed, match=r"step m of both.*model 'm' was unloaded"):
        composed.run_item("tensor", [[0.0, 0.0, 1.0]])
    wishes.make("m", is_load=True)
    registry.reconcile()
    assert composed.run_item("tensor", [[0.0, 0.0, 1.0]])
    registry.close()


def test_a_file_that_is_damaged_changes_nothing(tmp_path: Path) -> None:
    wishes = Wishes(tmp_path)
    wish = wishes.make("m", is_load=False)
    for content in (b"", b"[]", b"{}", b"\xff", b"7"):
        (tmp_path / "wishes" / "m.json").write_bytes(content)
        assert wishes.read() == {"m": wish}


def test_without_a_directory_it_is_kept_in_the_process() -> None:
    wishes = Wishes(None)
    assert wishes.read() == {}
    wish = wishes.make("m", is_load=True)
    assert wishes.read() == {"m": wish}
    assert Wishes(None).read() == {}
