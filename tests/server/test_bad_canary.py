"""Canaries on real servers of two workers: bad ones lose their traffic without anybody looking, good ones keep it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from onnx import helper

from app.registry.releases.changes import SetAlias
from app.registry.releases.editor import Note, ReleaseEditor
from app.registry.store import Store
from tests.fixtures_models import onnx_file, write_model, write_release
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

# Only minutes that are over are judged.
JUDGE_PATIENCE_SECONDS = 180

STABLE, CANARY = "1.0.0", "2.0.0"
# What lookup finds beyond 2 in a table of four; in one of three the run fails.
BEYOND = 3
ASKED = 400


def write_lookup(root: Path, name: str, version: str, table: list[float]) -> None:
    """The kind `lookup` with another table."""
    node = helper.make_node("Gather", ["table", "at"], ["found"])
    constants = {"table": np.array(table, np.float32)}
    data = onnx_file([node], [("at", "INT64", [-1])], [("found", "FP32", [-1])], constants)
    write_model(root, name, version, kind="lookup", files={"model.onnx": data})


def write_contrary(root: Path, name: str, version: str) -> None:
    """The kind `scores` with the opposite answer: the lowest is the best."""
    node = helper.make_node("Neg", ["x"], ["scores"])
    data = onnx_file([node], [("x", "FP32", [-1, 3])], [("scores", "FP32", [-1, 3])])
    write_model(root, name, version, files={"model.onnx": data})


def write_registry(root: Path) -> Path:
    """`failing`'s canary fails, `contrary`'s is wrong, `equal`'s is as good; all released two minutes ago."""
    for name, table in (("failing", [10.0, 20, 30]), ("equal", [10.0, 20, 30, 40])):
        write_lookup(root, name, STABLE, [10.0, 20, 30, 40])
        write_lookup(root, name, CANARY, table)
    write_model(root, "contrary", STABLE)
    write_contrary(root, "contrary", CANARY)
    # So that the minute that runs now is a full one of these releases.
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=2)
    for name in ("failing", "contrary", "equal"):
        write_release(root, name, STABLE)
        ReleaseEditor(Store(root)).change(name, SetAlias("canary", CANARY, 50), Note("ann", "try it", at))
    return root


def wait_for(claim: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    limit = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < limit, what
        time.sleep(0.2)


def ask(server: RunningServer, model: str, inputs: Any) -> httpx.Response:
    # A connection of its own each time: any of the workers may get it.
    content = {"model": model, "inputs": inputs}
    return server.client.post(f"{server.url}/predict", json=content, headers={"connection": "close"})


def get(server: RunningServer, path: str) -> Any:
    return server.client.get(server.url + path).raise_for_status().json()


def read_release(root: Path, model: str) -> Any:
    return yaml.safe_load((root / model / "release.yaml").read_text())


def weight(root: Path, model: str) -> float:
    return float(read_release(root, model)["aliases"]["canary"]["weight"])


def gauge(server: RunningServer, model: str) -> float | None:
    """headway_canary_should_roll_back of its canary; None where nobody has judged it."""
    wanted = f'headway_canary_should_roll_back{{alias="canary",model="{model}",version="{CANARY}"}}'
    for line in server.client.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith(wanted):
            return float(line.split()[-1])
    return None


def messages(server: RunningServer, words: str) -> list[str]:
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if words in line.get("message", "")]


def give_feedback(server: RunningServer) -> None:
    """Asks `contrary` and says of each answer that the highest would have been right."""
    entries = []
    for number in range(ASKED):
        row = np.roll([0.1, 0.2, 0.7], number)
        answer = ask(server, "contrary", [row.tolist()]).json()
        label = ("low", "middle", "high")[int(row.argmax())]
        entries.append({"prediction_id": answer["results"][0]["prediction_id"], "label": label})
    given = server.client.post(f"{server.url}/feedback", json={"feedback": entries})
    assert {result["status"] for result in given.json()["results"]} == {"recorded"}, given.text


@dataclass
class Served:
    """A server with its registry, and how often each status was answered to the callers of `failing`."""

    server: RunningServer
    root: Path
    statuses: Counter[int] = field(default_factory=Counter)

    def send(self) -> None:
        give_feedback(self.server)
        for number in range(ASKED):
            self.statuses[ask(self.server, "failing", [BEYOND if number % 2 else 1]).status_code] += 1
            assert ask(self.server, "equal", [BEYOND]).status_code == 200


@contextlib.contextmanager
def serving(folder: Path, *, is_writable: bool) -> Iterator[Served]:
    root = write_registry(folder / "models")
    directories = [path for path in (root, *root.rglob("*")) if path.is_dir()]
    for path in directories if not is_writable else ():
        os.chmod(path, 0o555)
    try:
        with running_server(folder / "log", heeds_rights=not is_writable, HEADWAY_MODELS=str(root)) as server:
            yield Served(server, root)
    finally:
        for path in directories:
            os.chmod(path, 0o755)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    """One that may write its registry and one that may not, after traffic, once bad canaries were found in both."""
    writable, fixed = tmp_path_factory.mktemp("writable"), tmp_path_factory.mktemp("fixed")
    with serving(writable, is_writable=True) as first, serving(fixed, is_writable=False) as second:
        for served in (first, second):
            served.send()
        wait_for(
            lambda: all(
                weight(first.root, name) == 0 and gauge(second.server, name) == 1 for name in ("failing", "contrary")
            ),
            "the verdicts",
            JUDGE_PATIENCE_SECONDS,
        )
        yield first, second


@pytest.fixture
def writable(judged: tuple[Served, Served]) -> Served:
    return judged[0]


@pytest.fixture
def fixed(judged: tuple[Served, Served]) -> Served:
    return judged[1]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("failing", f"canary {CANARY} fails "),
        ("contrary", f"canary {CANARY} is wrong in 100 % of "),
    ],
)
def test_bad_canary_loses_its_traffic(writable: Served, model: str, why: str) -> None:
    found = read_release(writable.root, model)
    assert found["aliases"] == {"stable": {"version": STABLE}, "canary": {"version": CANARY, "weight": 0}}
    assert found["changed"]["by"] == "headway canary judge"
    assert found["changed"]["why"].startswith(why)
    assert "p < 0.001" in found["changed"]["why"]
    assert (found["revision"], found["history"][0]["by"], found["history"][0]["why"]) == (2, "ann", "try it")
    assert get(writable.server, f"/models/{model}/canaries")["canaries"] == []
    wait_for(lambda: gauge(writable.server, model) == 0, "the gauge")
    (line,) = messages(writable.server, f"model {model}: rolled back, gets no traffic any more: {why}")
    assert line.endswith(found["changed"]["why"])


def test_all_answers_are_stables_after_that(writable: Served) -> None:
    server = writable.server
    assert writable.statuses.keys() == {200, 500}

    def has_new(name: str) -> bool:
        model = get(server, f"/models/{name}")
        return bool(model["has_converged"]) and model["revision"] == read_release(writable.root, name)["revision"]

    wait_for(lambda: has_new("failing") and has_new("contrary"), "both workers have the new releases")
    answers = [ask(server, "failing", [BEYOND]) for _ in range(100)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["version"] for answer in answers} == {STABLE}
    assert {ask(server, "contrary", [[0.1, 0.2, 0.7]]).json()["version"] for _ in range(50)} == {STABLE}
    # Who wants to look into it still can.
    assert ask(server, "failing@canary", [BEYOND]).status_code == 500


@pytest.mark.parametrize("which", [0, 1], ids=["writable", "fixed"])
def test_canary_that_is_as_good_keeps_its_traffic(judged: tuple[Served, Served], which: int) -> None:
    served = judged[which]

    def compare() -> Any:
        (found,) = get(served.server, "/models/equal/canaries")["canaries"]
        return found

    wait_for(lambda: min(compare()["requests"].values()) >= 100, "enough minutes are over", JUDGE_PATIENCE_SECONDS)
    assert not compare()["is_worse"]
    assert weight(served.root, "equal") == 50
    assert read_release(served.root, "equal")["changed"]["by"] == "ann"
    assert gauge(served.server, "equal") == 0
    assert {ask(served.server, "equal", [1]).json()["version"] for _ in range(60)} == {STABLE, CANARY}


@pytest.mark.parametrize("model", ["failing", "contrary"])
def test_registry_that_cannot_be_written_is_told_what_to_commit(fixed: Served, model: str) -> None:
    found = read_release(fixed.root, model)
    assert (found["revision"], found["changed"]["by"], found["aliases"]["canary"]["weight"]) == (1, "ann", 50)
    (judged,) = get(fixed.server, f"/models/{model}/canaries")["canaries"]
    assert judged["is_worse"]
    (line,) = messages(fixed.server, f"commit in {model}/release.yaml")
    assert line.startswith(f"model {model}: canary {CANARY} ")
    assert "cannot be changed here" in line
    assert line.endswith("aliases.canary.weight: 0")
    assert gauge(fixed.server, model) == 1
