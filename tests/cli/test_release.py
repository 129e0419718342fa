"""`headway release …` over scores 1.9.0 (stable) and 1.10.0 (canary at 5 %)."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Headway, environment
from tests.fixtures_models import GOLDEN, write_model, write_release
from tests.running import ROOT, heed_rights


def _changed(headway: Headway, *arguments: Any) -> dict[str, Any]:
    done = headway("release", *arguments, "--json")
    assert (done.code, done.err) == (0, "")
    changed: dict[str, Any] = json.loads(done.out)["release"]
    return changed


def test_status_of_all_models(headway: Headway) -> None:
    done = headway("release", "status")
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["model", "revision", "alias", "version", "traffic"]
    assert ["scores", "0", "stable", "1.9.0", "95", "%"] in rows
    assert ["canary", "1.10.0", "5", "%"] in rows
    assert ["sum", "implicit", "stable", "1.0.0", "100", "%"] in rows


def test_status_of_one_model_shows_its_history(headway: Headway) -> None:
    headway("release", "canary", "scores@1.10.0", "--weight", "10", "--why", "more [bold]of it", "--by", "ann")
    done = headway("release", "status", "scores")
    assert "more [bold]of it" in done.out
    assert [line.split()[:2] for line in done.out.splitlines()[-2:]] == [["1", "1.9.0"], ["0", "1.9.0"]]
    shown = json.loads(headway("release", "status", "scores", "--json").out)
    assert (shown["model"], shown["is_explicit"], len(shown["digest"])) == ("scores", True, 64)
    assert shown["release"]["changed"]["by"] == "ann"


def test_a_release_and_its_rollback(headway: Headway) -> None:
    assert _changed(headway, "canary", "scores@1.10.0", "--weight", 25)["aliases"]["canary"]["weight"] == 25
    assert _changed(headway, "shadow", "scores@canary", "--share", 50)["shadow"] == {"version": "1.10.0", "share": 50}
    promoted = _changed(headway, "promote", "scores@canary", "--unverified", "--why", "it is better")
    assert promoted["aliases"] == {"stable": {"version": "1.10.0"}}
    assert promoted["changed"]["why"] == "it is better"
    assert "shadow" not in promoted
    done = headway("release", "rollback", "scores")
    assert done.out == "scores is at revision 4: stable 1.9.0 (75 %), canary 1.10.0 (25 %)\n"
    assert _changed(headway, "rollback", "scores", "--to", 3)["aliases"] == {"stable": {"version": "1.10.0"}}


def test_set_and_drop(headway: Headway) -> None:
    changed = _changed(headway, "set", "scores@1.10.0", "--alias", "beta", "--weight", 10)
    assert changed["aliases"]["beta"] == {"version": "1.10.0", "weight": 10}
    assert _changed(headway, "set", "scores@1.9.0", "--also-serve")["also_serve"] == ["1.9.0"]
    assert "beta" not in _changed(headway, "drop", "scores", "beta")["aliases"]
    assert _changed(headway, "drop", "scores", "1.9.0")["also_serve"] == []


def test_load_and_judge(headway: Headway) -> None:
    assert _changed(headway, "load", "scores", "lazy")["load"] == "lazy"
    changed = _changed(headway, "judge", "scores", "--errors-margin", 0.02, "--no-rollback")
    assert changed["analysis"]["errors_margin"] == 0.02
    changed = _changed(headway, "judge", "scores", "--min-requests", 500)
    assert (changed["analysis"]["rollback"], changed["analysis"]["min_requests"]) == (False, 500)
    assert changed["load"] == "lazy"
    nothing = headway("release", "judge", "scores")
    assert (nothing.code, "say what to change: rollback, errors_margin" in nothing.err) == (1, True)
    assert "errors_margin" in headway("release", "judge", "scores", "--errors-margin", "2").err
    assert headway("release", "load", "scores", "sometimes").code == 2


def test_releases_directory_is_that_of_the_environment(headway: Headway, root: Path, tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    done = headway("release", "promote", "sum@1.0.0", HEADWAY_RELEASES=str(tmp_path / "releases"))
    assert done.code == 0, done.err
    assert (tmp_path / "releases/sum/release.yaml").exists()
    assert not (root / "sum/release.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["promote", "scores"], "say which version, as scores@1.2.0", 2),
        (["promote", "Scores@1.0.0"], "write the model as name", 2),
        (["promote", "other@1.0.0"], "there is no model 'other'", 1),
        (["promote", "scores@9.9.9"], "no version 9.9.9", 1),
        (["promote", "scores@1.10.0"], "--unverified", 1),
        (["canary", "scores@1.10.0", "--weight", "101"], "aliases.canary.weight", 1),
        (["rollback", "scores"], "kept are none", 1),
        (["drop", "scores", "stable"], "promote another version instead", 1),
        (["drop", "scores@1.9.0", "canary"], "write the model's name alone", 2),
        (["set", "scores@1.9.0"], "give either --alias", 2),
        (["status", "nothing"], "there is no model 'nothing'", 1),
    ],
)
def test_refusal_is_one_line(headway: Headway, arguments: list[str], message: str, code: int) -> None:
    done = headway("release", *arguments)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_by_default_the_user_makes_the_change(headway: Headway) -> None:
    changed = _changed(headway, "canary", "scores@1.10.0", "--weight", 7)
    assert changed["changed"]["by"]


def test_read_only_registry_is_told(root: Path) -> None:
    (root / "scores").chmod(0o555)
    command = [sys.executable, "-m", "app.cli.main", "release", "canary", "scores@1.9.0", "--weight", "1"]
    done = subprocess.run(
        command, env=environment(root), capture_output=True, text=True, preexec_fn=heed_rights, check=False
    )
    (root / "scores").chmod(0o755)
    assert done.returncode == 1
    assert "scores/release.yaml is edited and committed" in done.stderr


def test_commands_of_the_guide_work(headway: Headway, root: Path) -> None:
    for version in ("1.1.0", "1.2.0"):
        write_model(root, "flowers", version, **GOLDEN)
    write_release(root, "flowers", "1.1.0")
    guide = (ROOT / "docs/guides/releases.md").read_text(encoding="utf-8")
    commands = re.findall(r"^headway (release .*)$", guide, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        done = headway(*shlex.split(command))
        assert (done.code, done.err) == (0, ""), command
