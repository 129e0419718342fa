"""Archives and directories from strangers: what is written out, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import ArchiveTooLarge, BadArchive, InvalidContent
from app.registry.storing.archive import Limits, copy_directory, unpack

LIMITS = Limits(max_bytes=1_000_000, max_files=50)


def tar_of(*members: tuple[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            _add(tar, name, data)
    return buffer.getvalue()


def zip_of(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def _special(name: str, **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, "model.yaml", b"x")
        _add(tar, name, **fields)
    return buffer.getvalue()


def _zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        link = zipfile.ZipInfo("labels.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def _unpack(tmp_path: Path, data: bytes, limits: Limits = LIMITS) -> dict[str, bytes]:
    (tmp_path / "upload").write_bytes(data)
    target = tmp_path / "unpacked"
    unpack(tmp_path / "upload", target, limits)
    assert not (tmp_path / "unpacked.tar").exists()
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


FILES = (("model.yaml", b"one"), ("golden/golden.json", b"two"))


@pytest.mark.parametrize(
    "data", [tar_of(*FILES), tar_of(*FILES, mode="w"), zip_of(*FILES), zip_of(*FILES, method=zipfile.ZIP_STORED)]
)
def test_files_are_written(tmp_path: Path, data: bytes) -> None:
    assert _unpack(tmp_path, data) == dict(FILES)


def test_gzip_in_several_parts(tmp_path: Path) -> None:
    data = tar_of(*FILES, mode="w")
    assert _unpack(tmp_path, gzip.compress(data[:700]) + gzip.compress(data[700:])) == dict(FILES)


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_what_macos_adds_is_left_out(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    data = pack(("./1.0.0/model.yaml", b"x"), ("./1.0.0/._model.yaml", b"y"), ("__MACOSX/a", b""), (".DS_Store", b""))
    assert _unpack(tmp_path, data) == {"1.0.0/model.yaml": b"x"}


def test_rights_and_owners_of_an_archive_do_not_count(tmp_path: Path) -> None:
    _unpack(tmp_path, _special("model.onnx", mode=0o6777, uid=12345))
    found = (tmp_path / "unpacked" / "model.onnx").stat()
    assert (found.st_uid, found.st_mode & 0o6111) == (os.getuid(), 0)


HOSTILE = {
    "symbolic link": _special("labels.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": _special("labels.txt", type=tarfile.LNKTYPE, linkname="model.yaml"),
    "device": _special("labels.txt", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": _special("labels.txt", type=tarfile.FIFOTYPE),
    "link in a zip": _zip_link(),
    "absolute": tar_of(("/tmp/headway-was-here", b"x")),
    "parent": tar_of(("a/../../headway-was-here", b"x")),
    "parent in a zip": zip_of(("../headway-was-here", b"x")),
    "backslash": zip_of(("..\\headway-was-here", b"x")),
    "control character": tar_of(("model\n.yaml", b"x")),
    "long name": tar_of(("a" * 300, b"x")),
    "deep": tar_of(("/".join("abcdefghijkl"), b"x")),
    "twice": tar_of(("model.yaml", b"x"), ("./model.yaml", b"y")),
    "file as a directory": tar_of(("a", b"x"), ("a/b", b"x")),
    "cut off": tar_of(("model.yaml", os.urandom(100_000)))[:-50_000],
    "cut off, not packed": tar_of(("model.yaml", b"x" * 100_000), mode="w")[:50_000],
    "zip cut off": zip_of(("model.yaml", b"x" * 100_000))[:-30],
    "unusual packing": zip_of(("model.yaml", b"x"), method=zipfile.ZIP_LZMA),
    "no archive": b"\x01" * 5000,
    "text": b"hello",
    "nothing": b"",
    "gzip of nothing": gzip.compress(b""),
    "gzip damaged": gzip.compress(os.urandom(5000))[:100] + b"\x00" * 5000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    before = set(Path("/tmp").iterdir())
    with pytest.raises(BadArchive):
        _unpack(tmp_path, data)
    assert "headway-was-here" not in {path.name for path in {*Path("/tmp").iterdir(), *tmp_path.iterdir()} - before}


def _bomb() -> bytes:
    return gzip.compress(b"\x00" * 50_000_000)


LARGE = {
    "gzip bomb": _bomb(),
    "many bytes": tar_of(("model.onnx", b"\x00" * 2_000_000)),
    "many bytes in a zip": zip_of(("model.onnx", b"\x00" * 2_000_000)),
    "many in all": zip_of(*((f"{number}.bin", b"\x00" * 100_000) for number in range(11))),
    "ten thousand files": tar_of(*((f"{number}", b"") for number in range(10_000))),
    "ten thousand files in a zip": zip_of(*((f"{number}", b"") for number in range(10_000))),
    "directories": tar_of(*((f"{number}/", b"") for number in range(10_000))),
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_too_large_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ArchiveTooLarge, match=r"more than (50 entries|1000000 bytes)"):
        _unpack(tmp_path, data)


def test_headers_that_claim_a_gigabyte_cost_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 900_000_000
    data = gzip.compress(header.tobuf() + b"\x00" * 100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidContent):
            _unpack(tmp_path, data, Limits(max_bytes=10**9))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_chain_of_headers_is_no_crash(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 0
    with pytest.raises(BadArchive):
        _unpack(tmp_path, header.tobuf() * 5000, Limits(max_bytes=10**8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "golden").mkdir(parents=True)
    (path / "model.yaml").write_bytes(b"one")
    (path / "golden" / "golden.json").write_bytes(b"two")
    (path / ".git").mkdir()
    return path


def test_copy_directory(tmp_path: Path, source: Path) -> None:
    copy_directory(source, tmp_path / "copy", LIMITS)
    assert sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")) == [
        "golden",
        "golden/golden.json",
        "model.yaml",
    ]


def test_copy_directory_refuses_links_and_pipes(tmp_path: Path, source: Path) -> None:
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(BadArchive, match="'link' is a link or a device"):
        copy_directory(source, tmp_path / "one", LIMITS)
    (source / "link").unlink()
    (source / "golden" / "more").symlink_to("/etc", target_is_directory=True)
    with pytest.raises(BadArchive, match="'golden/more' is a link"):
        copy_directory(source, tmp_path / "two", LIMITS)
    (source / "golden" / "more").unlink()
    os.mkfifo(source / "pipe")
    with pytest.raises(BadArchive, match="'pipe' is a link or a device"):
        copy_directory(source, tmp_path / "three", LIMITS)


def test_copy_directory_has_the_same_limits(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ArchiveTooLarge, match="more than 5 bytes"):
        copy_directory(source, tmp_path / "copy", Limits(max_bytes=5))
