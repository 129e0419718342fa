"""What real workers count of a model with a canary: all of it, once, and nothing else; and the database may be away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import helper

from app.storage.counts import CountsStore
from app.storage.database import open_database
from tests.fixtures_models import onnx_file, write_model, write_release
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

STABLE, CANARY = "1.0.0", "2.0.0"
ENDLESS = 10**15
CALLERS = 8
# (version, alias) of a good answer, or the code of a refusal.
Outcome = tuple[str, str] | str


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`m`'s canary fails at 3, `slow` and `probe` have one as good as stable, `plain` has none."""
    root = tmp_path_factory.mktemp("tallies") / "models"
    node = helper.make_node("Gather", ["table", "at"], ["found"])
    table = {"table": np.array([10, 20, 30, 40], np.float32)}
    data = onnx_file([node], [("at", "INT64", [-1])], [("found", "FP32", [-1])], table)
    write_model(root, "m", STABLE, kind="lookup", files={"model.onnx": data})
    write_model(root, "m", CANARY, kind="lookup")
    for name, kind in (("slow", "count"), ("probe", "lookup")):
        for version in (STABLE, CANARY):
            write_model(root, name, version, kind=kind)
    write_model(root, "plain", kind="lookup")
    for name in ("m", "slow", "probe"):
        write_release(root, name, STABLE, aliases={"canary": {"version": CANARY, "weight": 30}})
    return root


def wait_for(claim: Callable[[], Any], what: str) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not claim():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def ask(server: RunningServer, model: str, inputs: Any, **headers: str) -> Outcome:
    # A connection of its own each time, so that any worker may get it.
    content = {"model": model, "inputs": inputs}
    answer = server.client.post(f"{server.url}/predict", json=content, headers={"connection": "close", **headers})
    found = answer.json()
    return (found["version"], found["alias"] or "") if answer.status_code == 200 else str(found["code"])


def ask_all(server: RunningServer, calls: list[tuple[str, Any]], **headers: str) -> Counter[Outcome]:
    """Many at a time, so that both workers have something to do."""
    with ThreadPoolExecutor(CALLERS) as pool:
        return Counter(pool.map(lambda call: ask(server, *call, **headers), calls))


def read_totals(data_dir: Path, model: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Answered and failed, by version and alias, of all that was ever written."""
    with open_database(None, data_dir) as database:
        rows = CountsStore(database).requests(model, 0, 2**53)
    return {(row.version, row.alias): (row.answered, row.failed) for row in rows}


def read_writers(data_dir: Path, model: str) -> dict[str, int]:
    """The answered of each process."""
    found: Counter[str] = Counter()
    if (data_dir / "headway.db").exists():
        query = "SELECT writer, counts FROM request_counts WHERE model = ?"
        with open_database(None, data_dir) as database, database.reading() as connection:
            for writer, counts in connection.exec_driver_sql(query, (model,)):
                found[writer] += json.loads(counts)["answered"][0]
    return found


def wait_for_writers(server: RunningServer, count: int) -> None:
    """Until so many workers, with those that are gone, have written what they count; each counts all models or none."""

    def is_written() -> bool:
        ask_all(server, [("probe", [1])] * CALLERS)
        return len(read_writers(server.data_dir, "probe")) == count

    wait_for(is_written, f"{count} workers have counted")


def read_metric(server: RunningServer, *wanted: str) -> float:
    """The sum of all series whose line has all of these."""
    lines = server.client.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if all(part in line for part in wanted))


def leave(server: RunningServer, model: str, inputs: Any) -> None:
    """A caller that does not wait for its answer; returns when the server has noticed."""
    address = httpx.URL(server.url)
    body = json.dumps({"model": model, "inputs": inputs}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    name = f'model="{model}"'
    before = read_metric(server, "headway_requests_total{", 'code="499"', name)
    with socket.create_connection((address.host, address.port or 0), PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: read_metric(server, "headway_in_flight_requests{", name) == 1, "it is being answered")
    wait_for(
        lambda: read_metric(server, "headway_requests_total{", 'code="499"', name) == before + 1, "it is known as left"
    )


def test_answers_are_counted_once_and_nothing_else_is(models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", "--threads", "1", HEADWAY_MODELS=str(models)) as server:
        wait_for_writers(server, 2)
        unaddressed: list[tuple[str, Any]] = [("m", [number % 4]) for number in range(240)]
        addressed = [(f"m@{name}", [1]) for name in ("canary", STABLE, CANARY) for _ in range(10)]
        wrong = [("m", ["x"]), ("m", [[1, 2]]), ("m@9.9.9", [1]), ("m@nobody", [1])] * 5
        answers = ask_all(server, [*unaddressed, *addressed, *wrong])
        assert set(ask_all(server, [("plain", [1])] * 20)) == {(STABLE, "stable")}
        for _ in range(3):
            leave(server, "slow", {"to": ENDLESS})
        waited: Counter[Outcome] = Counter()
        steps = 20_000
        limit = time.monotonic() + PATIENCE_SECONDS
        while not waited["overloaded"]:
            assert time.monotonic() < limit, waited
            waited += ask_all(server, [("slow", {"to": steps})] * 40, **{"Headway-Timeout-Ms": "150"})
            steps += steps // 2  # until it is too much for this machine
        assert server.stop() == 0  # what was not written yet is written now
    failed = answers.pop("run_failed")
    assert failed > 0
    refused = sum(count for outcome, count in answers.items() if isinstance(outcome, str))
    assert refused == len(wrong)
    expected = {outcome: (count, 0) for outcome, count in answers.items() if not isinstance(outcome, str)}
    # Who names the canary has chosen it, and says nothing of it beside those for whom it was drawn.
    expected[CANARY, "canary"] = (expected[CANARY, "canary"][0] + failed - 10, failed)
    expected[CANARY, ""] = (expected[CANARY, ""][0] + 10, 0)
    assert read_totals(server.data_dir, "m") == expected
    assert expected.keys() == {(STABLE, "stable"), (CANARY, "canary"), (STABLE, ""), (CANARY, "")}
    assert read_totals(server.data_dir, "plain") == {}
    good = sum(count for outcome, count in waited.items() if not isinstance(outcome, str))
    late = waited["deadline_exceeded"]
    assert good + late + waited["overloaded"] == waited.total()
    totals = read_totals(server.data_dir, "slow").values()
    assert (sum(answered for answered, _ in totals), sum(failed for _, failed in totals)) == (good, 0)


@pytest.mark.slow
def test_worker_that_is_killed_takes_nothing_back(models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", HEADWAY_MODELS=str(models)) as server:
        wait_for_writers(server, 2)
        before = ask_all(server, [("m", [1])] * 200).total()
        wait_for(lambda: sum(read_writers(server.data_dir, "m").values()) == before, "all is written")
        written = read_writers(server.data_dir, "m")
        after = ask_all(server, [("m", [1])] * 100).total()
        victim = server.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(server.worker_pids()) == 2 and victim not in server.worker_pids(), "another worker")
        wait_for_writers(server, 3)  # under a name of its own
        late = ask_all(server, [("slow", {"to": 1})] * 50)
        assert server.stop() == 0
    found = read_writers(server.data_dir, "m")
    assert all(found[writer] >= count for writer, count in written.items())
    assert before <= sum(found.values()) <= before + after
    assert sum(answered for answered, _ in read_totals(server.data_dir, "slow").values()) == late.total()


def test_no_database_is_made_for_nothing(tmp_path: Path) -> None:
    """Without baseline, canary and feedback, and with a canary that gets no traffic."""
    root = tmp_path / "models"
    for version in (STABLE, CANARY):
        write_model(root, "m", version, kind="lookup")
    write_release(root, "m", STABLE, aliases={"canary": {"version": CANARY, "weight": 0}})
    with running_server(tmp_path / "log", HEADWAY_MODELS=str(root)) as server:
        limit = time.monotonic() + 3  # workers have looked what to count by then, and would write it at their end
        while time.monotonic() < limit:
            ask_all(server, [("m", [1]), ("m@canary", [1])] * 10)
        assert server.stop() == 0
    assert not list(server.data_dir.glob("headway.db*"))


@contextlib.contextmanager
def silence() -> Iterator[int]:
    """The port of somebody who takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextlib.contextmanager
def lost_database(how: str, folder: Path) -> Iterator[dict[str, str]]:
    """The settings of a server whose counts cannot be written."""
    if how == "closed port":
        yield {"HEADWAY_DATABASE_URL": f"postgresql://u:Sesame@127.0.0.1:{closed_port()}/d"}
    elif how == "silent port":
        with silence() as port:
            yield {"HEADWAY_DATABASE_URL": f"postgresql://u:Sesame@127.0.0.1:{port}/d"}
    elif how == "read-only directory":
        (folder / "fixed").mkdir(mode=0o555)
        yield {"HEADWAY_DATA_DIR": str(folder / "fixed")}
    else:
        (folder / "data").mkdir()
        (folder / "data/headway.db").write_bytes(b"no database" * 1000)
        yield {}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed port", "silent port", "read-only directory", "damaged file"])
def test_predictions_go_on_without_the_database(models: Path, tmp_path: Path, how: str) -> None:
    def told(words: str) -> list[str]:
        lines = [line for line in server.log.read_text().splitlines() if words in line]
        return [json.loads(line)["message"] for line in lines]

    with (
        lost_database(how, tmp_path) as environment,
        running_server(tmp_path / "log", heeds_rights=True, HEADWAY_MODELS=str(models), **environment) as server,
    ):
        seen: Counter[Outcome] = Counter()

        def is_told() -> bool:
            seen.update(ask_all(server, [("m", [1])] * CALLERS))
            return len(told("counts cannot be kept")) == server.workers

        wait_for(is_told, "the failure is told")
        seen.update(ask_all(server, [("m", [1])] * 50))
        assert seen.keys() == {(STABLE, "stable"), (CANARY, "canary")}
        assert server.stop() == 0  # and tries to write once more
        assert "did not end in time" not in server.log.read_text()
        lines = told("counts cannot be kept")
        assert len(lines) == server.workers, lines
        assert "Sesame" not in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def test_counting_begins_with_the_first_request(models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", HEADWAY_MODELS=str(models)) as server:
        answers = ask_all(server, [("m", [1])] * 40)
        assert server.stop() == 0
    assert read_totals(server.data_dir, "m") == {outcome: (count, 0) for outcome, count in answers.items()}
