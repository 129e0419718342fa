"""release.yaml as bytes, for people to read and change; and its replacement on the disk, whole or not at all."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from app.registry.releases.release import AliasEntry, Analysis, Changed, HistoryEntry, Release

_NEW_NAME = ".release.yaml.new"
_MAP, _SEQ = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


class FileCalls:
    """The system calls of a replacement. Tests stand in for it, to end the process after any one of them."""

    open = staticmethod(os.open)
    write = staticmethod(os.write)
    chmod = staticmethod(getattr(os, "fchmod", os.chmod))  # Windows has only the latter
    fsync = staticmethod(os.fsync)
    close = staticmethod(os.close)
    replace = staticmethod(os.replace)
    unlink = staticmethod(os.unlink)


def replace_release(path: Path, data: bytes, calls: FileCalls) -> None:
    """Write `data` beside `path`, then let it take its place; after that it survives a power cut.

    Only by who holds the model's lock: what a writer that was killed has left behind is written over. Raises OSError.
    """
    new = path.with_name(_NEW_NAME)
    try:
        with _descriptor(calls, new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW) as descriptor:
            _keep_mode(path, descriptor, calls)
            rest = memoryview(data)
            while rest:
                rest = rest[calls.write(descriptor, rest) :]
            calls.fsync(descriptor)
        calls.replace(new, path)
    except BaseException:
        with suppress(OSError):
            calls.unlink(new)
        raise
    with _descriptor(calls, path.parent, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        calls.fsync(descriptor)


@contextmanager
def _descriptor(calls: FileCalls, path: Path, flags: int) -> Iterator[int]:
    descriptor = calls.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        calls.close(descriptor)


def _keep_mode(path: Path, descriptor: int, calls: FileCalls) -> None:
    with suppress(FileNotFoundError):
        calls.chmod(descriptor, stat.S_IMODE(os.stat(path).st_mode))


def render_release(release: Release) -> bytes:
    """In the key order of the documentation; what has its default is left out. Aliases take one line each."""
    content: dict[str, Any] = {"schema": release.schema_, "revision": release.revision}
    content["aliases"] = _aliases(release.aliases)
    if release.shadow is not None:
        content["shadow"] = _Flow(version=release.shadow.version, share=_number(release.shadow.share))
    if release.also_serve:
        content["also_serve"] = _FlowList(release.also_serve)
    if release.load != "eager":
        content["load"] = release.load
    if release.analysis is not None:
        content["analysis"] = _analysis(release.analysis)
    if release.changed is not None:
        content["changed"] = _authorship(release.changed)
    if release.history:
        content["history"] = [
            {"revision": entry.revision, "aliases": _aliases(entry.aliases), **_authorship(entry)}
            for entry in release.history
        ]
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return text.encode()


class _Flow(dict[str, Any]):
    """A mapping in one line, in braces."""


class _FlowList(list[Any]):
    """A list in one line, in brackets."""


def _aliases(aliases: dict[str, AliasEntry]) -> dict[str, _Flow]:
    return {
        alias: _Flow(version=entry.version)
        if entry.weight is None
        else _Flow(version=entry.version, weight=_number(entry.weight))
        for alias, entry in aliases.items()
    }


def _analysis(analysis: Analysis) -> dict[str, Any]:
    """As it was written: what was left out may get another default."""
    written = analysis.model_dump(exclude_unset=True)
    return {key: _number(value) if isinstance(value, float) else value for key, value in written.items()}


def _authorship(entry: Changed | HistoryEntry) -> dict[str, Any]:
    found = {"at": _time(entry.at), "by": entry.by, "why": entry.why, "restores": entry.restores}
    return {key: value for key, value in found.items() if value is not None}


def _time(at: datetime.datetime | None) -> str | None:
    if at is None:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)
    return at.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else value


class _Dumper(yaml.SafeDumper):
    """Without anchors, which are refused when read."""

    # Without that of dates, which would put every time in quotes.
    yaml_implicit_resolvers = {  # noqa: RUF012 - the base's own form
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Entries of a list stand further in than its key."""
        super().increase_indent(flow, False)


_Dumper.add_representer(_Flow, lambda dumper, data: dumper.represent_mapping(_MAP, data, flow_style=True))
_Dumper.add_representer(_FlowList, lambda dumper, data: dumper.represent_sequence(_SEQ, data, flow_style=True))
