"""profiles.json: what is kept, what replaces what, and that the version beside it stays the version that it is."""

from __future__ import annotations

import datetime
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from app.errors import Conflict, RegistryError
from app.optimize.baseline import write_carrier
from app.optimize.profiling.matrix import make_matrix
from app.optimize.profiling.records import PROFILES, Hardware, Profile, Stack, keep_profiles, read_profiles
from app.registry.baseline import Baseline
from app.registry.drafting.draft import write_manifest
from app.registry.servables.loading import load_servable
from app.registry.store import Store
from app.registry.storing.archive import Limits
from app.registry.storing.backup import restore_backup, write_backup
from app.registry.storing.intake import Intake
from app.registry.versions import Version
from tests.fixtures_models import GOLDEN, write_model, write_release

LIMITS = Limits(max_bytes=1_000_000)
SLOW = Hardware(cpu="slow", architecture="x86_64", cpu_features=("avx2",), cpus=1)
FAST = Hardware(cpu="fast", architecture="x86_64", cpu_features=("avx2", "avx512_vnni"), cpus=2.5)
ORT, OLD_ORT, OV = (
    Stack(runtime=name, version=version)  # type: ignore[arg-type]
    for name, version in (("onnx", "1.31.1"), ("onnx", "1.20.0"), ("openvino", "2026.4.1"))
)


def _profile(hardware: Hardware = SLOW, stack: Stack = ORT, ms: float = 2.0, **changes: Any) -> Profile:
    content: dict[str, Any] = {
        "hardware": hardware.model_dump(), "stack": stack.model_dump(), "threads": 1,
        "date": datetime.date(2026, 11, 1), "libraries": {"numpy": "2.4"}, "inputs": "1 of a blank input",
        "run_ms": {"p50": ms, "p95": ms, "p99": ms}, "run_cpu_ms": ms, "whole_ms": {"p50": ms, "p95": ms, "p99": ms},
        "throughput": {"rows_per_second": 1000 / ms, "batch_size": 1},
        "accuracy": {"top1": 0.9, "n": 10, "data": "x", "is_measured": True},
        "memory": {"rss_bytes": 1_000_000, "peak_rss_bytes": 2_000_000}, "flops": 10, "parameters": 5, "golden": None,
    }  # fmt: skip
    return Profile.model_validate(content | changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    root = tmp_path / "models"
    write_model(root, "scores", **GOLDEN)
    write_release(root, "scores", "1.0.0")
    return Store(root)


@pytest.fixture
def directory(store: Store) -> Path:
    return store.root / "scores" / "1.0.0"


def test_newest_of_hardware_stack_and_threads_replaces(store: Store, directory: Path) -> None:
    assert read_profiles(directory) == ()
    keep_profiles(store, "scores", "1.0.0", [_profile(ms=2), _profile(stack=OV), _profile(threads=2), _profile(FAST)])
    keep_profiles(store, "scores", "1.0.0", [_profile(ms=3), _profile(stack=OLD_ORT)])
    kept = read_profiles(directory)
    assert len(kept) == 5
    assert [one.run_ms.p50 for one in kept if one.key == (SLOW, ORT, 1)] == [3]
    again = (directory / PROFILES).read_bytes()
    keep_profiles(store, "scores", "1.0.0", [_profile(ms=3)])
    assert (directory / PROFILES).read_bytes() == again


def test_processes_that_keep_at_once_lose_nothing(store: Store, directory: Path) -> None:
    def keep(number: int) -> None:
        for threads in range(1, 6):
            keep_profiles(store, "scores", "1.0.0", [_profile(threads=number * 10 + threads)])

    workers = [threading.Thread(target=keep, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(read_profiles(directory)) == 20
    assert sorted(path.name for path in directory.iterdir() if "new" in path.name) == []


def test_version_stays_the_version_that_it_was(store: Store, directory: Path, tmp_path: Path) -> None:
    before = store.version("scores", Version.parse("1.0.0")).manifest
    release = store.release_file("scores")
    keep_profiles(store, "scores", "1.0.0", [_profile()])
    load_servable(directory, 1).close()
    assert store.version("scores", Version.parse("1.0.0")).manifest == before
    assert store.release_file("scores") == release
    plain = write_model(tmp_path / "elsewhere", "scores", **GOLDEN)
    assert not Intake(store).publish(Intake(store).copy_in(plain, LIMITS)).is_new
    assert len(read_profiles(directory)) == 1


def test_measurements_go_where_the_version_goes(store: Store, directory: Path, tmp_path: Path) -> None:
    """Copies, backups and the bin; not to versions that are made from it."""
    keep_profiles(store, "scores", "1.0.0", [_profile()])
    kept = read_profiles(directory)
    (tmp_path / "copy").mkdir()
    copied, restored = Store(tmp_path / "copy"), Store(tmp_path / "restored")
    Intake(copied).publish(Intake(copied).copy_in(directory, LIMITS))
    write_backup(store, tmp_path / "backup.tar.gz")
    restored.root.mkdir()
    restore_backup(restored, tmp_path / "backup.tar.gz")
    for other in (copied, restored):
        assert read_profiles(other.root / "scores" / "1.0.0") == kept
    Intake(copied).remove("scores", "1.0.0", force=True)
    Intake(copied).undelete("scores", "1.0.0")
    assert read_profiles(copied.root / "scores" / "1.0.0") == kept
    manifest = store.version("scores", Version.parse("1.0.0")).manifest
    assert manifest is not None
    carrier = tmp_path / "scores" / "1.0.1"
    carrier.mkdir(parents=True)
    write_carrier(carrier, directory, manifest, Baseline(data="x", n=50, features={}))
    assert not (carrier / PROFILES).exists()


def test_manifest_that_is_written_anew_does_not_list_measurements(store: Store, directory: Path) -> None:
    keep_profiles(store, "scores", "1.0.0", [_profile()])
    before = store.version("scores", Version.parse("1.0.0")).manifest
    assert before is not None
    write_manifest(directory, before.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"files"}))
    after = store.version("scores", Version.parse("1.0.0")).manifest
    assert after is not None
    assert after.files == before.files


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"\xff", b'{"schema": 2, "profiles": []}', b'{"schema": 1, "profiles": [{}]}', b'{"schema": 1}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_damaged_file_is_told_and_left(store: Store, directory: Path, content: bytes) -> None:
    (directory / PROFILES).write_bytes(content)
    with pytest.raises(RegistryError, match=r"profiles\.json: holds no profiles .*; remove it, and measure again"):
        keep_profiles(store, "scores", "1.0.0", [_profile()])
    assert (directory / PROFILES).read_bytes() == content


def test_version_that_has_left(store: Store, directory: Path) -> None:
    shutil.rmtree(directory)
    with pytest.raises(Conflict, match=r"scores@1\.0\.0 was removed in this moment; nothing was kept"):
        keep_profiles(store, "scores", "1.0.0", [_profile()])


def test_matrix_by_hand() -> None:
    profiles = [
        ("m@1", _profile(SLOW, ORT, 6)), ("m@1", _profile(FAST, ORT, 2)),
        ("m@1", _profile(SLOW, OV, 5)), ("m@1", _profile(FAST, OV, 2.5, memory=None)),
        ("m@1", _profile(SLOW, ORT, 1, threads=4)),
    ]  # fmt: skip
    found = make_matrix(profiles, 1)
    assert found.values("latency_ms") == [[6, 5], [2, 2.5]]
    assert [str(found.fastest_on(row)) for row in found.hardware] == [
        "m@1, OpenVINO 2026.4.1", "m@1, ONNX Runtime 1.31.1",
    ]  # fmt: skip
    assert str(found.fastest) == "m@1, OpenVINO 2026.4.1"
    described = found.describe()
    assert described["figures"]["latency_ms"] == {
        "values": [[6, 5], [2, 2.5]], "mean_of_hardware": [5.5, 2.25], "mean_of_stack": [4, 3.75], "mean": 3.875,
    }  # fmt: skip
    assert described["figures"]["peak_memory_mb"]["values"] == [[2, 2], [2, None]]
    assert described["figures"]["peak_memory_mb"]["mean_of_stack"] == [2, 2]
    assert described["fastest"] == "m@1, OpenVINO 2026.4.1"
    assert json.loads(json.dumps(described)) == described


def test_stack_that_was_not_measured_on_slow_hardware_does_not_win_by_it() -> None:
    profiles = [
        ("m@1", _profile(SLOW, ORT, 6)), ("m@1", _profile(FAST, ORT, 2)), ("m@1", _profile(FAST, OV, 2.5)),
    ]  # fmt: skip
    found = make_matrix(profiles, 1)
    assert found.values("latency_ms") == [[6, None], [2, 2.5]]
    assert found.fastest_on(SLOW) is None
    assert str(found.fastest) == "m@1, ONNX Runtime 1.31.1"
    apart = make_matrix([("m@1", _profile(SLOW, ORT, 6)), ("m@1", _profile(FAST, OV, 2.5))], 1)
    assert apart.fastest is None
