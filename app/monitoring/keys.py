"""The keys that sign prediction ids: from HEADWAY_SECRET, else from a file made once for all workers of a machine.

A new key is rolled out in three steps: as `ID:SECRET:verify-only` to all replicas; without the mark and before the old
key to all; the old key is removed once the ids that it has signed are too old for feedback.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import FeedbackUnavailable

SECRET_NAME = "secret"
_VERIFY_ONLY = "verify-only"
_LARGEST_ID = 255
_LEAST_SECRET_BYTES = 16
# That of a key of BLAKE2b.
_MOST_SECRET_BYTES = 64
_LARGEST_FILE_BYTES = 64 * 1024
_SOLUTION = "set HEADWAY_SECRET to 1:SECRET, with a random secret (as of: openssl rand -hex 32)"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """`id` is 0–255 and stands in every prediction id."""

    id: int
    secret: bytes = field(repr=False)
    is_verify_only: bool = False


class SigningKeys:
    """All keys verify; `signer` is the first that is not verify-only."""

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        """Raises ValueError where two keys have one id, or no key signs."""
        self._by_id = {key.id: key for key in keys}
        if len(self._by_id) < len(keys):
            raise ValueError("two keys have the same id; ids are unique")
        signer = next((key for key in keys if not key.is_verify_only), None)
        if signer is None:
            raise ValueError("no key signs; one at least must not be verify-only")
        self.signer = signer

    @classmethod
    def parse(cls, entries: Sequence[str]) -> SigningKeys:
        """`entries` are `ID:SECRET`, or `ID:SECRET:verify-only`; secrets are texts of 16 to 64 bytes, without `:`.

        Raises ValueError, which names an entry by its place and never shows it.
        """
        return cls([_parse_key(entry, f"entry {place}") for place, entry in enumerate(entries, 1)])

    def find(self, key_id: int) -> SigningKey | None:
        return self._by_id.get(key_id)


def load_keys(settings_secret: Sequence[str], data_dir: Path) -> SigningKeys:
    """The keys of HEADWAY_SECRET; where it is empty those of `data_dir`/secret, which is made if it is not there.

    The file has one entry a line, as HEADWAY_SECRET has them. All processes that race for it end with the same keys.
    Raises FeedbackUnavailable where the setting or the file is wrong, or the file can be neither read nor made.
    """
    if settings_secret:
        try:
            return SigningKeys.parse(settings_secret)
        except ValueError as exc:
            raise FeedbackUnavailable(f"HEADWAY_SECRET: {exc}") from exc
    path = data_dir / SECRET_NAME
    try:
        return SigningKeys.parse(_read_or_make(path))
    except OSError as exc:
        raise FeedbackUnavailable(
            f"{path}: can be neither read nor made ({exc.strerror}); {_SOLUTION}, or HEADWAY_DATA_DIR to a directory "
            "that can be written"
        ) from exc
    except ValueError as exc:
        raise FeedbackUnavailable(
            f"{path}: is damaged: {exc}; bring it back from a backup, or remove it and restart: a new one is made, and "
            "feedback on earlier answers is refused"
        ) from exc


def _parse_key(entry: str, where: str) -> SigningKey:
    key_id, *rest = entry.split(":")
    if len(rest) not in (1, 2):
        raise ValueError(f"{where}: write ID:SECRET, as 1:9f86d0818884…, or ID:SECRET:{_VERIFY_ONLY}")
    if not (key_id.isascii() and key_id.isdigit() and len(key_id) <= 3 and int(key_id) <= _LARGEST_ID):
        raise ValueError(f"{where}: the id before the colon must be a whole number from 0 to {_LARGEST_ID}")
    if rest[1:] not in ([], [_VERIFY_ONLY]):
        raise ValueError(f"{where}: after the secret only :{_VERIFY_ONLY} may stand; a secret has no colon")
    secret = rest[0].encode()
    if len(secret) < _LEAST_SECRET_BYTES:
        raise ValueError(f"{where}: the secret has {len(secret)} bytes; it must have {_LEAST_SECRET_BYTES} at least")
    if len(secret) > _MOST_SECRET_BYTES:
        raise ValueError(f"{where}: the secret has {len(secret)} bytes; it must have {_MOST_SECRET_BYTES} at most")
    return SigningKey(int(key_id), secret, is_verify_only=len(rest) == 2)


def _read_or_make(path: Path) -> list[str]:
    try:
        return _read(path)
    except FileNotFoundError:
        _make(path)
        return _read(path)


def _read(path: Path) -> list[str]:
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for who writes into it
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE_BYTES + 1)
    if len(content) > _LARGEST_FILE_BYTES:
        raise ValueError(f"it has more than {_LARGEST_FILE_BYTES} bytes")
    if not content.endswith(b"\n"):
        raise ValueError("it is empty or cut short: its last line does not end")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as exc:
        raise ValueError("it is not text") from exc
    return [line.strip() for line in lines if line.strip()]


def _make(path: Path) -> None:
    """A secret of 32 random bytes under a name that shows it whole or not at all; who comes second changes nothing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{SECRET_NAME}-", dir=path.parent)  # mode 0600
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"0:{secrets.token_hex(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make the names in `directory` last, where the system can (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
