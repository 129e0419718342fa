"""The PromQL of the HPA's own metrics, as Prometheus and the adapter are given it, on series worked out by hand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from app.optimize.planning.replay import DEMAND, SUCCESS
from tests.running import ROOT
from tests.tools import require_command

RULES = ROOT / "prometheus/autoscaling.rules.yml"
ADAPTER = ROOT / "k8s/prometheus-adapter.values.yaml"
REFERENCE = ROOT / "docs/reference/metrics.md"
# In 15 s. Each pod answers 100 requests a second with 6 ms of a thread: 0.6 of two threads' 2, so 0.3, and waits
# 20 ms for it in the queue, which is no demand. "overloaded" refuses 300 a second besides: 0.3 × 4 = 1.2.
# "idle" was asked nothing in all that time, "lost" refused all of it: what it could do is not known.
LABELS = 'namespace="n",pod="calm",model="m",version="1.0.0"'
STAGE, REQUEST = "headway_stage_duration_seconds", "headway_request_duration_seconds"
SERIES = {
    f'{STAGE}_sum{{{LABELS},stage="decode"}}': 1.5,
    f'{STAGE}_sum{{{LABELS},stage="inference"}}': 7.5,
    f'{STAGE}_sum{{{LABELS},stage="queue"}}': 30,
    f'{STAGE}_count{{{LABELS},stage="decode"}}': 1500,
    f'{STAGE}_count{{{LABELS},stage="inference"}}': 1500,
    f'{REQUEST}_sum{{{LABELS},protocol="predict"}}': 45,
    f'{REQUEST}_count{{{LABELS},protocol="predict"}}': 1500,
}
REFUSED = 'headway_rejected_total{namespace="n",pod="overloaded",model="m",reason="overload"}'
NO_DEMAND = 'headway_rejected_total{namespace="n",pod="calm",model="m",reason="too_large"}'


def _expressions() -> dict[str, str]:
    """By the name under which the HPA asks for it: the rule that is recorded, as the adapter finds it."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    recorded = {rule["record"]: rule["expr"] for rule in group["rules"]}
    handed_on = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    return {rule["name"]["as"]: recorded.pop(rule["seriesQuery"].partition("{")[0]) for rule in handed_on}


def _series() -> list[dict[str, str]]:
    growing = dict(SERIES) | {NO_DEMAND: 4500, REFUSED: 4500}
    growing |= {name.replace("calm", "overloaded"): gain for name, gain in SERIES.items()}
    growing |= {name.replace("calm", "idle"): 0 for name in SERIES} | {REFUSED.replace("overloaded", "idle"): 0}
    growing |= {name.replace("calm", "lost"): 0 for name in SERIES} | {REFUSED.replace("overloaded", "lost"): 4500}
    return [{"series": name, "values": f"0+{gain}x20"} for name, gain in growing.items()]


def test_both_metrics_on_series_worked_by_hand(tmp_path: Path) -> None:
    require_command("promtool", "prometheus")
    expressions = _expressions()
    assert set(expressions) == {DEMAND, SUCCESS}
    rules = [{"record": name, "expr": expression} for name, expression in expressions.items()]
    (tmp_path / "hpa.rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "hpa", "rules": rules}]}))
    wanted = {
        DEMAND: {"calm": 0.3, "overloaded": 1.2, "idle": 0},
        # 45 s for 1,500 answers.
        SUCCESS: {"calm": 0.03, "overloaded": 0.03, "idle": 0, "lost": 0},
    }
    checks = [
        {
            "expr": f"round({name}, 0.000001)",
            "eval_time": "5m",
            "exp_samples": [
                {"labels": f'{{namespace="n", pod="{pod}"}}', "value": value} for pod, value in values.items()
            ],
        }
        for name, values in wanted.items()
    ]
    case = {"interval": "15s", "input_series": _series(), "promql_expr_test": checks}
    test = {"rule_files": ["hpa.rules.yml"], "evaluation_interval": "15s", "tests": [case]}
    (tmp_path / "hpa.test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", "hpa.test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_are_those_of_the_server() -> None:
    known = set(re.findall(r"`(headway_\w+)`", REFERENCE.read_text()))
    for expression in _expressions().values():
        named = set(re.findall(r"headway_\w+", expression))
        assert {re.sub(r"_(sum|count)$", "", name) for name in named} <= known
