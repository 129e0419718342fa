from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.storage.database import open_database
from app.storage.feedback import FeedbackRow, FeedbackStore
from tests.fixtures_models import write_model

RUNNER = CliRunner()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    write_model(tmp_path / "models", "m")
    return {"HEADWAY_MODELS": str(tmp_path / "models"), "HEADWAY_DATA_DIR": str(tmp_path / "data")}


def _give(environment: dict[str, str], classes: list[tuple[int, int]]) -> None:
    now = time.time_ns() // 1_000_000
    rows = [
        FeedbackRow(
            nonce=number.to_bytes(10, "big"),
            model="m",
            version="1.0.0",
            alias="stable",
            predicted_ms=now,
            received_ms=now,
            top=(predicted,),
            confidence=0.9,
            actual=actual,
        )
        for number, (predicted, actual) in enumerate(classes)
    ]
    with open_database(None, Path(environment["HEADWAY_DATA_DIR"])) as database:
        FeedbackStore(database).add(rows)


def test_quality_as_a_table(environment: dict[str, str]) -> None:
    _give(environment, [(0, 0), (0, 1), (2, 2), (2, 2)])
    shown = RUNNER.invoke(cli, ["quality", "m"], env=environment)
    assert shown.exit_code == 0, shown.output
    assert "1.0.0" in shown.stdout
    assert "0.750" in shown.stdout
    assert "1.0.0 (stable): 1 × middle taken for low" in shown.stdout


def test_quality_as_json(environment: dict[str, str]) -> None:
    _give(environment, [(0, 0), (0, 1)])
    shown = RUNNER.invoke(cli, ["quality", "m", "--last", "10", "--json"], env=environment)
    found = json.loads(shown.stdout)
    assert found["window"] == {"last": 10}
    assert found["groups"][0]["classification"]["accuracy"] == 0.5


def test_quality_without_feedback(environment: dict[str, str]) -> None:
    shown = RUNNER.invoke(cli, ["quality", "m"], env=environment)
    assert shown.exit_code == 1
    assert "there is no database; feedback makes it" in shown.stderr
    assert not Path(environment["HEADWAY_DATA_DIR"]).exists()
    _give(environment, [(0, 0)])
    write_model(Path(environment["HEADWAY_MODELS"]), "other")
    assert "no feedback for other" in RUNNER.invoke(cli, ["quality", "other"], env=environment).stdout


def test_quality_of_a_model_that_is_not_there(environment: dict[str, str]) -> None:
    for _ in range(2):  # without a database, and with one
        shown = RUNNER.invoke(cli, ["quality", "nosuch"], env=environment)
        assert shown.exit_code == 1
        assert "there is no model 'nosuch' in" in shown.stderr
        _give(environment, [(0, 0)])


def test_one_window_at_a_time(environment: dict[str, str]) -> None:
    shown = RUNNER.invoke(cli, ["quality", "m", "--last", "10", "--hours", "1"], env=environment)
    assert shown.exit_code == 2
    assert "give --last or --hours, not both" in shown.stderr
