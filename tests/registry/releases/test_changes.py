"""What each change makes of a release; and random histories against a simple model of them, on the disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import InvalidRelease, VersionNotFound
from app.registry.releases.changes import (
    AlsoServe,
    Change,
    Drop,
    Promote,
    Replace,
    Rollback,
    SetAlias,
    SetAnalysis,
    SetLoad,
    SetShadow,
)
from app.registry.releases.editor import Note, ReleaseEditor
from app.registry.releases.release import HISTORY_LENGTH, STABLE, AliasEntry, Analysis, Release
from app.registry.releases.release_file import FileCalls
from app.registry.store import Store
from tests.fixtures_models import write_model, write_release


def _release(stable: str = "1.0.0", **sections: Any) -> Release:
    aliases = {"stable": {"version": stable}, **sections.pop("aliases", {})}
    return Release.model_validate({"schema": 1, "aliases": aliases, **sections})


def _versions(release: Release) -> dict[str, str]:
    return {alias: entry.version for alias, entry in release.aliases.items()}


CANARY = {"canary": {"version": "2.0.0", "weight": 5}}


def test_set_alias_adds_and_moves() -> None:
    draft = SetAlias("canary", "2.0.0", 5).apply(_release())
    assert draft.release.aliases["canary"] == AliasEntry(version="2.0.0", weight=5)
    assert draft.why == "canary is 2.0.0 at 5 %"
    moved = SetAlias("canary", "3.0.0").apply(draft.release).release
    assert moved.aliases["canary"] == AliasEntry(version="3.0.0", weight=None)


def test_set_alias_keeps_the_order_which_the_weights_depend_on() -> None:
    release = _release(aliases={"a": {"version": "2", "weight": 5}, "b": {"version": "3", "weight": 5}})
    assert list(SetAlias("a", "4", 50).apply(release).release.aliases) == ["stable", "a", "b"]


def test_an_alias_stands_for_its_version() -> None:
    release = _release(aliases=CANARY)
    assert SetAlias("beta", "canary").apply(release).release.aliases["beta"].version == "2.0.0"
    assert SetShadow("canary", 10).apply(release).release.versions == ("1.0.0", "2.0.0")
    with pytest.raises(VersionNotFound, match="no alias 'newest'; it has stable, canary"):
        Promote("newest").apply(release)


def test_promote_ends_the_canary_and_the_shadow_of_that_version() -> None:
    release = _release(aliases=CANARY, shadow={"version": "2.0.0", "share": 10})
    promoted = Promote("canary").apply(release).release
    assert _versions(promoted) == {"stable": "2.0.0"}
    assert promoted.shadow is None


def test_promote_leaves_what_names_other_versions() -> None:
    release = _release(aliases=CANARY, shadow={"version": "2.0.0", "share": 10}, also_serve=["1.0.0"])
    promoted = Promote("3.0.0").apply(release).release
    assert _versions(promoted) == {"stable": "3.0.0", "canary": "2.0.0"}
    assert promoted.versions == ("3.0.0", "2.0.0", "1.0.0")


def test_drop_takes_out_each_kind() -> None:
    release = _release(aliases=CANARY, shadow={"version": "3.0.0", "share": 10}, also_serve=["0.9.0", "0.8.0"])
    assert "canary" not in Drop("canary").apply(release).release.aliases
    assert Drop("shadow").apply(release).release.shadow is None
    assert Drop("0.9.0").apply(release).release.also_serve == ("0.8.0",)
    with pytest.raises(InvalidRelease, match="stable cannot be dropped"):
        Drop("stable").apply(release)
    with pytest.raises(InvalidRelease, match=r"no 'beta' to drop; the release has stable, canary, shadow, 0\.9\.0"):
        Drop("beta").apply(release)


def test_also_serve_names_a_version_once() -> None:
    release = AlsoServe("0.9.0").apply(_release()).release
    assert AlsoServe("0.9.0").apply(release).release.also_serve == ("0.9.0",)


def test_load_and_analysis_change_nothing_else() -> None:
    release = _release(aliases=CANARY)
    lazy = SetLoad("lazy").apply(release)
    assert (lazy.release, lazy.why) == (release.model_copy(update={"load": "lazy"}), "load lazy")
    first = SetAnalysis({"errors_margin": 0.02}).apply(release)
    assert first.why == "judge canaries by errors_margin 0.02"
    second = SetAnalysis({"rollback": False}).apply(first.release)
    assert second.release.analysis == Analysis(errors_margin=0.02, rollback=False)
    assert second.release.aliases == release.aliases


def test_replace_sets_everything_but_the_history() -> None:
    release = _release(aliases=CANARY, history=[{"revision": 1, "aliases": CANARY}])
    wanted = Replace({"stable": AliasEntry(version="2.0.0")}, also_serve=("1.0.0",), load="lazy")
    replaced = wanted.apply(release).release
    assert (_versions(replaced), replaced.also_serve, replaced.load) == ({"stable": "2.0.0"}, ("1.0.0",), "lazy")
    assert replaced.history == release.history


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (SetAlias("canary", "2.0.0", 101), "less than or equal to 100"),
        (SetAlias("beta", "2.0.0", 96), "more than 100"),
        (SetAlias("2.0.0", "2.0.0"), "is not an alias"),
        (SetAlias("shadow", "2.0.0"), "'shadow' is not an alias"),
        (SetAlias("stable", "2.0.0", 5), "takes no weight"),
        (SetShadow("2.0.0", 0), "greater than 0"),
        (Replace({"canary": AliasEntry(version="1.0.0")}), "stable is missing"),
        (Rollback(), "no revision with another stable version before this one to roll back to; kept are none"),
        (Rollback(7), "no revision 7 to roll back to; kept are none"),
    ],
)
def test_change_that_leaves_no_release_is_refused(change: Change, message: str) -> None:
    with pytest.raises(InvalidRelease, match=message):
        change.apply(_release(aliases=CANARY))


# --- on the disk


@pytest.fixture
def editor(root: Path) -> ReleaseEditor:
    """A model with versions 1.0.0 to 4.0.0, of which 1.0.0 is released."""
    for number in range(1, 5):
        write_model(root, "m", f"{number}.0.0")
    write_release(root, "m", "1.0.0", revision=1)
    return ReleaseEditor(Store(root))


def _do(editor: ReleaseEditor, *changes: Change) -> Release:
    for change in changes:
        release = editor.change("m", change, Note("ann"), unverified=True).release
    assert release is not None
    return release


def test_rollback_goes_further_back_each_time(editor: ReleaseEditor) -> None:
    release = _do(editor, Promote("2.0.0"), Promote("3.0.0"), Rollback())
    assert (release.revision, _versions(release)) == (4, {"stable": "2.0.0"})
    assert release.changed is not None
    assert (release.changed.why, release.changed.restores) == ("rollback of 3", 2)
    release = _do(editor, Rollback())
    assert (release.revision, _versions(release)) == (5, {"stable": "1.0.0"})
    with pytest.raises(InvalidRelease, match="kept are 4, 3, 2, 1"):
        _do(editor, Rollback())


def test_rollback_after_a_rollback_and_a_canary_does_not_bring_back_what_was_taken_back(editor: ReleaseEditor) -> None:
    release = _do(editor, Promote("2.0.0"), Promote("3.0.0"), Rollback(), SetAlias("canary", "4.0.0", 5), Rollback())
    assert _versions(release) == {"stable": "1.0.0"}


def test_rollback_to_a_revision_goes_on_from_there(editor: ReleaseEditor) -> None:
    release = _do(editor, Promote("2.0.0"), Promote("3.0.0"), Promote("4.0.0"), Rollback(1), Rollback(3))
    assert _versions(release) == {"stable": "3.0.0"}
    assert _versions(_do(editor, Rollback())) == {"stable": "2.0.0"}


def test_rollback_brings_back_all_aliases_of_that_revision(editor: ReleaseEditor) -> None:
    before = _do(editor, SetAlias("canary", "2.0.0", 5), SetAlias("beta", "3.0.0"))
    release = _do(editor, Promote("canary"), Rollback())
    assert release.aliases == before.aliases


def test_rollback_leaves_shadow_and_also_serve(editor: ReleaseEditor) -> None:
    release = _do(editor, Promote("2.0.0"), SetShadow("3.0.0", 10), AlsoServe("4.0.0"), Rollback())
    assert release.versions == ("1.0.0", "4.0.0", "3.0.0")


class _NoSync(FileCalls):
    """The disk need not be waited for."""

    @staticmethod
    def fsync(_: int) -> None:  # type: ignore[override]
        pass


VERSIONS = [f"{number}.0.0" for number in range(1, 6)]
versions = st.sampled_from(VERSIONS)
aliases = st.sampled_from(["canary", "beta", "old"])
weights = st.none() | st.integers(0, 30)
Aliases = dict[str, AliasEntry]


class Histories(RuleBasedStateMachine):
    """The model: a line of states that led here, for each revision. A rollback takes the line of that revision."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        root = Path(self.directory.name)
        for version in VERSIONS:
            write_model(root, "m", version)
        write_release(root, "m", "1.0.0", revision=1)
        self.editor = ReleaseEditor(Store(root), _NoSync())
        self.aliases: Aliases = {"stable": AliasEntry(version="1.0.0")}
        self.shadow: str | None = None
        self.also_serve: list[str] = []
        self.lines: dict[int, list[tuple[int, Aliases]]] = {1: [(1, self.aliases)]}

    def teardown(self) -> None:
        self.directory.cleanup()

    @property
    def revision(self) -> int:
        return max(self.lines)

    @property
    def kept(self) -> range:
        return range(max(1, self.revision - HISTORY_LENGTH), self.revision)

    def _make(self, change: Change) -> None:
        self.editor.change("m", change, Note("hypothesis"), unverified=True)

    def _expect(self, before: Any, line: list[tuple[int, Aliases]] | None = None) -> None:
        """What the model has become is a revision of its own, unless nothing has changed."""
        if before != (self.aliases, self.shadow, self.also_serve):
            revision = self.revision + 1
            self.lines[revision] = [*(self.lines[self.revision] if line is None else line), (revision, self.aliases)]

    def _state(self) -> Any:
        return self.aliases, self.shadow, self.also_serve

    @rule(alias=aliases, version=versions, weight=weights)
    def set_alias(self, alias: str, version: str, weight: int | None) -> None:
        before = self._state()
        self._make(SetAlias(alias, version, weight))
        self.aliases = {**self.aliases, alias: AliasEntry(version=version, weight=weight)}
        self._expect(before)

    @rule(version=versions)
    def promote(self, version: str) -> None:
        before = self._state()
        self._make(Promote(version))
        self.aliases = {**self.aliases, "stable": AliasEntry(version=version)}
        if "canary" in self.aliases and self.aliases["canary"].version == version:
            del self.aliases["canary"]
        self.shadow = None if self.shadow == version else self.shadow
        self._expect(before)

    @rule(version=versions)
    def set_shadow(self, version: str) -> None:
        before = self._state()
        self._make(SetShadow(version, 10))
        self.shadow = version
        self._expect(before)

    @rule(version=versions)
    def serve_also(self, version: str) -> None:
        before = self._state()
        self._make(AlsoServe(version))
        self.also_serve = list(dict.fromkeys([*self.also_serve, version]))
        self._expect(before)

    @rule(alias=aliases)
    def drop(self, alias: str) -> None:
        before = self._state()
        if alias not in self.aliases:
            with pytest.raises(InvalidRelease):
                self._make(Drop(alias))
            return
        self._make(Drop(alias))
        self.aliases = {name: entry for name, entry in self.aliases.items() if name != alias}
        self._expect(before)

    @rule()
    def roll_back(self) -> None:
        stable = self.aliases[STABLE].version
        line = [state for state in self.lines[self.revision][:-1] if state[0] in self.kept]
        others = [revision for revision, then in line if then[STABLE].version != stable]
        if not others:
            with pytest.raises(InvalidRelease):
                self._make(Rollback())
            return
        self._restore(Rollback(), others[-1])

    @precondition(lambda self: len(self.kept) > 0)
    @rule(data=st.data())
    def roll_back_to(self, data: st.DataObject) -> None:
        revision = data.draw(st.sampled_from(self.kept))
        self._restore(Rollback(revision), revision)

    def _restore(self, change: Rollback, revision: int) -> None:
        before = self._state()
        self._make(change)
        self.aliases = self.lines[revision][-1][1]
        self._expect(before, self.lines[revision])

    @invariant()
    def file_is_as_the_model(self) -> None:
        if not hasattr(self, "editor"):
            return
        release = self.editor.read("m").release
        assert release is not None
        assert release.revision == self.revision
        assert release.aliases == self.aliases
        assert (release.shadow.version if release.shadow else None) == self.shadow
        assert list(release.also_serve) == self.also_serve
        assert [entry.revision for entry in release.history] == list(reversed(self.kept))
        assert all(entry.aliases == self.lines[entry.revision][-1][1] for entry in release.history)


Histories.TestCase.settings = settings(
    max_examples=25, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestHistories = Histories.TestCase
