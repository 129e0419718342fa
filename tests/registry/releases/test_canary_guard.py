"""The guard on real releases and a real SQLite: what it judges since when, what it changes, and what it cannot."""

from __future__ import annotations

import datetime
import errno
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import HeadwayError, InvalidRelease, VersionNotFound
from app.metrics import Metrics
from app.registry.releases.canary_guard import LONGEST_WHY, Canary, CanaryGuard, CanaryJudge
from app.registry.releases.changes import (
    AlsoServe,
    Change,
    Drop,
    Promote,
    Replace,
    Rollback,
    SetAlias,
    SetShadow,
    Withdraw,
)
from app.registry.releases.editor import Note, ReleaseEditor
from app.registry.releases.release import AliasEntry, Analysis, Release
from app.registry.releases.release_file import FileCalls, render_release
from app.registry.store import Store
from app.storage.counts import CountsStore, RequestCounts
from app.storage.database import Database, open_database
from app.storage.feedback import FeedbackRow, FeedbackStore
from app.storage.leases import Leases
from tests.fixtures_models import write_model, write_release
from tests.running import ROOT, heed_rights

MINUTE_MS = 60_000
START = datetime.datetime(2026, 11, 21, 10, 0, 30, tzinfo=datetime.UTC)
START_MS = round(START.timestamp() * 1000)
FIRST_MS = START_MS + 30_000  # the first full minute
NOW_MS = FIRST_MS + 10 * MINUTE_MS
GOOD, SLOW = 5, 9  # places in the durations
HAND = {"changed": {"at": "2026-11-21T10:00:30Z", "by": "ann", "why": "try it"}}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(None, tmp_path / "data") as database:
        yield database


@pytest.fixture
def root(root: Path) -> Path:
    """m 1.1.0, and its canary 1.2.0 with 5 % since START."""
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        write_model(root, "m", version)
    release(root)
    return root


def release(root: Path, model: str = "m", **sections: Any) -> Path:
    aliases = sections.pop("aliases", {"canary": {"version": "1.2.0", "weight": 5}})
    path = write_release(root, model, "1.1.0", **{"revision": 7, "aliases": aliases, **HAND, **sections})
    os.utime(path, ns=(0, START_MS * 1_000_000))
    return path


def make_guard(root: Path, database: Database, holder: str = "a", calls: FileCalls | None = None) -> CanaryGuard:
    stores = CountsStore(database), FeedbackStore(database), Leases(database)
    return CanaryGuard(ReleaseEditor(Store(root), calls), *stores, Metrics(), holder)


def count(database: Database, version: str, alias: str, n: int, failed: int = 0, **more: Any) -> None:
    """`n` requests in one minute, the second full one if nothing else is said."""
    durations = [0] * 16
    durations[more.get("place", GOOD)] = n - failed
    at = more.get("minute_ms", FIRST_MS + MINUTE_MS)
    row = RequestCounts(more.get("model", "m"), version, alias, at, n, failed, tuple(durations))
    CountsStore(database).write(f"{version}{alias}{at}", [row], [])


def count_bad_canary(database: Database, model: str = "m", alias: str = "canary") -> None:
    count(database, "1.1.0", "stable", 15_400, 31, model=model)
    count(database, "1.2.0", alias, 812, 58, model=model)


def label(database: Database, version: str, alias: str, n: int, wrong: int, first: int) -> None:
    FeedbackStore(database).add(
        [
            FeedbackRow(
                (first + number).to_bytes(10, "big"), "m", version, alias, FIRST_MS + number, NOW_MS, (0,), 0.9,
                actual=int(number < wrong),
            )
            for number in range(n)
        ]
    )  # fmt: skip


def read(root: Path, model: str = "m") -> Any:
    return yaml.safe_load((root / model / "release.yaml").read_text())


def gauges(guard: CanaryGuard) -> dict[tuple[str, str, str], float]:
    return {
        (sample.labels["model"], sample.labels["version"], sample.labels["alias"]): sample.value
        for family in guard._gauge.collect()
        for sample in family.samples
    }


CANARY = ("m", "1.2.0", "canary")

# --- what it does


def test_bad_canary_is_rolled_back_and_the_history_says_why(
    root: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    count_bad_canary(database)
    guard = make_guard(root, database)
    guard.look(NOW_MS)
    found = read(root)
    assert found["aliases"] == {"stable": {"version": "1.1.0"}, "canary": {"version": "1.2.0", "weight": 0}}
    assert found["changed"]["by"] == "headway canary judge"
    assert found["changed"]["at"] == datetime.datetime.fromtimestamp(NOW_MS / 1000, datetime.UTC)
    assert found["changed"]["why"] == (
        "canary 1.2.0 fails 7.14 % of 812 requests, stable 1.1.0 fails 0.2 % of 15,400 (margin 1 %, p < 0.001)"
    )
    assert (found["revision"], found["history"][0]["revision"]) == (8, 7)
    assert gauges(guard) == {CANARY: 0}
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "model m: rolled back, gets no traffic any more: canary 1.2.0 fails 7.14 %" in line.getMessage()
    guard.look(NOW_MS + MINUTE_MS)
    assert read(root) == found
    ReleaseEditor(Store(root)).change("m", AlsoServe("1.0.0"), Note("ann"))
    assert "canary 1.2.0 fails" in read(root)["history"][0]["why"]


def test_slow_canary_is_rolled_back(root: Path, database: Database) -> None:
    count(database, "1.1.0", "stable", 10_000)
    count(database, "1.2.0", "canary", 500, place=SLOW)
    make_guard(root, database).look(NOW_MS)
    assert (
        "takes longer than 200 ms for 100 % of 500 answers, stable 1.1.0 for 0 % of 10,000"
        in (read(root)["changed"]["why"])
    )


def test_wrong_canary_is_rolled_back(root: Path, database: Database) -> None:
    label(database, "1.1.0", "stable", 1000, 80, first=0)
    label(database, "1.2.0", "canary", 200, 90, first=5000)
    make_guard(root, database).look(NOW_MS)
    assert (
        "canary 1.2.0 is wrong in 45 % of 200 labelled answers, stable 1.1.0 in 8 % of 1,000"
        in (read(root)["changed"]["why"])
    )


def test_good_canary_stays(root: Path, database: Database) -> None:
    before = read(root)
    count(database, "1.1.0", "stable", 15_400, 31)
    count(database, "1.2.0", "canary", 812, 2)
    count(database, "1.2.0", "", 5000, 5000)  # asked for by its number: no part of the comparison
    count(database, "1.2.0", "beta", 5000, 5000)
    guard = make_guard(root, database)
    guard.look(NOW_MS)
    assert read(root) == before
    assert gauges(guard) == {CANARY: 0}


def test_minute_that_is_not_over_does_not_count(root: Path, database: Database) -> None:
    before = read(root)
    count(database, "1.1.0", "stable", 15_400, 31)
    count(database, "1.2.0", "canary", 812, 800, minute_ms=NOW_MS)
    count(database, "1.2.0", "canary", 812, 800, minute_ms=FIRST_MS - MINUTE_MS)
    make_guard(root, database).look(NOW_MS + 59_999)
    assert read(root) == before
    make_guard(root, database).look(NOW_MS + MINUTE_MS)
    assert read(root)["aliases"]["canary"]["weight"] == 0


def test_all_bad_aliases_of_a_model_go_in_one_change(root: Path, database: Database) -> None:
    names = {name: {"version": "1.2.0", "weight": 5} for name in ("canary", "x" * 60, "y" * 60)}
    release(root, aliases=names)
    for name in names:
        count(database, "1.1.0", "stable", 15_400, 31)
        count(database, "1.2.0", name, 812, 400, place=SLOW)
    make_guard(root, database).look(NOW_MS)
    found = read(root)
    assert {entry.get("weight") for alias, entry in found["aliases"].items() if alias != "stable"} == {0}
    assert (found["revision"], len(found["changed"]["why"]) <= LONGEST_WHY) == (8, True)
    assert found["changed"]["why"].startswith("canary 1.2.0 fails 49.26 %")


def test_rules_of_the_release_are_heeded(root: Path, database: Database) -> None:
    count_bad_canary(database)
    release(root, analysis={"errors_margin": 0.1})
    before = read(root)
    guard = make_guard(root, database)
    guard.look(NOW_MS)
    assert read(root) == before
    release(root, analysis={"errors_margin": 0.02})
    guard.look(NOW_MS + 1)
    assert "(margin 2 %" in read(root)["changed"]["why"]


def test_canary_without_traffic_asks_nothing_of_the_database(root: Path, tmp_path: Path) -> None:
    release(root, aliases={"canary": {"version": "1.2.0", "weight": 0}})
    with open_database(None, tmp_path / "none") as database:
        guard = make_guard(root, database)
        guard.look(NOW_MS)
        guard.close()
    assert not (tmp_path / "none").exists()


# --- since when


def find(root: Path, now_ms: int = NOW_MS, judge: CanaryJudge | None = None) -> Canary:
    with open_database(None, root.parent / "unused") as database:
        judge = judge or CanaryJudge(ReleaseEditor(Store(root)), CountsStore(database), FeedbackStore(database))
        (canary,) = judge.find("m", now_ms)
        return canary


def test_counts_start_anew_with_other_weights(root: Path, database: Database) -> None:
    count_bad_canary(database)
    at = datetime.datetime.fromtimestamp(NOW_MS / 1000, datetime.UTC)
    changed = ReleaseEditor(Store(root)).change("m", SetAlias("canary", "1.2.0", 25), Note("ann", at=at))
    assert find(root).since_ms == NOW_MS + MINUTE_MS
    guard = make_guard(root, database)
    guard.look(NOW_MS + 5 * MINUTE_MS)
    assert ReleaseEditor(Store(root)).read("m") == changed
    for version, alias, failed in (("1.1.0", "stable", 2), ("1.2.0", "canary", 600)):
        count(database, version, alias, 1000, failed, minute_ms=NOW_MS + 2 * MINUTE_MS)
    guard.look(NOW_MS + 5 * MINUTE_MS)
    assert "fails 60 % of 1,000 requests" in read(root)["changed"]["why"]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        (SetShadow("1.0.0", 5), True),
        (AlsoServe("1.0.0"), True),
        (SetAlias("beta", "1.0.0"), True),
        (SetAlias("beta", "1.0.0", 10), False),  # stable's share is another
        (SetAlias("canary", "1.0.0", 5), False),
        (Promote("1.0.0"), False),
    ],
)
def test_counts_go_on_while_versions_and_weights_stay(root: Path, change: Change, is_same: bool) -> None:
    at = START + datetime.timedelta(minutes=5)
    ReleaseEditor(Store(root)).change("m", change, Note("ann", at=at), unverified=True)
    with open_database(None, root.parent / "unused") as database:
        judge = CanaryJudge(ReleaseEditor(Store(root)), CountsStore(database), FeedbackStore(database))
        (canary,) = [one for one in judge.find("m", NOW_MS) if one.alias == "canary"]
    assert canary.since_ms == FIRST_MS + (0 if is_same else 5 * MINUTE_MS)


@pytest.mark.parametrize(
    "sections",
    [
        {"changed": None},
        # Raised by hand: `changed` is still that of revision 6.
        {"history": [{"revision": 5, "aliases": {"stable": {"version": "1.0.0"}}, "at": "2026-11-20T10:00:00Z"}]},
    ],
    ids=["no time", "time of another revision"],
)
def test_release_by_hand_counts_since_it_was_written(root: Path, sections: Any) -> None:
    """The same in every process, whenever it looks."""
    path = release(root, **sections)
    os.utime(path, ns=(0, NOW_MS * 1_000_000))
    with open_database(None, root.parent / "unused") as database:
        judge = CanaryJudge(ReleaseEditor(Store(root)), CountsStore(database), FeedbackStore(database))
        assert find(root, NOW_MS, judge).since_ms == NOW_MS + MINUTE_MS
        assert find(root, NOW_MS + 9 * MINUTE_MS, judge).since_ms == NOW_MS + MINUTE_MS
        release(root, **sections, load="lazy")
        os.utime(path, ns=(0, (NOW_MS + 9 * MINUTE_MS) * 1_000_000))
        assert find(root, NOW_MS + 99 * MINUTE_MS, judge).since_ms == NOW_MS + 10 * MINUTE_MS


def test_start_is_sought_only_as_far_as_times_are_known(root: Path) -> None:
    entries = [
        {
            "revision": number,
            "aliases": {"stable": {"version": "1.1.0"}, "canary": {"version": "1.2.0", "weight": 5}},
            "at": f"2026-11-21T09:0{number}:00Z",
        }
        for number in (6, 5, 4)
    ]
    release(root, history=entries)
    assert find(root).since_ms == FIRST_MS - 56 * MINUTE_MS  # 9:05, after 9:04
    release(root, history=[entries[0], {**entries[1], "at": None}, entries[2]])
    assert find(root).since_ms == FIRST_MS - 54 * MINUTE_MS  # 9:07, after 9:06


# --- what it cannot do


class ReadOnlyCalls(FileCalls):
    """A file system that is mounted read-only."""

    def open(self, *_: Any) -> int:  # type: ignore[override]
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("obstacle", ["read-only", "link", "off"])
def test_what_cannot_be_rolled_back_is_told_once(
    root: Path, database: Database, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    path = root / "m" / "release.yaml"
    if obstacle == "off":
        release(root, analysis={"rollback": False})
    if obstacle == "link":
        path.rename(root.parent / "elsewhere.yaml")
        path.symlink_to(root.parent / "elsewhere.yaml")
    before = path.read_bytes()
    count_bad_canary(database)
    guard = make_guard(root, database, calls=ReadOnlyCalls() if obstacle == "read-only" else None)
    for minute in range(3):
        guard.look(NOW_MS + minute * MINUTE_MS)
        assert gauges(guard) == {CANARY: 1}
    assert path.read_bytes() == before
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "canary 1.2.0 fails 7.14 % of 812 requests" in line
    assert {"read-only": "cannot be changed here", "link": "symbolic link", "off": "analysis.rollback is off"}[
        obstacle
    ] in line
    assert line.endswith("commit in m/release.yaml: aliases.canary.weight: 0")
    count(database, "1.2.0", "canary", 100_000, minute_ms=NOW_MS)  # a verdict is final
    guard.look(NOW_MS + 3 * MINUTE_MS)
    assert gauges(guard) == {CANARY: 1}
    path.unlink()
    release(root, aliases={"canary": {"version": "1.2.0", "weight": 0}})
    guard.look(NOW_MS + 4 * MINUTE_MS)
    assert gauges(guard) == {CANARY: 0}


def test_directory_that_is_read_only(root: Path, database: Database, tmp_path: Path) -> None:
    """In a process that heeds the rights of files, as root's does not."""
    count_bad_canary(database)
    code = f"""
from pathlib import Path
from tests.registry.releases.test_canary_guard import CANARY, NOW_MS, gauges, make_guard
from app.storage.database import open_database
with open_database(None, Path({str(tmp_path / "data")!r})) as database:
    guard = make_guard(Path({str(root)!r}), database)
    guard.look(NOW_MS)
    print(gauges(guard)[CANARY])
"""
    (root / "m").chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, preexec_fn=heed_rights, capture_output=True, text=True, check=False
    )
    (root / "m").chmod(0o755)
    assert done.stdout == "1.0\n", done.stderr
    assert "cannot be changed here" in done.stderr
    assert read(root)["aliases"]["canary"]["weight"] == 5


class OvertakenEditor(ReleaseEditor):
    """Another one changes the release between the guard's look and its own change."""

    def change(self, model: str, change: Change, *args: Any, **kwargs: Any) -> Any:
        if isinstance(change, Withdraw):
            super().change(model, SetAlias("canary", "1.2.0", 25), Note("ann"))
        return super().change(model, change, *args, **kwargs)


def test_lost_race_changes_nothing(root: Path, database: Database) -> None:
    count_bad_canary(database)
    stores = CountsStore(database), FeedbackStore(database), Leases(database)
    guard = CanaryGuard(OvertakenEditor(Store(root)), *stores, Metrics(), "a")
    guard.look(NOW_MS)
    assert read(root)["aliases"]["canary"]["weight"] == 25
    assert gauges(guard) == {CANARY: 0}
    guard.look(NOW_MS + MINUTE_MS)  # 25 % have no counts yet
    assert read(root)["aliases"]["canary"]["weight"] == 25


def test_release_that_cannot_be_read_keeps_no_other_from_being_judged(
    root: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "z"):
        write_model(root, name, "1.2.0")
        write_model(root, name, "1.1.0")
        release(root, name, analysis={"rollback": False})
        count_bad_canary(database, name)
    guard = make_guard(root, database)
    guard.look(NOW_MS)
    worse = {("a", *CANARY[1:]): 1, ("z", *CANARY[1:]): 1}
    assert gauges(guard) == {**worse, CANARY: 0}
    count_bad_canary(database)
    (root / "a/release.yaml").write_text("no: release\n")
    for _ in range(3):
        guard.look(NOW_MS)
    assert read(root)["aliases"]["canary"]["weight"] == 0
    assert gauges(guard) == {**worse, CANARY: 0}  # a goes on with the release that it had
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "canaries of a are not judged" in errors[0]
    release(root, "a")
    guard.look(NOW_MS)
    assert read(root, "a")["aliases"]["canary"]["weight"] == 0


def test_one_of_two_guards_judges(root: Path, database: Database, tmp_path: Path) -> None:
    release(root, analysis={"rollback": False})
    count_bad_canary(database)
    with open_database(None, tmp_path / "data") as other:
        first, second = make_guard(root, database, "a"), make_guard(root, other, "b")
        for guard in (first, second):
            guard.look(NOW_MS)
        assert (gauges(first), gauges(second)) == ({CANARY: 1}, {})
        second.look(NOW_MS + 30_000)  # the lease of the first has run out
        first.look(NOW_MS + 30_001)
        assert gauges(second) == {CANARY: 1}
        assert math.isnan(gauges(first)[CANARY])
        second.close()
        first.look(NOW_MS + 30_002)
        assert gauges(first) == {CANARY: 1}


def test_takeover_goes_on_with_a_release_by_hand(root: Path, database: Database) -> None:
    """The counts do not begin anew with another judge."""
    release(root, changed=None)
    first, second = make_guard(root, database, "a"), make_guard(root, database, "b")
    for guard in (first, second):
        guard.look(START_MS)
    count_bad_canary(database)
    second.look(NOW_MS)
    assert read(root)["aliases"]["canary"]["weight"] == 0


# --- release.yaml


def test_withdraw_keeps_versions() -> None:
    base = Release.model_validate({"aliases": {"stable": {"version": "1"}, "canary": {"version": "2", "weight": 5}}})
    draft = Withdraw(("canary",)).apply(base)
    assert draft.release.aliases["canary"] == AliasEntry(version="2", weight=0)
    assert draft.why == "no traffic for canary"
    assert draft.release.weights == {"stable": 100, "canary": 0}
    with pytest.raises(InvalidRelease, match="takes no weight"):
        Withdraw(("stable",)).apply(base)
    with pytest.raises(VersionNotFound, match="no alias 'beta'"):
        Withdraw(("beta",)).apply(base)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"error_margin": 0.1}, "did you mean 'errors_margin'"),
        ({"errors_margin": -0.1}, "analysis.errors_margin"),
        ({"latency_margin": "nan"}, "analysis.latency_margin"),
        ({"false_alarm": 0}, "analysis.false_alarm"),
        ({"min_requests": 0}, "analysis.min_requests"),
        ({"rollback": "maybe"}, "analysis.rollback"),
    ],
)
def test_analysis_that_is_wrong_names_the_field(root: Path, section: Any, message: str) -> None:
    release(root, analysis=section)
    with pytest.raises(HeadwayError, match=message):
        ReleaseEditor(Store(root)).read("m")


VERSIONS = st.sampled_from(["1.0.0", "1.1.0", "1.2.0"])
CHANGES = st.one_of(
    st.builds(SetAlias, st.sampled_from(["canary", "beta"]), VERSIONS, st.sampled_from([None, 0, 5])),
    st.builds(SetShadow, VERSIONS, st.just(5)),
    st.builds(AlsoServe, VERSIONS),
    st.builds(Drop, st.sampled_from(["canary", "beta", "shadow", "1.0.0"])),
    st.builds(Promote, VERSIONS),
    st.just(Rollback()),
    st.just(Withdraw(("canary",))),
    st.builds(lambda version: Replace({"stable": AliasEntry(version=version)}), VERSIONS),
)
SHARES = st.one_of(st.just(0), st.floats(0, 0.99), st.just(0.01))
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "rollback": st.booleans(),
        "errors_margin": SHARES,
        "latency_margin": SHARES,
        "accuracy_margin": SHARES,
        "false_alarm": st.floats(1e-6, 0.5),
        "min_requests": st.integers(1, 10**9),
        "min_labelled": st.integers(1, 10**9),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SECTIONS, st.lists(CHANGES, min_size=1, max_size=5))
def test_analysis_survives_every_change(root: Path, section: dict[str, Any], changes: list[Change]) -> None:
    release(root, analysis=section)
    editor = ReleaseEditor(Store(root))
    for change in changes:
        try:
            editor.change("m", change, Note("ann"), unverified=True)
        except HeadwayError:
            continue
        found = editor.read("m").release
        assert found is not None
        assert found.analysis == Analysis(**section)
        assert read(root)["analysis"] == section


def test_release_without_analysis_is_written_without(root: Path) -> None:
    ReleaseEditor(Store(root)).change("m", Withdraw(("canary",)), Note("ann"))
    assert "analysis" not in read(root)
    assert b"analysis" not in render_release(Release.model_validate({"aliases": {"stable": {"version": "1"}}}))
