"""`headway models list | show | verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Headway
from tests.fixtures_models import edit_manifest, write_model


def test_list_in_semantic_order(headway: Headway) -> None:
    done = headway("models", "list")
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["model", "version", "released", "task", "runtime", "size"]
    assert [row[:3] for row in rows if row[0] == "scores"] == [
        ["scores", "1.9.0", "stable"],
        ["scores", "1.10.0", "canary"],
    ]


def test_list_as_json(headway: Headway, root: Path) -> None:
    (write_model(root, "bad") / "model.yaml").write_text("shema: 1\n")
    done = headway("models", "list", "--json")
    assert (done.code, done.err) == (0, "")
    rows = {(row["model"], row["version"]): row for row in json.loads(done.out)}
    assert rows["scores", "1.9.0"]["released"] == ["stable"]
    assert rows["scores", "1.9.0"]["bytes"] > 0
    assert "shema: unknown key" in rows["bad", "1.0.0"]["error"]


def test_list_shows_errors_as_they_are(headway: Headway, root: Path) -> None:
    """Square brackets are rich's markup: unescaped they would vanish."""
    directory = write_model(root, "bad")
    edit_manifest(directory, inputs=[{"name": "x", "datatype": "FLOAT", "shape": [-1, 3]}])
    done = headway("models", "list", COLUMNS="400")
    assert "inputs[0].datatype" in done.out


def test_show_one_version(headway: Headway) -> None:
    done = headway("models", "show", "scores@1.10.0")
    assert (done.code, done.err) == (0, "")
    assert "1.10.0" in done.out
    assert "[-1, 3]" in done.out


def test_show_without_version_is_the_stable_one(headway: Headway) -> None:
    assert json.loads(headway("models", "show", "scores", "--json").out)["version"] == "1.9.0"
    shown = json.loads(headway("models", "show", "scores@canary", "--json").out)
    assert (shown["schema"], shown["version"]) == (1, "1.10.0")
    assert shown["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3], "batched": True}]


def test_show_keeps_words_in_brackets(headway: Headway, root: Path) -> None:
    write_model(root, "bracketed", licence="[mit]", evaluation=[{"data": "d", "n": 1, "cpu_features": ["avx2", "fma"]}])
    done = headway("models", "show", "bracketed")
    assert "[mit]" in done.out
    assert "[avx2, fma]" in done.out


def test_verify_all(headway: Headway) -> None:
    done = headway("models", "verify")
    assert (done.code, done.err) == (0, "")
    assert len([line for line in done.out.splitlines() if line.rstrip().endswith("ok")]) == 7


def test_verify_one_model(headway: Headway) -> None:
    results = json.loads(headway("models", "verify", "scores", "--json").out)
    assert [(result["version"], result["ok"]) for result in results] == [("1.9.0", True), ("1.10.0", True)]
    results = json.loads(headway("models", "verify", "scores@canary", "--json").out)
    assert [result["version"] for result in results] == ["1.10.0"]


def test_verify_reports_each_and_fails(headway: Headway, root: Path) -> None:
    edit_manifest(root / "scores" / "1.9.0", inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 4]}])
    done = headway("models", "verify", COLUMNS="400")
    assert done.code == 1
    assert "says x: FP32 [n, 4], but the file says x: FP32 [n, 3]" in done.out
    done = headway("models", "verify", "--json")
    assert done.code == 1
    assert {result["version"] for result in json.loads(done.out) if not result["ok"]} == {"1.9.0"}


# What is typed is wrong by itself.
MISUSE = {
    "write the model as name, name@version or name@alias",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nothing"), "there is no model 'nothing'"),
        (("show", "scores@3.0.0"), "model 'scores' has no version 3.0.0; it has 1.9.0, 1.10.0"),
        (("show", "scores@beta"), "has no version beta"),
        (("show", "Scores"), "write the model as name, name@version or name@alias"),
        (("verify", "nothing"), "there is no model 'nothing'"),
        (("list", "--models", "/nowhere"), "/nowhere: there is no such registry directory; name it with --models"),
    ],
)
def test_failure_is_one_line_on_stderr(headway: Headway, arguments: tuple[str, ...], message: str) -> None:
    done = headway("models", *arguments, COLUMNS="400")
    assert (done.code, done.out) == (2 if message in MISUSE else 1, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        "models list", "models show sum", "models verify", "models diff sum@1.0.0 sum@1.0.1", "models remove sum@1.0.0",
        "models undelete sum@1.0.0", "models backup all.tar.gz", "release status", "release promote sum@1.0.0", "serve",
        "predict sum rows.json", "evaluate sum rows", "quantize sum@1.0.0",
    ],
)  # fmt: skip
def test_mistyped_registry_is_not_made(headway: Headway, working: Path, command: str) -> None:
    done = headway(*command.split(), "--models", "modles", COLUMNS="400")
    assert (done.code, done.out) == (2 if command == "serve" else 1, "")
    assert "modles" in done.err
    assert not list(working.iterdir())


@pytest.mark.parametrize(
    "arguments", [("models", "show"), ("models", "lst"), ("models", "list", "--jsn"), ("nothing",)]
)
def test_misuse_is_exit_code_2(headway: Headway, arguments: tuple[str, ...]) -> None:
    done = headway(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage" in done.err
    assert "Traceback" not in done.err


def test_empty_registry(headway: Headway, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert json.loads(headway("models", "list", "--json", "--models", empty).out) == []
    assert headway("models", "verify", "--models", empty).code == 0
