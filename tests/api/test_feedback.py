"""POST /feedback and GET /models/{name}/quality, on real servers of two workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tests.fixtures_models import write_model, write_yaml
from tests.fixtures_postgresql import Postgresql
from tests.fixtures_postgresql import postgresql as postgresql
from tests.running import PATIENCE_SECONDS, ROOT, RunningServer, running_server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("feedback") / "models"
    for name in ("scores", "never-asked", "bulk", "single"):
        write_model(root, name)
    write_model(root, "regression", kind="sum")
    write_yaml(root / "registry.yaml", {"schema": 1, "defaults": {"tensor": "scores"}})
    return root


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two workers that share one database."""
    environment = {"HEADWAY_MODELS": str(models)}
    if request.param == "postgresql":
        environment["HEADWAY_DATABASE_URL"] = request.getfixturevalue("postgresql").new_url()
        upgrade = [sys.executable, "-m", "app.cli.main", "db", "upgrade"]
        subprocess.run(upgrade, env=os.environ | environment, cwd=ROOT, check=True, capture_output=True)
    with running_server(tmp_path_factory.mktemp("server") / "log", **environment) as server:
        yield server


def predict(server: RunningServer, rows: Any, model: str = "scores", **more: Any) -> list[Any]:
    content = {"inputs": rows, "model": model, **more}
    answer = httpx.post(f"{server.url}/predict", json=content, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def give(server: RunningServer, **content: Any) -> httpx.Response:
    # A connection of its own each time: any of the workers may get it.
    return httpx.post(f"{server.url}/feedback", json=content, timeout=PATIENCE_SECONDS)


def count(server: RunningServer, model: str, outcome: str) -> float:
    """What all workers have counted."""
    found = 0.0
    for line in httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text.splitlines():
        if line.startswith("headway_feedback_total{") and f'model="{model}"' in line and f'outcome="{outcome}"' in line:
            found += float(line.split()[-1])
    return found


def labels_of(server: RunningServer, model: str = "scores") -> list[str]:
    return list(httpx.get(f"{server.url}/models/{model}/1.0.0", timeout=PATIENCE_SECONDS).json()["labels"])


def test_feedback_is_recorded_once(server: RunningServer) -> None:
    """The same again does no harm, another is refused; whichever worker gets it."""
    (answer,) = predict(server, [[0.1, 0.7, 0.2]], "single")
    truth = {"prediction_id": answer["prediction_id"], "label": labels_of(server)[1], "rating": 4}
    first = give(server, **truth).json()
    assert (first["status"], first["outcome"], first["version"]) == ("recorded", "correct", "1.0.0")
    for _ in range(6):
        again = give(server, **truth)
        assert (again.status_code, again.json()["status"]) == (200, "repeated")
    other = give(server, **truth | {"label": labels_of(server)[0]})
    assert (other.status_code, other.json()["code"]) == (409, "double_feedback")
    assert (count(server, "single", "correct"), count(server, "single", "incorrect")) == (1, 0)


def test_kinds_of_wrong_feedback_are_told_apart(server: RunningServer) -> None:
    (answer,) = predict(server, [[0.1, 0.7, 0.2]])
    token = answer["prediction_id"]
    label = labels_of(server)[0]
    cases: list[tuple[dict[str, Any], int, str, str]] = [
        ({"prediction_id": token[:-6] + "AAAAAA", "label": label}, 400, "forged_prediction", "not signed by this"),
        ({"prediction_id": "x", "label": label}, 400, "forged_prediction", "not signed by this"),
        ({"prediction_id": token, "label": "nothing"}, 400, "unknown_label", "'nothing' is no label of scores@1.0.0"),
        ({"prediction_id": token, "value": 1.5}, 400, "bad_content", "send the true one as label"),
        ({"prediction_id": token}, 422, "malformed_request", "send label (or value), rating, or both"),
        ({"prediction_id": token, "rating": 6}, 422, "malformed_request", "rating: "),
        ({"prediction_id": token, "label": label, "value": 1}, 422, "malformed_request", "not both"),
        ({"prediction_id": token, "lable": label}, 422, "malformed_request", "unknown key 'lable'"),
        ({"feedback": []}, 422, "malformed_request", "feedback: "),
        ({"feedback": [{"prediction_id": token}] * 1001}, 422, "malformed_request", "feedback"),
    ]
    for content, status, code, words in cases:
        refused = give(server, **content)
        assert (refused.status_code, refused.json()["code"]) == (status, code), content
        assert words in refused.json()["error"]
    for body in (b"", b"[]", b"{", b"\xff", b'{"prediction_id": NaN}', b"[" * 100_000):
        refused = httpx.post(f"{server.url}/feedback", content=body, timeout=PATIENCE_SECONDS)
        assert (refused.status_code, refused.json()["code"]) == (422, "malformed_request")


def test_many_at_once_keep_their_order(server: RunningServer) -> None:
    """One bad entry spoils none of its neighbours; the quality is scikit-learn's."""
    generator = np.random.default_rng(7)
    rows = generator.dirichlet((1, 1, 1), 60)
    actual = generator.integers(0, 3, 60)
    labels = labels_of(server)
    answers = predict(server, rows.tolist(), "bulk")
    entries = [
        {"prediction_id": answer["prediction_id"], "label": labels[index], "rating": 5}
        for answer, index in zip(answers, actual, strict=True)
    ]
    given = give(server, feedback=[*entries[:30], {"prediction_id": "bad", "label": "a"}, *entries[30:], entries[0]])
    assert given.status_code == 200
    results = given.json()["results"]
    assert results.pop(30)["code"] == "forged_prediction"
    assert [result["status"] for result in results] == ["recorded"] * 60 + ["repeated"]
    predicted = rows.argmax(axis=1)
    assert [result["outcome"] == "correct" for result in results[:60]] == (predicted == actual).tolist()
    found = httpx.get(f"{server.url}/models/bulk/quality", timeout=PATIENCE_SECONDS).json()
    (group,) = found["groups"]
    assert (group["version"], group["alias"], group["n"]) == ("1.0.0", "stable", 60)
    assert group["classification"]["accuracy"] == pytest.approx(accuracy_score(actual, predicted))
    assert group["classification"]["macro_f1"] == pytest.approx(f1_score(actual, predicted, average="macro"))
    assert group["ratings"] == {"n": 60, "mean": 5.0}
    assert sum(cell["count"] for cell in group["classification"]["confusion"]) == 60
    assert {entry["label"] for entry in group["classification"]["classes"]} == set(labels)
    assert give(server, feedback=[{"prediction_id": "bad", "label": "a"}]).status_code == 400


def test_answers_of_a_pinned_version_are_counted_apart(server: RunningServer) -> None:
    for model in ("scores", "scores@1.0.0"):
        (answer,) = predict(server, [[0.1, 0.2, 0.7]], model)
        assert give(server, prediction_id=answer["prediction_id"], label=labels_of(server)[2]).status_code == 200
    url = f"{server.url}/models/scores/quality"
    groups = httpx.get(url, params={"last": 10}, timeout=PATIENCE_SECONDS).json()["groups"]
    assert sorted((group["alias"] or "", group["n"]) for group in groups) == [("", 1), ("stable", 1)]
    only = httpx.get(url, params={"alias": "stable"}, timeout=PATIENCE_SECONDS).json()["groups"]
    assert [group["alias"] for group in only] == ["stable"]


def test_quality_that_cannot_be_told(server: RunningServer) -> None:
    ask = httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS)
    with ask:
        assert ask.get("/models/never-asked/quality").json()["groups"] == []
        assert ask.get("/models/nobody/quality").json()["code"] == "model_not_found"
        both = ask.get("/models/scores/quality", params={"last": 5, "hours": 1})
        assert (both.status_code, both.json()["error"]) == (400, "give last or hours, not both")
        assert ask.get("/models/scores/quality", params={"hours": -1}).status_code == 422


def test_regression_takes_values(server: RunningServer) -> None:
    answers = predict(server, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "regression")
    truths = [answer["value"] + 1 for answer in answers]
    entries = [
        {"prediction_id": answer["prediction_id"], "value": truth}
        for answer, truth in zip(answers, truths, strict=True)
    ]
    assert {result["status"] for result in give(server, feedback=entries).json()["results"]} == {"recorded"}
    found = httpx.get(f"{server.url}/models/regression/quality", timeout=PATIENCE_SECONDS).json()
    assert found["groups"][0]["regression"]["mae"] == pytest.approx(1.0)
    refused = give(server, prediction_id=answers[0]["prediction_id"], label="a")
    assert "send the true one as value" in refused.json()["error"]


def test_feedback_outlives_the_server(models: Path, tmp_path: Path) -> None:
    """Signed before, given after; what was acknowledged is there after a kill."""
    environment = {"HEADWAY_MODELS": str(models), "HEADWAY_DATA_DIR": str(tmp_path / "data")}
    with running_server(tmp_path / "log", workers=1, **environment) as server:
        early, late = predict(server, [[0.1, 0.7, 0.2], [0.7, 0.1, 0.2]])
        label = labels_of(server)[1]
        assert give(server, prediction_id=early["prediction_id"], label=label).json()["status"] == "recorded"
        server.stop(by=signal.SIGKILL)
    with running_server(tmp_path / "log", workers=1, **environment) as server:
        assert give(server, prediction_id=early["prediction_id"], label=label).json()["status"] == "repeated"
        assert give(server, prediction_id=late["prediction_id"], label=label).json()["outcome"] == "incorrect"


def test_database_that_is_away_refuses_feedback_and_nothing_else(
    models: Path, tmp_path: Path, postgresql: Postgresql
) -> None:
    url = postgresql.new_url()
    environment = {"HEADWAY_MODELS": str(models), "HEADWAY_DATABASE_URL": url}
    with running_server(tmp_path / "log", workers=1, **environment) as server:
        (answer,) = predict(server, [[0.1, 0.7, 0.2]])
        truth = {"prediction_id": answer["prediction_id"], "label": labels_of(server)[1]}
        refused = give(server, **truth)  # nobody has made its tables
        assert (refused.status_code, refused.json()["code"]) == (503, "feedback_unavailable")
        assert refused.headers["retry-after"]
        assert "headway db upgrade" in server.log.read_text()
        postgresql.stop()
        try:
            refused = give(server, **truth)
            assert (refused.status_code, refused.json()["error"]) == (
                503,
                "feedback cannot be kept now; send it again later",
            )
            assert predict(server, [[0.1, 0.7, 0.2]])
        finally:
            postgresql.start()
        upgrade = [sys.executable, "-m", "app.cli.main", "db", "upgrade"]
        subprocess.run(upgrade, env=os.environ | environment, cwd=ROOT, check=True, capture_output=True)
        assert give(server, **truth).json()["status"] == "recorded"
