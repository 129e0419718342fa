"""The guides for those who come from other servers: what they name exists, and their commands work as they stand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import helper
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import Settings
from tests.fixtures_models import onnx_file
from tests.running import ROOT, running_server

# MLServer's, and one of the management listener.
_ELSEWHERE = {("GET", "/v2/docs"), ("POST", "/update")}
GUIDES = sorted((ROOT / "docs/guides").glob("migrating-from-*.md"))


def commands_of(page: str) -> list[list[str]]:
    """The words of every command of ours, in blocks and between words."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    lines = re.findall(r"^headway .*$", blocks, re.MULTILINE)
    return [*map(str.split, lines), *between_words(page)]


def between_words(page: str) -> list[list[str]]:
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return [line.split() for line in re.findall(r"`(headway [^`]+)`", prose)]


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command, and what it is given."""
    command: Any = get_command(cli)
    rest = words[1:]
    while hasattr(command, "commands") and rest:
        if command.name == "profile":  # `headway profile MODEL` has a longer form
            rest = ["measure", *rest]
        assert rest[0] in command.commands, words
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_commands_and_flags_exist(guide: Path) -> None:
    found = commands_of(guide.read_text(encoding="utf-8"))
    assert found
    for words in found:
        command, rest = resolve(words)
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= flags, words


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_settings_exist(guide: Path) -> None:
    named = set(re.findall(r"HEADWAY_([A-Z_]+)", guide.read_text(encoding="utf-8")))
    assert named <= {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_routes_exist(client: httpx.Client, guide: Path) -> None:
    """Whatever such a route answers, the route is there: an unknown one is 404 `not_found`."""
    page = guide.read_text(encoding="utf-8")
    routes = re.findall(r"(GET|POST) (/[A-Za-z0-9/:._-]+)", page)
    routes += [("GET", path) for path in re.findall(r"127\.0\.0\.1:\d+(/[a-z0-9/_]+)$", page, re.MULTILINE)]
    for method, path in set(routes) - _ELSEWHERE:
        answer = client.request(method, path)
        assert answer.status_code != 405, (method, path)
        assert answer.status_code != 404 or answer.json()["code"] != "not_found", (method, path)


# The converter needs TensorFlow.
_NOT_RUN = {
    "pip install tf2onnx",
    "python -m tf2onnx.convert --saved-model /models/half_plus_three/123 --output model.onnx --opset 17",
}


@pytest.fixture
def triton(tmp_path: Path) -> Path:
    """Two versions of a network of images in Triton's layout; a request; a new network with its labels."""
    for version in (1, 2):
        directory = tmp_path / "model_repository" / "resnet" / str(version)
        directory.mkdir(parents=True)
        (directory / "model.onnx").write_bytes(_mean_of_channels(version))
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "grey.json").write_text(json.dumps(np.full((1, 3, 8, 8), 0.5).tolist()))
    (tmp_path / "model.onnx").write_bytes(_mean_of_channels(3))
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    return tmp_path


@pytest.fixture
def tf_serving(tmp_path: Path) -> Path:
    """What the converter makes of TensorFlow Serving's half_plus_three."""
    nodes = [helper.make_node("Mul", ["x", "half"], ["halved"]), helper.make_node("Add", ["halved", "three"], ["y"])]
    constants = {"half": np.array(0.5, np.float32), "three": np.array(3, np.float32)}
    (tmp_path / "model.onnx").write_bytes(onnx_file(nodes, [("x", "FP32", [-1])], [("y", "FP32", [-1])], constants))
    return tmp_path


@pytest.fixture
def mlserver(tmp_path: Path) -> Path:
    """What the guide's own lines make of a classifier of scikit-learn."""
    rows, classes = load_iris(return_X_y=True)
    rows = rows.astype(np.float32)
    (block,) = re.findall(r"```python\n(.*?)```", _page("mlserver"), re.DOTALL)
    with contextlib.chdir(tmp_path):
        exec(block, {"classifier": DecisionTreeClassifier(random_state=0).fit(rows, classes), "rows": rows})
    return tmp_path


def _page(server: str) -> str:
    return (ROOT / f"docs/guides/migrating-from-{server}.md").read_text(encoding="utf-8")


def _mean_of_channels(scale: float) -> bytes:
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scores"]),
    ]
    inputs, outputs = [("image", "FP32", [-1, 3, 8, 8])], [("scores", "FP32", [-1, 3])]
    return onnx_file(nodes, inputs, outputs, {"scale": np.array(scale, np.float32)})


def test_commands_of_the_triton_guide_work(triton: Path) -> None:
    page = _page("triton")
    told = _run_steps(page, triton)
    assert (told["name"], told["versions"], told["inputs"][0]["shape"]) == ("resnet", ["1"], [-1, 3, 8, 8])
    (first,) = re.findall(r"^headway models add .*$", page, re.MULTILINE)
    _run(first.replace("/1/", "/2/").replace("--version 1", "--version 2"), triton)
    _run_the_rest(page, triton, "resnet", ["1", "2"])


def test_commands_of_the_tf_serving_guide_work(tf_serving: Path) -> None:
    page = _page("tf-serving")
    assert _run_steps(page, tf_serving) == {"predictions": [3.5, 4.0, 5.5]}
    _run_the_rest(page, tf_serving, "half_plus_three", ["124"])  # which the rollback brought back


def test_commands_of_the_mlserver_guide_work(mlserver: Path) -> None:
    page = _page("mlserver")
    told = _run_steps(page, mlserver)
    assert (told["name"], [one["name"] for one in told["outputs"]]) == ("iris", ["label", "probabilities"])
    _run_the_rest(page, mlserver, "iris", ["1.0.0"])


def _run_steps(page: str, work: Path) -> Any:
    """The block of commands, each line as it stands there but for the ports; returns what curl was answered."""
    (block,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = [line for line in block.splitlines() if line not in _NOT_RUN]
    assert [line.split()[0] for line in lines[-2:]] == ["headway", "curl"]
    for line in lines[:-2]:
        _run(line, work)
    with _serving(work, shlex.split(lines[-2])[2:]) as url:
        curl = re.sub(r"http://127\.0\.0\.1:\d+", url, lines[-1]).replace("curl", "curl -sS --fail-with-body", 1)
        return json.loads(_run(curl, work))


def _run_the_rest(page: str, work: Path, model: str, versions: list[str]) -> None:
    """The commands between the words, in their order; `headway serve` once, with all flags that are named."""
    flags: list[str] = []
    for words in between_words(page):
        if words[:2] == ["headway", "serve"]:
            flags += words[2:]
        elif resolve(words)[1]:  # else the command is only spoken of
            name = "another" if words[1:3] == ["models", "add"] and "--version" not in words else model
            _run(" ".join(words).replace("NAME", name), work)
    given = {"DIR": str(work / "models"), "N": "1"}
    with _serving(work, [given.get(flag, flag) for flag in flags]) as url:
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        assert sorted(httpx.get(f"{url}/v2/models/{model}").json()["versions"]) == versions


@contextlib.contextmanager
def _serving(work: Path, flags: list[str]) -> Iterator[str]:
    free = ["0" if before.endswith("port") else flag for before, flag in zip(["", *flags], flags, strict=False)]
    with running_server(work / "log", *free, workers=1, HEADWAY_MODELS=str(work / "models")) as server:
        yield server.url


def _run(line: str, work: Path) -> str:
    """What a line prints on stdout; that of ours runs in this process."""
    if line.startswith("headway "):
        unset: Mapping[str, str | None] = {name: None for name in os.environ if name.startswith("HEADWAY_")}
        with contextlib.chdir(work):
            done = CliRunner().invoke(cli, shlex.split(line)[1:], env=unset, catch_exceptions=False)
        assert done.exit_code == 0, (line, done.stderr)
        return done.stdout
    shell = subprocess.run(["sh", "-c", line], cwd=work, capture_output=True, text=True, check=False)
    assert shell.returncode == 0, (line, shell.stdout, shell.stderr)
    return shell.stdout
