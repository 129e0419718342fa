"""Semantic versions, and references to a model: `name`, `name@1.2.0`, `name@canary`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache, total_ordering

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ALIAS_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
# https://semver.org (2.0.0); a bare integer is what Triton's and TensorFlow Serving's clients use.
_SEMANTIC = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?",
    re.ASCII,
)
_INTEGER = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """A version in the order of semver.org: 1.10.0 after 1.9.0, a pre-release before its release.

    `text` is the name of the directory and is what answers show; `3` sorts as 3.0.0.
    """

    text: str
    release: tuple[int, int, int]
    pre_release: tuple[tuple[bool, int, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Version:
        """Raises ValueError where `text` is neither a semantic version nor an integer."""
        if _INTEGER.fullmatch(text):
            return cls(text, (int(text), 0, 0))
        match = _SEMANTIC.fullmatch(text) if len(text) <= 64 else None
        if match is None:
            raise ValueError(f"{text!r} is not a version: write MAJOR.MINOR.PATCH, as 1.2.0, or an integer")
        major, minor, patch, pre = match.groups()
        parts = tuple(
            (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in (pre or "").split(".") if part
        )
        return cls(text, (int(major), int(minor), int(patch)), parts)

    @property
    def is_final(self) -> bool:
        return not self.pre_release

    @property
    def _key(self) -> tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...], str]:
        return (self.release, self.is_final, self.pre_release, self.text)

    def __lt__(self, other: Version) -> bool:
        return self._key < other._key

    def __str__(self) -> str:
        return self.text


def is_version(text: str) -> bool:
    try:
        Version.parse(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model a caller asks for. `tag` is an exact version, an alias, or None for the released traffic."""

    name: str
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises ValueError where `text` is not `name`, `name@version` or `name@alias`."""
        return _parse_ref(text)

    def __str__(self) -> str:
        return f"{self.name}@{self.tag}" if self.tag else self.name


# Callers name the same few again and again, which takes 4 µs each time; no good one is longer than 128 characters.
@lru_cache(maxsize=1024)
def _parse_ref(text: str) -> ModelRef:
    name, separator, tag = text.partition("@")
    tag_is_good = bool(ALIAS_NAME.fullmatch(tag)) or is_version(tag)
    if not MODEL_NAME.fullmatch(name) or (separator and not tag_is_good):
        raise ValueError("write the model as name, name@version or name@alias, as digits@1.1.0")
    return ModelRef(name, tag or None)
