"""`headway predict`: a photo or rows of numbers, as a table or JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Headway, environment


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (9, 9), (255, 51, 0)).save(path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text("[[0.25, 0.5, 0], [1, 0, 0]]")
    return path


def test_predict_photo(headway: Headway, photo: Path) -> None:
    done = headway("predict", "colour", photo)
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["colour@1.0.0"]
    assert [line[:2] for line in lines[2:]] == [["red", "100.0%"], ["green", "20.0%"], ["blue", "0.0%"]]


def test_predict_photo_as_json(headway: Headway, photo: Path) -> None:
    answer = json.loads(headway("predict", "colour", photo, "--json", "--top-k", 1).out)
    assert answer == {
        "model": "colour",
        "version": "1.0.0",
        "results": [[{"label": "red", "index": 0, "confidence": 1.0}]],
    }


def test_predict_photo_from_stdin(headway: Headway, photo: Path) -> None:
    done = headway("predict", "colour", "-", stdin=photo.read_bytes())
    assert done.code == 0
    assert "red" in done.out


def test_predict_rows(headway: Headway, rows: Path) -> None:
    answer = json.loads(headway("predict", "scores@canary", rows, "--json", "--top-k", 1).out)
    assert answer["version"] == "1.10.0"
    assert [[item["label"] for item in row] for row in answer["results"]] == [["middle"], ["low"]]
    table = headway("predict", "scores", rows).out
    assert "middle" in table
    assert "100.0%" in table


@pytest.mark.parametrize("text", ['{"inputs": [[1, 2, 3]]}', '{"x": [[1, 2, 3]]}', "[[1, 2, 3]]", "[1, 2, 3]"])
def test_predict_numbers_in_every_form(headway: Headway, text: str) -> None:
    answer = json.loads(headway("predict", "sum", "-", "--json", stdin=text.encode()).out)
    assert answer["results"] == [6.0]


def test_predict_regression_of_several_rows(headway: Headway, rows: Path) -> None:
    assert json.loads(headway("predict", "sum", rows, "--json").out)["results"] == [0.75, 1.0]
    done = headway("predict", "sum", rows)
    assert (done.code, done.err) == (0, "")
    assert [line.split() for line in done.out.splitlines()[2:]] == [["0", "0.75"], ["1", "1.0"]]


def test_predict_plain_tensors(headway: Headway) -> None:
    given = b'{"a": [[1, 2]], "b": [[3e38, 3e38]]}'
    answer = json.loads(headway("predict", "two_inputs", "-", "--json", stdin=given).out)
    assert answer["results"][0]["total"][0][1] == pytest.approx(3e38)
    given = b'{"a": [[3e38, 2]], "b": [[3e38, 4]]}'
    answer = json.loads(headway("predict", "two_inputs", "-", "--json", stdin=given).out)
    assert answer["results"] == [{"total": [[None, 6.0]]}]  # JSON has no infinity
    assert headway("predict", "two_inputs", "-", stdin=given).code == 0


def test_predict_strings(headway: Headway) -> None:
    done = headway("predict", "echo", "-", "--json", stdin='["grün", "[bold]"]'.encode())
    assert json.loads(done.out)["results"] == [{"echoed": ["grün", "[bold]"] * 2}]
    assert "[bold]" in headway("predict", "echo", "-", stdin=b'["[bold]"]').out


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (("nothing", "-"), b"[[1]]", "there is no model 'nothing'"),
        (("scores@7.0.0", "-"), b"[[1]]", "has no version 7.0.0"),
        (("scores", "-"), b"[[1, 2]]", "has shape [1, 2]; it takes [n, 3]"),
        (("scores", "-"), b"[[1, 2], [3]]", "ragged"),
        (("scores", "-"), b"not JSON", "this model takes numbers: a JSON file like [[0, 1, 2]]"),
        (("scores", "-"), b"\xff", "this model takes numbers"),
        (("scores", "-"), b"[" * 100_000, "this model takes numbers"),
        (("scores", "-"), b"[[NaN, 0, 0]]", "NaN"),
        (("colour", "-"), b"no image", "this is not an image that can be read"),
        (("colour", "-"), b"", "the image is empty"),
        (("colour", "nowhere.png"), b"", "nowhere.png: cannot be read (No such file or directory)"),
        (("colour", "/"), b"", "/: cannot be read (Is a directory)"),
    ],
)
def test_predict_failure_is_one_line_on_stderr(
    headway: Headway, arguments: tuple[str, ...], stdin: bytes, message: str
) -> None:
    done = headway("predict", *arguments, stdin=stdin, COLUMNS="400")
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_predict_misuse(headway: Headway) -> None:
    for arguments in (("scores",), ("scores", "-", "--top-k", "0"), ("scores", "-", "--top-k", "many")):
        done = headway("predict", *arguments)
        assert (done.code, done.out) == (2, "")


def test_wrong_setting_is_misuse_and_named(headway: Headway) -> None:
    done = headway("predict", "scores", "-", HEADWAY_PORT="http", COLUMNS="400")
    assert (done.code, done.out) == (2, "")
    assert "HEADWAY_PORT: " in done.err
    assert "(it says 'http')" in done.err


def test_reader_that_leaves_gets_no_traceback(root: Path) -> None:
    command = [sys.executable, "-m", "app.cli.main", "models", "list", "--json"]
    with subprocess.Popen(command, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() in (0, 1)
    assert b"Traceback" not in errors


def test_version_and_help(headway: Headway) -> None:
    done = headway("--version")
    assert done.code == 0
    assert done.out.startswith("headway 0.")
    done = headway("--help")
    assert done.code == 0
    assert all(command in done.out for command in ("serve", "predict", "evaluate", "models"))
