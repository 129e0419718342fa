"""Changes of release.yaml on the disk: what they are held against, what they leave, and who may make them."""

from __future__ import annotations

import datetime
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from app.errors import (
    HeadwayError,
    InvalidRelease,
    ModelNotFound,
    RegistryError,
    RegistryFull,
    RegistryReadOnly,
    ReleaseConflict,
    VersionInUse,
    VersionNotFound,
    VersionUnverified,
)
from app.registry.releases.changes import AlsoServe, Change, Drop, Promote, Replace, Rollback, SetAlias, SetShadow
from app.registry.releases.editor import IMPLICIT, Note, ReleaseEditor
from app.registry.releases.release import HISTORY_LENGTH, AliasEntry, Release
from app.registry.releases.release_file import FileCalls, render_release
from app.registry.store import Store, digest_of
from tests.fixtures_models import GOLDEN, write_composition, write_model, write_release
from tests.running import ROOT

PATIENCE_SECONDS = 120.0
AT = datetime.datetime(2026, 11, 21, 10, 0, 0, 123456, tzinfo=datetime.UTC)


def _write(root: Path, *versions: str, golden: bool = True) -> None:
    for version in versions:
        write_model(root, "m", version, **(GOLDEN if golden else {}))


@pytest.fixture
def editor(root: Path) -> ReleaseEditor:
    """Versions 1.0.0 and 2.0.0; the first is released in revision 1."""
    _write(root, "1.0.0", "2.0.0")
    write_release(root, "m", "1.0.0", revision=1)
    return ReleaseEditor(Store(root))


def _yaml(root: Path) -> str:
    return (root / "m" / "release.yaml").read_text()


def test_change_is_written_for_people(editor: ReleaseEditor, root: Path) -> None:
    editor.change("m", SetAlias("canary", "2.0.0", 5), Note("ann", "try\nit", AT))
    changed = editor.change("m", SetShadow("2.0.0", 12.5), Note("bob", None, AT))
    assert _yaml(root) == (
        "schema: 1\n"
        "revision: 3\n"
        "aliases:\n"
        "  stable: {version: 1.0.0}\n"
        "  canary: {version: 2.0.0, weight: 5}\n"
        "shadow: {version: 2.0.0, share: 12.5}\n"
        "changed:\n"
        "  at: 2026-11-21T10:00:00Z\n"
        "  by: bob\n"
        "  why: shadow 2.0.0 at 12.5 %\n"
        "history:\n"
        "  - revision: 2\n"
        "    aliases:\n"
        "      stable: {version: 1.0.0}\n"
        "      canary: {version: 2.0.0, weight: 5}\n"
        "    at: 2026-11-21T10:00:00Z\n"
        "    by: ann\n"
        "    why: try it\n"
        "  - revision: 1\n"
        "    aliases:\n"
        "      stable: {version: 1.0.0}\n"
    )
    assert changed.digest == digest_of((root / "m" / "release.yaml").read_bytes())
    assert changed == editor.read("m")


def test_what_is_written_is_read_again(root: Path) -> None:
    odd = [
        "no",
        "null",
        "~",
        "",
        "1.10",
        "2026-11-21",
        "a: b",
        "#",
        "- x",
        "{",
        "é \U0001f600",
        "'",
        '"',
        "0x1f",
        "=",
        "<<",
    ]
    for word in odd:
        release = Release.model_validate(
            {
                "aliases": {"stable": {"version": "3"}, "no": {"version": "1.10.0+1", "weight": 1e-7}},
                "also_serve": ["4", "1.0.0-rc.1"],
                "load": "pinned",
                "changed": {"at": AT.replace(microsecond=0), "by": word, "why": word, "restores": 1},
                "history": [{"revision": 0, "aliases": {"stable": {"version": "2"}}, "by": word}],
            }
        )
        assert Store(root).parse_release("m", render_release(release)) == release


def test_change_keeps_the_rights_of_the_file(editor: ReleaseEditor, root: Path) -> None:
    path = root / "m" / "release.yaml"
    path.chmod(0o640)
    editor.change("m", Promote("2.0.0"))
    assert path.stat().st_mode & 0o777 == 0o640


def test_history_is_cut(editor: ReleaseEditor) -> None:
    for number in range(HISTORY_LENGTH + 3):
        release = editor.change("m", SetAlias("canary", "2.0.0", number)).release
    assert release is not None
    assert [entry.revision for entry in release.history] == list(range(23, 3, -1))


def test_change_that_changes_nothing_makes_no_revision(editor: ReleaseEditor, root: Path) -> None:
    before = _yaml(root)
    current = editor.change("m", Promote("1.0.0"))
    assert current == editor.read("m")
    assert _yaml(root) == before


def test_change_of_what_the_caller_did_not_see_is_refused(editor: ReleaseEditor, root: Path) -> None:
    seen = editor.read("m").digest
    editor.change("m", Promote("2.0.0"), Note("bob"), seen=seen)
    before = _yaml(root)
    with pytest.raises(ReleaseConflict, match="at revision 2, by bob: promote 2"):
        editor.change("m", Rollback(), seen=seen)
    assert _yaml(root) == before


def test_edit_by_hand_is_seen(editor: ReleaseEditor, root: Path) -> None:
    """Also where the revision was forgotten."""
    seen = editor.read("m").digest
    write_release(root, "m", "2.0.0", revision=1)
    with pytest.raises(ReleaseConflict):
        editor.change("m", SetAlias("canary", "2.0.0"), seen=seen)
    release = editor.change("m", Promote("1.0.0")).release
    assert release is not None
    assert (release.revision, release.history[0].aliases["stable"].version) == (2, "2.0.0")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (Promote("9.0.0"), VersionNotFound, r"no version 9\.0\.0 in .*; it has 1\.0\.0, 2\.0\.0"),
        (SetAlias("canary", "9.0.0", 5), VersionNotFound, "no version"),
        (SetShadow("9.0.0", 5), VersionNotFound, "no version"),
        (SetAlias("canary", "2.0.0", 101), InvalidRelease, "weight"),
        (Drop("canary"), InvalidRelease, "no 'canary' to drop"),
    ],
)
def test_refused_change_leaves_the_file(
    editor: ReleaseEditor, root: Path, change: Any, error: type[HeadwayError], message: str
) -> None:
    before = _yaml(root)
    with pytest.raises(error, match=message):
        editor.change("m", change)
    assert _yaml(root) == before


def test_version_that_cannot_be_read_is_not_released(editor: ReleaseEditor, root: Path) -> None:
    (root / "m" / "2.0.0" / "model.yaml").write_text("shema: 1\n")
    with pytest.raises(VersionNotFound, match=r"m@2\.0\.0 cannot be released: .*shema: unknown key"):
        editor.change("m", Promote("2.0.0"))


def test_version_that_is_gone_does_not_hold_up_other_changes(editor: ReleaseEditor, root: Path) -> None:
    write_release(root, "m", "1.0.0", aliases={"old": {"version": "0.1.0"}})
    editor.change("m", SetAlias("canary", "2.0.0", 5))
    with pytest.raises(VersionNotFound):
        editor.change("m", SetAlias("older", "old"))


def test_version_without_golden_requests_becomes_stable_only_if_told(editor: ReleaseEditor, root: Path) -> None:
    _write(root, "3.0.0", golden=False)
    editor.change("m", SetAlias("canary", "3.0.0", 50))
    for change in (Promote("canary"), SetAlias("stable", "3.0.0")):
        with pytest.raises(VersionUnverified, match=r"m@3\.0\.0 has no golden requests"):
            editor.change("m", change)
    editor.change("m", Promote("canary"), unverified=True)
    # It was stable: it may be again.
    editor.change("m", Promote("2.0.0"))
    release = editor.change("m", Rollback()).release
    assert release is not None
    assert release.aliases["stable"].version == "3.0.0"


@pytest.fixture
def with_steps(editor: ReleaseEditor, root: Path) -> ReleaseEditor:
    """`both` is served, and names version 1.0.0 of m and its alias canary."""
    editor.change("m", SetAlias("canary", "2.0.0"))
    write_composition(root, "both", "average", ("m@1.0.0", "m@canary"))
    return editor


def test_what_a_composition_names_stays_served(with_steps: ReleaseEditor) -> None:
    promoted = with_steps.change("m", SetAlias("stable", "2.0.0")).release
    assert promoted is not None
    assert promoted.changed is not None
    assert promoted.versions == ("2.0.0", "1.0.0")
    assert promoted.also_serve == ("1.0.0",)
    assert promoted.changed.why == "stable is 2.0.0; 1.0.0 stays as a step of both@1.0.0"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (Drop("1.0.0"), "1.0.0"),
        (Drop("canary"), "canary"),
        (Rollback(to=1), "canary"),
        (Promote("canary"), "canary"),
        (Replace({"stable": AliasEntry(version="2.0.0"), "canary": AliasEntry(version="2.0.0")}), "1.0.0"),
    ],
)
def test_what_a_composition_names_is_not_taken_away(with_steps: ReleaseEditor, change: Change, name: str) -> None:
    with_steps.change("m", AlsoServe("1.0.0"))
    if not isinstance(change, Promote):
        with_steps.change("m", SetAlias("stable", "2.0.0"))
    with pytest.raises(VersionInUse, match=rf"m@{name} is a step of both@1\.0\.0, which is served"):
        with_steps.change("m", change)


def test_steps_of_what_is_not_served_are_free(with_steps: ReleaseEditor, root: Path) -> None:
    write_composition(root, "both", "average", ("m", "m@stable"), "2.0.0")
    with_steps.change("both", Promote("2.0.0"), unverified=True)
    with_steps.change("m", Drop("canary"))


def test_unknown_model(editor: ReleaseEditor, root: Path) -> None:
    with pytest.raises(ModelNotFound, match="it has m"):
        editor.change("other", Promote("1.0.0"))
    assert not (root / "other").exists()


def test_release_that_is_wrong_is_told_and_left(editor: ReleaseEditor, root: Path) -> None:
    (root / "m" / "release.yaml").write_text("aliases: {stable: {version: 1.0.0}}\nwhat: 1\n")
    with pytest.raises(RegistryError, match="what: unknown key"):
        editor.change("m", Promote("2.0.0"))


def test_releases_in_a_directory_of_their_own(root: Path, tmp_path: Path) -> None:
    _write(root, "1.0.0", "2.0.0")
    before = sorted(path.name for path in (root / "m").iterdir())
    editor = ReleaseEditor(Store(root, tmp_path / "releases"))
    with pytest.raises(RegistryError, match=r"releases/m/release\.yaml: cannot be changed"):
        editor.change("m", SetAlias("canary", "2.0.0", 5))  # a mount that is not there is not made up for
    (tmp_path / "releases").mkdir()
    editor.change("m", SetAlias("canary", "2.0.0", 5))
    assert (tmp_path / "releases" / "m" / "release.yaml").exists()
    assert sorted(path.name for path in (root / "m").iterdir()) == before


# --- where there is no release.yaml


def test_first_release_keeps_what_served(root: Path) -> None:
    """The version that is named came later; the other one serves."""
    _write(root, "1.0.0", "2.0.0")
    editor = ReleaseEditor(Store(root))
    assert editor.read("m").digest == IMPLICIT
    current = editor.change("m", SetAlias("canary", "2.0.0", 5), seen=IMPLICIT)
    assert current.release is not None
    assert current.is_explicit
    assert {alias: entry.version for alias, entry in current.release.aliases.items()} == {
        "stable": "1.0.0",
        "canary": "2.0.0",
    }
    with pytest.raises(ReleaseConflict):
        editor.change("m", Promote("2.0.0"), seen=IMPLICIT)


def test_first_release_is_not_guessed_where_two_versions_may_serve(root: Path) -> None:
    _write(root, "1.0.0", "2.0.0", "3.0.0")
    editor = ReleaseEditor(Store(root))
    with pytest.raises(InvalidRelease, match=r"which of 1\.0\.0, 2\.0\.0 serves .*: headway release promote m@2\.0\.0"):
        editor.change("m", SetAlias("canary", "3.0.0", 5))
    editor.change("m", Promote("1.0.0"))
    editor.change("m", SetAlias("canary", "3.0.0", 5))


def test_first_release_of_the_only_version(root: Path) -> None:
    _write(root, "1.0.0-rc.1")
    editor = ReleaseEditor(Store(root))
    assert editor.read("m").release is None
    release = editor.change("m", Promote("1.0.0-rc.1")).release
    assert release is not None
    assert (release.revision, release.versions) == (1, ("1.0.0-rc.1",))
    (root / "empty").mkdir()
    with pytest.raises(InvalidRelease, match="no version that could be released"):
        editor.change("empty", Rollback())


# --- at the same time, and at the worst time


def test_two_processes_that_race_lose_nothing(editor: ReleaseEditor, root: Path) -> None:
    count = 200
    command = [sys.executable, "-m", "tests.registry.changing", "race", str(root)]
    processes = [
        subprocess.Popen([*command, name, str(count)], cwd=ROOT, stdout=subprocess.PIPE) for name in ("left", "right")
    ]
    outcomes = [json.loads(process.communicate(timeout=PATIENCE_SECONDS)[0]) for process in processes]
    revisions = [revision for outcome in outcomes for revision in outcome["revisions"]]
    assert sorted(revisions) == list(range(2, 2 * count + 2))
    assert sum(outcome["conflicts"] for outcome in outcomes) > 0
    release = editor.read("m").release
    assert release is not None
    assert release.revision == 2 * count + 1
    assert {alias: entry.weight for alias, entry in release.aliases.items()} == {
        "stable": None,
        "left": 40,
        "right": 40,
    }


def test_threads_of_one_process_lose_nothing(editor: ReleaseEditor) -> None:
    def work(name: str) -> None:
        for number in range(25):
            editor.change("m", SetAlias(name, "1.0.0", number / 10 + 0.1))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    release = editor.read("m").release
    assert release is not None
    assert release.revision == 101


def test_process_killed_after_any_call_leaves_the_old_or_the_new(editor: ReleaseEditor, root: Path) -> None:
    del editor
    old = _yaml(root)
    command = [sys.executable, "-m", "tests.registry.changing", "crash", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_SECONDS, check=True)
    outcomes = json.loads(done.stdout)
    states = []
    for outcome in outcomes:
        release = Store(root).parse_release("m", outcome["left"].encode())  # whole, whichever it is
        states.append(release.aliases["stable"].version)
        assert outcome["left"] == old if states[-1] == "1.0.0" else release.revision == 2
        assert outcome["next_revision"] == release.revision + 1
    # Before the first call, then after each of: open, chmod, some writes, fsync, close, replace, open, fsync, close.
    assert [outcome["was_killed"] for outcome in outcomes] == [True] * (len(outcomes) - 1) + [False]
    assert len(outcomes) > 10
    assert states == sorted(states)
    assert states.count("2.0.0") == 5
    assert not list((root / "m").glob("*.new"))


class FailingCalls(FileCalls):
    """A disk on which one call fails."""

    def __init__(self, name: str, code: int) -> None:
        def fail(*_: Any) -> Any:
            raise OSError(code, os.strerror(code))

        setattr(self, name, fail)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.EROFS, RegistryReadOnly), (errno.ENOSPC, RegistryFull), (errno.EIO, RegistryError)],
    ids=["read-only", "full", "broken"],
)
def test_disk_that_fails_is_told_and_leaves_the_file(
    root: Path, editor: ReleaseEditor, call: str, code: int, error: type[HeadwayError]
) -> None:
    before = _yaml(root)
    with pytest.raises(error, match=str(root)):
        ReleaseEditor(Store(root), FailingCalls(call, code)).change("m", Promote("2.0.0"))
    assert _yaml(root) == before
    assert not list((root / "m").glob("*.new"))
    editor.change("m", Promote("2.0.0"))


def test_read_only_registry_names_the_other_way(editor: ReleaseEditor, root: Path) -> None:
    del editor
    with pytest.raises(RegistryReadOnly, match=r"m/release\.yaml is edited and committed"):
        ReleaseEditor(Store(root), FailingCalls("open", errno.EROFS)).change("m", Promote("2.0.0"))


def test_release_that_is_a_link_belongs_to_others(editor: ReleaseEditor, root: Path, tmp_path: Path) -> None:
    path = root / "m" / "release.yaml"
    path.rename(tmp_path / "elsewhere.yaml")
    path.symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(RegistryReadOnly, match="symbolic link"):
        editor.change("m", Promote("2.0.0"))


@pytest.mark.parametrize(("note", "message"), [(Note("x" * 101), "by has 101"), (Note("x", "y" * 501), "why has 501")])
def test_note_that_is_too_long(editor: ReleaseEditor, note: Note, message: str) -> None:
    with pytest.raises(InvalidRelease, match=message):
        editor.change("m", Promote("2.0.0"), note)
