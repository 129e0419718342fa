"""prometheus.yml, its rules and its alerts, by Prometheus' own tool."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from typing import Any

import pytest
import yaml

from tests.running import ROOT
from tests.tools import require_command

RULES = sorted((ROOT / "prometheus").glob("*.rules.yml"))
TESTS = sorted((ROOT / "prometheus/tests").glob("*.test.yml"))
REFERENCE = ROOT / "docs/reference/metrics.md"


@pytest.fixture(autouse=True)
def _promtool() -> None:
    require_command("promtool", "prometheus")


def _promtool_says(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _alerts() -> dict[str, Any]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_configuration_is_valid() -> None:
    said = _promtool_says("check", "config", "prometheus.yml")
    assert f"{len(RULES)} rule files found" in said


def test_alerts_fire_when_they_should() -> None:
    _promtool_says("test", "rules", *(str(path.relative_to(ROOT)) for path in TESTS))


def test_each_alert_has_a_test_that_fires_and_one_that_nearly_does() -> None:
    tried: dict[str, set[bool]] = defaultdict(set)
    cases = [case for path in TESTS for case in yaml.safe_load(path.read_text())["tests"]]
    for check in (check for case in cases for check in case["alert_rule_test"]):
        tried[check["alertname"]].add(bool(check["exp_alerts"]))
    assert dict(tried) == {name: {True, False} for name in _alerts()}


def test_each_alert_says_what_to_do() -> None:
    for name, rule in _alerts().items():
        assert set(rule["annotations"]) == {"summary", "action", "runbook"}, name
        assert rule["labels"]["severity"] in ("page", "ticket"), name


def test_rules_name_metrics_that_are_there() -> None:
    """Those of the reference, which is made from the code, and what the rules record themselves."""
    known = set(re.findall(r"`(headway_\w+)`", REFERENCE.read_text()))
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    for path in RULES:
        text = path.read_text()
        text = re.sub(r'"[^"]*"|#.*', "", text)
        assert set(re.findall(r"(?<![\w:])headway_\w+", text)) <= known, path


def test_alertmanager_example_is_valid() -> None:
    amtool = require_command("amtool", "prometheus-alertmanager")
    command = [amtool, "check-config", "prometheus/alertmanager.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
