"""`headway plan hpa`: a day's replay as table, JSON and picture."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from tests.running import ROOT

RUNNER = CliRunner()
MANIFEST = str(ROOT / "k8s/base/hpa.yaml")


def plan(*options: str) -> Any:
    return RUNNER.invoke(cli, ["plan", "hpa", "--hpa", MANIFEST, *options], env={"COLUMNS": "80"})


def read_description(picture: Path) -> dict[str, Any]:
    found = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text(), re.DOTALL)
    assert found is not None
    description: dict[str, Any] = json.loads(unescape(found[1]))
    return description


def test_day_as_a_table() -> None:
    shown = plan()
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("3 to 20 replicas, 343 requests/s a pod")
    assert "hour   req/s  peak  refused  pods  most  p50 ms  mean ms  p99 ms  up  down" in shown.stdout
    assert re.search(r"7:00:30 +3 → 7 +headway_", shown.stdout)


def test_users_own_traffic_and_limits(tmp_path: Path) -> None:
    traffic = tmp_path / "traffic.csv"
    traffic.write_text("seconds,requests per second\n0,100\n3600,900\n7200,900\n")
    options = ("--traffic", str(traffic), "--service-ms", "20", "--threads", "4", "--min", "1", "--max", "40")
    shown = plan(*options, "--target-ms", "50", "--deadline-ms", "2000", "--start-seconds", "60", "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    settings = found["settings"]
    assert settings["pod_capacity_per_second"] == pytest.approx(200)
    assert (settings["min_replicas"], settings["max_replicas"], settings["target_ms"]) == (1, 40, 50)
    assert [hour["mean_per_second"] for hour in found["hours"]] == pytest.approx([100, 900, 900])
    # 900 of 200 a pod at 0.6 is 7.5 pods.
    assert found["hours"][-1]["mean_replicas"] >= 7


def test_picture_in_the_guide_is_current(tmp_path: Path) -> None:
    drawn = tmp_path / "day.svg"
    assert plan("--picture", str(drawn)).exit_code == 0
    # The same manifest is named by a relative path where the command runs as the guide has it.
    found, shown = read_description(drawn), read_description(ROOT / "docs/pictures/hpa-day.svg")
    for description in (found, shown):
        del description["settings"]["hpa"]
    assert json.dumps(found) == json.dumps(shown)
    assert [path.name for path in tmp_path.iterdir()] == ["day.svg"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--service-ms", "0"), 2, "--service-ms: must be from 0.01"),
        (("--start-seconds", "-1"), 2, "--start-seconds: must be from 0"),
        (("--min", "0"), 2, "--min"),
        (("--max", "1001"), 2, "--max"),
        (("--min", "30"), 1, "at least 30 and at most 20 replicas; set --min and --max"),
        (("--traffic", "nowhere.csv"), 1, "nowhere.csv: cannot be read"),
        (("--picture", "nowhere/day.svg"), 1, "name a file in a folder that exists"),
        (("--hpa", "nowhere.yaml"), 1, "nowhere.yaml"),
    ],
)
def test_misuse_says_what_to_do(options: tuple[str, ...], code: int, message: str) -> None:
    shown = plan(*options)
    assert shown.exit_code == code
    assert message in re.sub(r"\x1b\[[0-9;]*m", "", shown.stderr)


def test_target_needs_its_metric(tmp_path: Path) -> None:
    manifest = tmp_path / "hpa.yaml"
    head, _, rest = Path(MANIFEST).read_text().partition("    # Share of a pod's")
    manifest.write_text(head + "  behavior:" + rest.partition("  behavior:")[2])
    assert plan("--hpa", str(manifest)).exit_code == 0
    shown = plan("--hpa", str(manifest), "--target-ms", "50")
    assert shown.exit_code == 1
    assert "which the manifest does not look at" in shown.stderr
