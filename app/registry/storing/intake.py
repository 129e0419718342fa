"""The one door for versions: how they come into the registry directory, and how they leave it.

A version is received into a place that no reader looks at, tried in a process of its own, and published with one
rename. A published version never changes. A removed one waits in the bin. Which version gets traffic is another matter:
release.yaml.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ParamSpec, Self, TypeVar

from app.errors import BadArchive, RegistryError, VersionRefused, VersionTooSmall
from app.registry.drafting.difference import Bump, Content, base_of, bump_between, bumped, compare, needed_bump
from app.registry.manifest import Manifest, read_manifest
from app.registry.store import Store, verify_files
from app.registry.storing.archive import CHUNK_BYTES, ArchiveKind, Limits, copy_directory, too_large, unpack
from app.registry.storing.locking import writing
from app.registry.storing.placement import is_published, mend, place, share_files
from app.registry.storing.recycle_bin import BIN_DAYS, RecycleBin
from app.registry.storing.staging import Staging, sweep_staging
from app.registry.storing.trial import Trial, run_trial
from app.registry.versions import Version
from app.registry.yaml import read_yaml

_UPLOAD, _UNPACKED = "upload", "unpacked"

_P = ParamSpec("_P")
_T = TypeVar("_T")


def is_verified(manifest: Manifest) -> bool:
    """Whether golden requests hold the version to its answers; without them it may serve, but is not promoted."""
    return manifest.golden is not None


class Staged:
    """A version that waits in `directory`, `<staging>/<name>/<version>`. Published or discarded; `with` discards."""

    def __init__(self, staging: Staging, directory: Path, manifest: Manifest) -> None:
        self.staging = staging
        self.directory = directory
        self.manifest = manifest

    def discard(self) -> None:
        self.staging.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.discard()


@dataclass(frozen=True, slots=True)
class Published:
    """`is_new` is False where the same version was there already."""

    name: str
    version: str
    is_new: bool
    is_verified: bool


class Intake:
    """Changes what versions a registry has. All methods may be called from several threads and processes at once.

    They raise RegistryReadOnly (409), RegistryFull (507) and RegistryBusy (503) besides what each names; after any of
    them, and after a kill at any point, readers see what they saw before.
    """

    def __init__(self, store: Store, *, bin_days: float = BIN_DAYS, trial: Trial = run_trial) -> None:
        """`trial` raises VersionRefused for a version that could not serve."""
        self.store = store
        self.bin = RecycleBin(store, bin_days)
        self._root = store.root
        self._trial = trial

    def receive(self, stream: IO[bytes], kind: ArchiveKind | None, limits: Limits) -> Staged:
        """An archive of one version directory; `kind` None: its first bytes tell.

        Raises BadArchive, ArchiveTooLarge, VersionRefused.
        """
        with self._staging() as staging, (staging.path / _UPLOAD).open("xb") as file:
            left = limits.max_bytes
            while chunk := stream.read(CHUNK_BYTES):
                left = _take(file, chunk, left, limits)
            file.flush()
            return self._unpack(staging, kind, limits)

    async def receive_chunks(self, chunks: AsyncIterator[bytes], kind: ArchiveKind | None, limits: Limits) -> Staged:
        """As `receive`, for a body as it comes in; other threads write the disk."""
        staging = await _in_thread(Staging, self._root)
        try:
            with writing(self._root), (staging.path / _UPLOAD).open("xb", buffering=0) as file:
                left, waiting = limits.max_bytes, bytearray()
                async for chunk in chunks:
                    waiting += chunk
                    if len(waiting) >= CHUNK_BYTES:
                        left = await _in_thread(_take, file, bytes(waiting), left, limits)
                        waiting.clear()
                await _in_thread(_take, file, bytes(waiting), left, limits)
                return await _in_thread(self._unpack, staging, kind, limits)
        except BaseException:
            await _in_thread(staging.discard)
            raise

    def copy_in(self, directory: Path, limits: Limits) -> Staged:
        """A version directory of this machine, wherever it lies. Raises as `receive`."""
        if not directory.is_dir():
            raise BadArchive(f"{directory}: there is no such directory on this machine")
        with self._staging() as staging:
            copy_directory(directory, staging.path / _UNPACKED, limits)
            return self._stage(staging)

    def build(self, name: str, version: str, write: Callable[[Path], None]) -> Staged:
        """A version whose files `write` makes in the directory that it is given. Raises as `receive` and `write` do."""
        with self._staging() as staging:
            directory = staging.path / name / version
            directory.mkdir(parents=True)
            write(directory)
            with _refusing(directory):
                return Staged(staging, directory, read_manifest(directory))

    def publish(self, staged: Staged, *, any_step: bool = False) -> Published:
        """Try the version, and let readers see it. The same version a second time is no error.

        Raises VersionRefused where it could not serve, VersionExists where another of its number is published, and
        VersionTooSmall where it differs from the one before by more than its number says (unless `any_step`).
        """
        manifest, directory = staged.manifest, staged.directory
        with staged, writing(self._root):
            is_new = not is_published(self.store, manifest)
            if is_new:
                if not any_step:
                    self._check_step(staged)
                self._trial(self.store, directory)
                share_files(self.store, directory, manifest)
                is_new = place(self.store, directory, manifest)
            else:
                with _refusing(directory):
                    mend(self.store, directory, manifest)
        return Published(manifest.name, manifest.version, is_new, is_verified(manifest))

    def remove(self, name: str, version: str, *, force: bool = False) -> None:
        """As `RecycleBin.remove`."""
        self.bin.remove(name, version, force=force)

    def undelete(self, name: str, version: str) -> None:
        """As `RecycleBin.undelete`."""
        self.bin.undelete(name, version)

    def sweep(self, now: float) -> int:
        """Remove what killed processes left, and what was in the bin for its time; returns how many.

        For the start of a process that may write; a registry that is read-only is left alone.
        """
        return sweep_staging(self._root, now) + self.bin.sweep(now)

    def _unpack(self, staging: Staging, kind: ArchiveKind | None, limits: Limits) -> Staged:
        unpack(staging.path / _UPLOAD, staging.path / _UNPACKED, limits, kind)
        (staging.path / _UPLOAD).unlink()
        return self._stage(staging)

    def _stage(self, staging: Staging) -> Staged:
        """Find the one version among what was written, and give its directory the name that it will have."""
        found = _version_directory(staging.path / _UNPACKED)
        with _refusing(found):
            manifest = read_yaml(found / "model.yaml", Manifest)
        directory = staging.path / manifest.name / manifest.version
        directory.parent.mkdir()
        os.rename(found, directory)
        return Staged(staging, directory, manifest)

    def _check_step(self, staged: Staged) -> None:
        new = Version.parse(staged.manifest.version)
        base = base_of(new, self.store.version_names(staged.manifest.name))
        found = self.store.version(staged.manifest.name, base) if base is not None else None
        if base is None or found is None or found.manifest is None:
            return
        with _refusing(staged.directory):
            changes = compare(Content.read(found.path, found.manifest), Content.read(staged.directory, staged.manifest))
        said = bump_between(base, new)
        if needed_bump(changes) is Bump.MAJOR and said is not Bump.MAJOR:
            with _refusing(staged.directory):  # a file that was damaged on its way differs, too
                verify_files(staged.directory, staged.manifest.files)
            breaking = [str(change) for change in changes if change.bump is Bump.MAJOR]
            shown = "; ".join(breaking[:3]) + (f" and {len(breaking) - 3} more" if len(breaking) > 3 else "")
            raise VersionTooSmall(
                f"{new} is a {said} step from {base}, but callers notice what differs ({shown}): "
                f"this is a major step, {bumped(base, Bump.MAJOR)}"
            )

    @contextmanager
    def _staging(self) -> Iterator[Staging]:
        """A place that is left to the Staged made of it, and discarded if none is made."""
        staging = Staging(self._root)
        try:
            with writing(self._root):
                yield staging
        except BaseException:
            staging.discard()
            raise


def _take(file: IO[bytes], chunk: bytes, left: int, limits: Limits) -> int:
    left -= len(chunk)
    if left < 0:
        raise too_large(limits)
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
    return left


def _version_directory(unpacked: Path) -> Path:
    manifests = sorted(unpacked.rglob("model.yaml"))
    if not manifests:
        raise BadArchive("holds no model.yaml; send one version's directory")
    if len(manifests) > 1:
        names = ", ".join(str(path.relative_to(unpacked)) for path in manifests[:3])
        raise BadArchive(f"holds {len(manifests)} versions ({names}); send one at a time")
    directory = manifests[0].parent
    for path in unpacked.rglob("*"):
        if path.is_file() and not path.is_relative_to(directory):
            raise BadArchive(f"holds {str(path.relative_to(unpacked))!r} beside the version's directory; leave it out")
    return directory


@contextmanager
def _refusing(directory: Path) -> Iterator[None]:
    """What is wrong with a version's own files is the sender's to mend; he knows nothing of where they lie now."""
    try:
        yield
    except RegistryError as exc:
        raise VersionRefused(str(exc).replace(f"{directory}/", "")) from exc


async def _in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run in another thread; a caller who is cancelled still waits for it, since it works on what is then removed."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
