"""What comes from outside, as an archive or a directory, written out under limits: plain files, inside, not too many.

Python's own readers of tar and zip are trusted with the format, not with its sizes: they read headers and directories
of the length that the archive claims, so what they may read at once is limited too.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from app.errors import ArchiveTooLarge, BadArchive, HeadwayError

ArchiveKind = Literal["tar", "zip"]

CHUNK_BYTES = 1 << 20
_MAX_READ_BYTES = 4 << 20
_MAX_DEPTH = 8
_MAX_NAME_BYTES = 255
_TAR_BLOCK_BYTES = 512
_ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_bytes` of all files together once unpacked, `max_files` of entries, directories among them."""

    max_bytes: int
    max_files: int = 1000


# For directories that are the caller's own: the disk is limit enough.
NO_LIMITS = Limits(max_bytes=1 << 62, max_files=1_000_000)


@dataclass(frozen=True, slots=True)
class _Entry:
    """`mode` is what the archive says of the type (S_IFREG …), 0 where it says nothing."""

    name: str
    mode: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, target: Path, limits: Limits, kind: ArchiveKind | None = None) -> None:
    """Write the files of a tar (gzipped or not) or a zip into `target`; where `kind` is None the first bytes tell.

    Hidden files are left out (macOS adds them). Raises BadArchive and ArchiveTooLarge; what was written stays.
    """
    head = _head(archive)
    with _naming_damage():
        if kind == "zip" or (kind is None and head[:2] == b"PK"):
            _write(_zip_entries(archive), target, limits)
        elif head[:2] == b"\x1f\x8b":
            plain = target.with_name(target.name + ".tar")
            _gunzip(archive, plain, limits)
            _write(_tar_entries(plain), target, limits)
            plain.unlink()
        else:
            _write(_tar_entries(archive), target, limits)


def copy_directory(source: Path, target: Path, limits: Limits) -> None:
    """Write the files of a directory into `target`, under the rules of `unpack`."""
    _write(_directory_entries(source), target, limits)


def _write(entries: Iterator[_Entry], target: Path, limits: Limits) -> None:
    target.mkdir()
    seen: set[PurePosixPath] = set()
    left = limits.max_bytes
    for number, entry in enumerate(entries, 1):
        if number > limits.max_files:
            raise ArchiveTooLarge(f"holds more than {limits.max_files} entries; send what the version reads, no more")
        path = _inside(entry.name)
        if not path.parts or _is_hidden(path):
            continue
        if entry.mode and not stat.S_ISREG(entry.mode) and not stat.S_ISDIR(entry.mode):
            raise BadArchive(f"{entry.name!r} is a link or a device; put plain files into the version's directory")
        if stat.S_ISDIR(entry.mode):
            (target / path).mkdir(parents=True, exist_ok=True)
            continue
        if path in seen:
            raise BadArchive(f"{entry.name!r} stands twice; which one is meant cannot be told")
        seen.add(path)
        with entry.open() as source:
            left -= _copy(source, target / path, left, limits)


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise BadArchive(f"{name!r} leads out of the version's directory; use plain relative names")
    if len(path.parts) > _MAX_DEPTH or any(len(part.encode()) > _MAX_NAME_BYTES for part in path.parts):
        raise BadArchive(f"{name[:80]!r}… is too long or nested too deep for a version's directory")
    return path


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in path.parts) or path.parts[0] == "__MACOSX"


def _copy(source: IO[bytes], path: Path, left: int, limits: Limits) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with path.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > left:
                raise too_large(limits)
            file.write(chunk)
    return written


def _gunzip(archive: Path, plain: Path, limits: Limits) -> None:
    most = limits.max_bytes + limits.max_files * 4 * _TAR_BLOCK_BYTES
    with gzip.open(archive) as source, plain.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            most -= len(chunk)
            if most < 0:
                raise too_large(limits)
            file.write(chunk)


def _tar_entries(archive: Path) -> Iterator[_Entry]:
    with archive.open("rb") as file, tarfile.open(fileobj=_Guarded(file), mode="r:") as tar:
        for member in tar:
            yield _Entry(member.name, _tar_mode(member), lambda member=member: _tar_file(tar, member))  # type: ignore[misc]


def _tar_mode(member: tarfile.TarInfo) -> int:
    if member.isdir():
        return stat.S_IFDIR
    is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    return stat.S_IFREG if is_plain else stat.S_IFLNK


def _tar_file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # only for what is no plain file
    return file


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with archive.open("rb") as file, zipfile.ZipFile(_Guarded(file)) as found:
        for info in found.infolist():
            if info.compress_type not in _ZIP_METHODS or info.flag_bits & _ENCRYPTED:
                raise BadArchive(
                    f"{info.filename!r} is encrypted or packed in an unusual way; use deflate, no password"
                )
            mode = stat.S_IFDIR if info.is_dir() else stat.S_IFMT(info.external_attr >> 16)
            yield _Entry(info.filename, mode, lambda info=info: found.open(info))  # type: ignore[misc]


def _directory_entries(source: Path) -> Iterator[_Entry]:
    for folder, directories, files in os.walk(source):
        directories.sort()
        for name in sorted([*directories, *files]):
            path = Path(folder, name)
            yield _Entry(str(path.relative_to(source)), path.lstat().st_mode, lambda path=path: _open_plain(path))  # type: ignore[misc]


def _open_plain(path: Path) -> IO[bytes]:
    """Not a link or a pipe that has taken the file's place since it was looked at."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise BadArchive(f"{path}: cannot be read ({exc.strerror})") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadArchive(f"{path}: is no plain file")
    return os.fdopen(descriptor, "rb")


class _Guarded(io.RawIOBase):
    """A file that gives no more at once than any honest archive asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        wanted = _MAX_READ_BYTES + 1 if size is None or size < 0 else size
        data = self._file.read(min(wanted, _MAX_READ_BYTES + 1))
        if len(data) > _MAX_READ_BYTES:
            raise ArchiveTooLarge("has headers of more than 4 MB; pack the files anew with plain names")
        return data


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except (HeadwayError, MemoryError):
        raise
    except EOFError as exc:
        raise BadArchive("ends before its end; send it again, complete") from exc
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as exc:
        raise BadArchive("has a file and a directory of one name") from exc
    except OSError as exc:
        if exc.errno is not None:
            raise  # of this machine: a full disk, for one
        raise BadArchive(f"cannot be unpacked ({_one_line(exc)}); send a tar, tar.gz or zip") from exc
    except Exception as exc:  # what damage makes of readers of formats: ValueError, struct.error, RecursionError, …
        raise BadArchive(f"cannot be unpacked ({_one_line(exc)}); send a tar, tar.gz or zip") from exc


def _head(archive: Path) -> bytes:
    with archive.open("rb") as file:
        return file.read(4)


def too_large(limits: Limits) -> ArchiveTooLarge:
    return ArchiveTooLarge(f"holds more than {limits.max_bytes} bytes once unpacked; more are not taken")


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200] or type(exc).__name__
