"""What is served follows the directory; what fails, is damaged or disappears takes nothing down."""

from __future__ import annotations

import contextlib
import gc
import shutil
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.errors import ModelFailed, ModelNotFound, ModelNotReady, VersionNotReleased
from app.metrics import Metrics
from app.registry.serving.desired import GONE_SECONDS, Watch
from app.registry.serving.lifecycle import Registry
from app.registry.serving.reconciler import Reconciler
from app.registry.serving.states import ModelStates
from app.registry.serving.status import State
from app.registry.serving.worker_states import StateFile, merge_versions, read_worker_states
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import write_model, write_release


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """m 1.0.0, released, and 2.0.0, not."""
    path = tmp_path / "models"
    for version in ("1.0.0", "2.0.0"):
        write_model(path, "m", version)
    write_release(path, "m", "1.0.0")
    return path


@pytest.fixture
def registry(root: Path) -> Iterator[Registry]:
    registry = Registry(Store(root))
    registry.load()
    yield registry
    registry.close()


def serves(registry: Registry, ref: str = "m", key: bytes | None = None) -> tuple[str, str | None]:
    resolved = registry.resolve(ModelRef.parse(ref), key)
    return resolved.servable.version, resolved.alias


def states(registry: Registry) -> dict[str, str]:
    return {version: str(status.state) for version, status in registry.models["m"].versions.items()}


def test_new_release_takes_over_and_the_old_is_freed(root: Path, registry: Registry) -> None:
    held = registry.resolve(ModelRef("m"))
    reference = weakref.ref(held.servable)
    assert registry.reconcile() == []
    write_release(root, "m", "2.0.0")
    (retired,) = registry.reconcile()
    assert retired is held.servable
    assert serves(registry) == ("2.0.0", "stable")
    with pytest.raises(VersionNotReleased):
        registry.resolve(ModelRef.parse("m@1.0.0"))
    # Who holds it can still run it; it goes with the last of them.
    assert held.servable.run({"x": np.ones((1, 3), np.float32)})["scores"].tolist() == [[1, 1, 1]]
    del retired, held
    gc.collect()
    assert reference() is None


def test_old_serves_while_the_new_is_loaded(root: Path, registry: Registry) -> None:
    seen: list[tuple[dict[str, str], tuple[str, str | None]]] = []
    write_release(root, "m", "2.0.0")
    registry.reconcile(lambda: seen.append((states(registry), serves(registry))))
    assert seen == [
        ({"1.0.0": "ready", "2.0.0": "loading"}, ("1.0.0", "stable")),
        ({"2.0.0": "ready"}, ("2.0.0", "stable")),
    ]


def test_version_that_fails_leaves_the_old_one_serving_until_it_heals(root: Path, registry: Registry) -> None:
    labels = root / "m/2.0.0/labels.txt"
    good = labels.read_bytes()
    labels.write_text("x\n")
    write_release(root, "m", "2.0.0")
    assert registry.reconcile() == []
    assert serves(registry) == serves(registry, "m@stable") == ("1.0.0", "stable")
    assert states(registry) == {"2.0.0": "failed", "1.0.0": "ready"}
    assert "labels.txt" in str(registry.models["m"].versions["2.0.0"].error)
    assert not registry.models["m"].has_converged
    with pytest.raises(ModelFailed):
        registry.resolve(ModelRef.parse("m@2.0.0"))
    before = registry.models["m"]
    registry.reconcile()
    assert registry.models["m"] is before  # not tried again while nothing has changed
    labels.write_bytes(good)
    assert len(registry.reconcile()) == 1
    assert serves(registry) == ("2.0.0", "stable")
    assert registry.models["m"].has_converged


def test_canary_that_is_not_there_leaves_its_share_to_stable(root: Path, registry: Registry) -> None:
    (root / "m/2.0.0/labels.txt").unlink()
    write_release(root, "m", "1.0.0", aliases={"canary": {"version": "2.0.0", "weight": 100}})
    registry.reconcile()
    resolved = registry.resolve(ModelRef("m"))
    assert (resolved.servable.version, resolved.alias, resolved.fallback_from) == ("1.0.0", "stable", "canary")
    with pytest.raises(ModelFailed):
        registry.resolve(ModelRef.parse("m@canary"))


def test_alias_moves_only_with_its_version(root: Path, registry: Registry) -> None:
    write_release(root, "m", "1.0.0", aliases={"canary": {"version": "2.0.0", "weight": 100}})
    registry.reconcile()
    assert serves(registry) == ("2.0.0", "canary")
    write_release(root, "m", "2.0.0")
    (retired,) = registry.reconcile()
    assert retired.version == "1.0.0"
    assert serves(registry) == ("2.0.0", "stable")


@pytest.mark.parametrize("damage", ["broken", "removed", "root gone", "root empty", "versions gone"])
def test_damage_to_the_directory_takes_nothing_down(root: Path, registry: Registry, damage: str) -> None:
    if damage == "broken":
        (root / "m/release.yaml").write_text("aliases: [")
    elif damage == "removed":
        (root / "m/release.yaml").unlink()
    elif damage == "versions gone":
        shutil.rmtree(root / "m/1.0.0")
    else:
        root.rename(root.with_name("elsewhere"))
        if damage == "root empty":
            root.mkdir()
    assert registry.reconcile() == []
    assert serves(registry) == ("1.0.0", "stable")
    if damage == "broken":
        assert "release.yaml" in str(registry.models["m"].error)
    elif damage.startswith("root"):
        if root.exists():
            root.rmdir()
        root.with_name("elsewhere").rename(root)
        write_release(root, "m", "2.0.0")
        registry.reconcile()
        assert serves(registry) == ("2.0.0", "stable")


def test_model_that_is_gone_is_withdrawn_after_a_while(root: Path) -> None:
    write_model(root, "other")
    watch = Watch(Store(root))
    assert set(watch.look(0)) == {"m", "other"}
    shutil.rmtree(root / "m")
    assert set(watch.look(1)) == {"m", "other"}
    (root / "m").mkdir()
    assert set(watch.look(2 + GONE_SECONDS)) == {"m", "other"}
    (root / "m").rmdir()
    assert set(watch.look(3 + GONE_SECONDS)) == {"m", "other"}
    assert set(watch.look(3 + 2 * GONE_SECONDS)) == {"other"}


def test_model_that_is_gone_is_unloaded(root: Path) -> None:
    write_model(root, "other")
    registry = Registry(Store(root), gone_seconds=0.0)
    registry.load()
    shutil.rmtree(root / "m")
    (retired,) = registry.reconcile()
    assert retired.name == "m"
    with pytest.raises(ModelNotFound):
        registry.resolve(ModelRef("m"))
    registry.close()


def test_what_appears_without_a_release_changes_nothing(root: Path) -> None:
    """The newest final version at start is meant; a directory that is being copied is nobody's release."""
    (root / "m/release.yaml").unlink()
    registry = Registry(Store(root))
    registry.load()
    write_model(root, "m", "3.0.0")
    write_model(root, "new")
    registry.reconcile()
    assert serves(registry) == ("2.0.0", "stable")
    with pytest.raises(ModelNotFound):
        registry.resolve(ModelRef("new"))
    write_release(root, "new", "1.0.0")
    write_release(root, "m", "3.0.0")
    registry.reconcile()
    assert serves(registry) == ("3.0.0", "stable")
    assert serves(registry, "new") == ("1.0.0", "stable")
    registry.close()


def test_version_that_needs_more_memory_than_is_free_waits_for_it(root: Path) -> None:
    free = [1]
    registry = Registry(Store(root), available_bytes=lambda: free[0])
    registry.load()
    status = registry.models["m"].versions["1.0.0"]
    assert status.state is State.FAILED
    assert "MB of memory" in str(status.error)
    assert status.retry_at < float("inf")
    registry.reconcile()
    assert registry.models["m"].versions["1.0.0"] is status
    free[0] = 10**12
    with contextlib.suppress(ModelFailed):
        while registry.models["m"].versions["1.0.0"].state is State.FAILED:
            time.sleep(0.05)
            registry.reconcile()
    assert serves(registry) == ("1.0.0", "stable")
    registry.close()


def test_lazy_model_is_loaded_when_it_is_first_asked_for(root: Path) -> None:
    write_release(root, "m", "1.0.0", load="lazy")
    registry = Registry(Store(root))
    registry.load()
    assert states(registry) == {"1.0.0": "unloaded"}
    registry.reconcile()
    assert states(registry) == {"1.0.0": "unloaded"}
    with pytest.raises(ModelNotReady, match="is being loaded; try again"):
        registry.resolve(ModelRef("m"))
    registry.reconcile()
    assert serves(registry) == ("1.0.0", "stable")
    registry.close()


def test_reconciler_forgets_what_is_unloaded_until_it_is_gone(root: Path, registry: Registry, tmp_path: Path) -> None:
    forgotten: list[str] = []
    reconciler = Reconciler(registry, lambda: None, lambda servable: forgotten.append(servable.version), tmp_path)
    held = registry.resolve(ModelRef("m"))
    write_release(root, "m", "2.0.0")
    reconciler.look()
    reconciler.look()
    assert forgotten == ["1.0.0", "1.0.0"]
    del held
    reconciler.look()
    reconciler.look()
    assert len(forgotten) <= 3


def test_worker_states_are_merged(root: Path, registry: Registry, tmp_path: Path) -> None:
    StateFile(tmp_path, 0).write(registry)
    (root / "m/2.0.0/labels.txt").unlink()
    write_release(root, "m", "2.0.0")
    registry.reconcile()
    StateFile(tmp_path, 1).write(registry)
    found = read_worker_states(tmp_path)
    assert [state.slot for state in found] == [0, 1]
    assert [state.models["m"]["has_converged"] for state in found] == [True, False]
    merged = merge_versions(found, "m")
    assert merged["1.0.0"]["workers"] == {"ready": 2}
    assert merged["2.0.0"]["state"] == "failed"
    assert "labels.txt" in merged["2.0.0"]["error"]
    (tmp_path / "workers/1.json").write_text('{"slot": 1, "pid": 999999999, "models": {}}')
    assert [state.slot for state in read_worker_states(tmp_path)] == [0]


def test_state_that_cannot_be_shown_is_told_once(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "workers").write_text("in the way")
    states = ModelStates(registry, Metrics(), StateFile(tmp_path, 0))
    for _ in range(3):
        states.publish()
    assert sum("cannot be shown to the others" in message for message in caplog.messages) == 1
    (tmp_path / "workers").unlink()
    states.publish()
    assert len(read_worker_states(tmp_path)) == 1
