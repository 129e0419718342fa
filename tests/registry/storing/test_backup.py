"""Models as one file and back."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from app.errors import BadArchive, Conflict, ModelNotFound, RegistryError, VersionExists
from app.registry.store import Store
from app.registry.storing.backup import Restored, restore_backup, write_backup
from tests.fixtures_models import edit_manifest, file_entry, write_model, write_release, write_yaml


@pytest.fixture
def store(root: Path) -> Store:
    write_model(root, "a", "1.0.0", files={"README.md": b"card", "golden/one.json": b"{}"})
    write_model(root, "a", "1.1.0")
    write_model(root, "b", "3")
    write_release(root, "a", "1.0.0", also_serve=["1.1.0"])
    write_yaml(root / "registry.yaml", {"schema": 1, "defaults": {"tensor": "a"}})
    return Store(root)


@pytest.fixture
def file(store: Store, tmp_path: Path) -> Path:
    path = tmp_path / "backup.tar.gz"
    assert write_backup(store, path) == ["a@1.0.0", "a@1.1.0", "b@3"]
    return path


@pytest.fixture
def other(tmp_path: Path) -> Store:
    (tmp_path / "other").mkdir()
    return Store(tmp_path / "other")


def _contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_round_trip(store: Store, file: Path, other: Store) -> None:
    assert restore_backup(other, file) == Restored(("a@1.0.0", "a@1.1.0", "b@3"), ("a",))
    assert _contents(other.root) == _contents(store.root)
    assert restore_backup(other, file) == Restored((), ())
    assert _contents(other.root) == _contents(store.root)
    assert [path.name for path in other.root.iterdir() if path.name.startswith(".")] == []


def test_some_models(store: Store, tmp_path: Path, other: Store) -> None:
    file = tmp_path / "b.tar.gz"
    assert write_backup(store, file, ["b"]) == ["b@3"]
    restore_backup(other, file)
    assert {name.split("/")[0] for name in _contents(other.root)} == {"b"}
    with pytest.raises(ModelNotFound, match="there is no model 'c'"):
        write_backup(store, file, ["c"])
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_releases_of_their_own(store: Store, file: Path, other: Store, tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    releases.mkdir()
    apart = Store(other.root, releases)
    restore_backup(apart, file)
    assert not (other.root / "a" / "release.yaml").exists()
    assert (releases / "a" / "release.yaml").read_bytes() == store.release_path("a").read_bytes()
    again = tmp_path / "again.tar.gz"
    write_backup(apart, again)
    (tmp_path / "third").mkdir()
    restore_backup(Store(tmp_path / "third"), again)
    assert _contents(tmp_path / "third") == _contents(store.root)


def test_missing_versions_come_back_beside_the_others(store: Store, file: Path) -> None:
    before = _contents(store.root)
    for path in (store.root / "a" / "1.1.0").iterdir():
        path.unlink()
    (store.root / "a" / "1.1.0").rmdir()
    (store.root / "a" / "1.0.0" / "model.onnx").write_bytes(b"damaged")
    assert restore_backup(store, file) == Restored(("a@1.1.0",), ())
    assert _contents(store.root) == before


def test_different_version_is_never_replaced(store: Store, file: Path) -> None:
    edit_manifest(store.root / "b" / "3", licence="MIT")
    (store.root / "a" / "1.1.0" / "model.onnx").write_bytes(b"damaged")
    before = _contents(store.root)
    for force in (False, True):
        with pytest.raises(VersionExists, match="b@3 is published already, and differs"):
            restore_backup(store, file, force=force)
    assert _contents(store.root) == before


@pytest.mark.parametrize("name", ["a/release.yaml", "registry.yaml"])
def test_different_release_needs_force(store: Store, file: Path, name: str) -> None:
    before = _contents(store.root)
    path = store.root / name
    path.write_bytes(path.read_bytes() + b"# changed\n")
    with pytest.raises(Conflict, match=r"differs from the one in the backup; --force replaces it"):
        restore_backup(store, file)
    restore_backup(store, file, force=True)
    assert _contents(store.root) == before


def test_damaged_version_is_not_backed_up(store: Store, tmp_path: Path) -> None:
    (store.root / "b" / "3" / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(RegistryError, match=r"b/3/model\.onnx: has 7 bytes"):
        write_backup(store, tmp_path / "b.tar.gz")
    assert not (tmp_path / "b.tar.gz").exists()


def _archive(files: dict[str, bytes], index: dict[str, bytes] | None) -> bytes:
    named = {name: file_entry(data) for name, data in (index or {}).items()}
    members = dict(files)
    if index is not None:
        members["backup.json"] = json.dumps({"schema": 1, "files": named}).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _files(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in _contents(root).items() if name.startswith("b/")}


def test_damaged_backup_changes_nothing(store: Store, file: Path, other: Store) -> None:
    good = _files(store.root)
    other_model = {**good, "b/3/model.onnx": b"other"}
    unknown = {**good, "b/4/notes.txt": b"x"}
    cases = {
        "cut off": file.read_bytes()[:-2000],
        "no index": _archive(good, None),
        "changed": _archive(other_model, good),
        "manifest that lies": _archive(other_model, other_model),
        "not named": _archive({**good, "b/3/more": b""}, good),
        "missing": _archive({}, good),
        "of no version": _archive(unknown, unknown),
        "release that is wrong": _archive(*[{**good, "b/release.yaml": b"x: 1"}] * 2),
        "outside": _archive({"../b": b""}, {}),
        "random": os.urandom(1000),
    }
    for name, data in cases.items():
        file.write_bytes(data)
        with pytest.raises(BadArchive):
            restore_backup(other, file)
        assert _contents(other.root) == {}, name
    with pytest.raises(BadArchive, match="there is no such file"):
        restore_backup(other, file.with_name("nowhere"))
    file.write_bytes(_archive(good, good))
    assert restore_backup(other, file).versions == ("b@3",)
