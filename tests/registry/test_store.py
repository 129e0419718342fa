"""What counts as a model and a version on disk, and what is held against the manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import RegistryError
from app.registry.manifest import read_manifest
from app.registry.store import Store, read_labels, verify_files
from app.registry.versions import Version
from tests.fixtures_models import write_model, write_release, write_yaml


def test_model_names_are_directories_named_like_models(root: Path) -> None:
    for name in ("b", "a", ".staging-b", "Upper", "with space"):
        (root / name).mkdir()
    (root / "registry.yaml").write_text("")
    (root / "file").write_text("")
    (root / "gone").symlink_to(root / "nowhere")
    (root / "c").symlink_to(root / "a", target_is_directory=True)
    assert Store(root).model_names() == ["a", "b", "c"]


def test_missing_registry_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "nowhere")
    assert store.model_names() == []
    assert store.version_names("m") == []
    assert store.release("m") == (None, False)
    assert store.defaults().model_dump(exclude_none=True) == {}


def test_registry_that_is_a_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Store(tmp_path / "file").model_names() == []


def test_version_names_in_semantic_order(root: Path) -> None:
    for name in ("1.10.0", "1.9.0", "1.10.0-rc.1", "latest", ".staging-2.0.0", "1.2", "3"):
        (root / "m" / name).mkdir(parents=True)
    (root / "m" / "9.9.9").write_text("a file")
    (root / "m" / "8.0.0").symlink_to(root / "nowhere")
    (root / "m" / "release.yaml").write_text("")
    assert [str(version) for version in Store(root).version_names("m")] == ["1.9.0", "1.10.0-rc.1", "1.10.0", "3"]


def test_version_says_what_is_wrong(root: Path) -> None:
    write_model(root, "m", "1.0.0")
    (root / "m" / "2.0.0").mkdir()
    store = Store(root)
    good, bad = (store.version("m", Version.parse(text)) for text in ("1.0.0", "2.0.0"))
    assert good.manifest is not None
    assert good.error is None
    assert bad.manifest is None
    assert bad.error is not None
    assert "model.yaml: cannot be read" in bad.error


def test_release_written_or_implied(root: Path) -> None:
    write_model(root, "m", "1.0.0")
    write_model(root, "m", "1.1.0")
    release, is_explicit = Store(root).release("m")
    assert release is not None
    assert (release.versions, is_explicit) == (("1.1.0",), False)
    write_release(root, "m", "1.0.0")
    release, is_explicit = Store(root).release("m")
    assert release is not None
    assert (release.versions, is_explicit) == (("1.0.0",), True)


def test_release_from_a_directory_of_its_own(root: Path, tmp_path: Path) -> None:
    write_model(root, "m", "1.0.0")
    write_release(root, "m", "9.0.0")
    write_release(tmp_path / "releases", "m", "1.0.0")
    release, _ = Store(root, tmp_path / "releases").release("m")
    assert release is not None
    assert release.versions == ("1.0.0",)


def test_defaults(root: Path) -> None:
    write_yaml(root / "registry.yaml", {"schema": 1, "defaults": {"image": "photos", "text": None}})
    assert Store(root).defaults().image == "photos"
    write_yaml(root / "registry.yaml", {"defaults": {"images": "photos"}})
    with pytest.raises(RegistryError, match=r"registry\.yaml: defaults\.images: unknown key; did you mean 'image'"):
        Store(root).defaults()


def test_verify_files(root: Path) -> None:
    directory = write_model(root)
    files = read_manifest(directory).files
    verify_files(directory, files)
    data = (directory / "model.onnx").read_bytes()
    (directory / "model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RegistryError, match=r"model\.onnx: has SHA-256 .*; copy the version again, or publish"):
        verify_files(directory, files)
    (directory / "model.onnx").write_bytes(data + b"\0")
    with pytest.raises(RegistryError, match=rf"has {len(data) + 1} bytes, model\.yaml \(files\) says {len(data)}"):
        verify_files(directory, files)
    (directory / "model.onnx").unlink()
    with pytest.raises(RegistryError, match=r"is listed in model\.yaml, but cannot be read \(No such file"):
        verify_files(directory, files)


@pytest.mark.parametrize("data", [b"a\nb c\n", b"a\nb c", b"a\r\nb c\r\n", b"\xef\xbb\xbfa\nb c\n"])
def test_read_labels(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    assert read_labels(tmp_path / "labels.txt") == ["a", "b c"]


def test_read_labels_keeps_what_is_no_line_end(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\u2028b\nc\x0cd\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ["a\u2028b", "c\x0cd"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\n\nb\n", "line 2 is empty; every class needs a label"),
        (b"", "line 1 is empty"),
        (b"a\nb\na\n", "the label 'a' stands twice"),
        (b"a\n\xff\n", "is not UTF-8"),
    ],
)
def test_read_labels_refuses(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises(RegistryError, match=rf"labels\.txt: .*{message}"):
        read_labels(tmp_path / "labels.txt")
