"""The runbooks: one section an alert, PromQL that Prometheus takes, and commands, settings and scripts that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Command
from typer.main import get_command

from app.cli.main import cli
from app.settings import Settings
from tests.running import ROOT
from tests.tools import require_command

GUIDES = ROOT / "docs" / "guides"
RUNBOOKS = GUIDES / "runbooks.md"
# Those that an operator types from.
PAGES = [GUIDES / f"{name}.md" for name in ("runbooks", "kubernetes", "docker", "upgrading", "sizing")]
PARTS = ("Look", "False alarm")
REFERENCE = ROOT / "docs" / "reference" / "metrics.md"
# Of the kubelet, and of Prometheus itself.
FOREIGN_METRICS = {"container_cpu_cfs_throttled_periods_total", "up"}


def _alerts() -> dict[str, dict[str, Any]]:
    paths = sorted((ROOT / "prometheus").glob("*.rules.yml"))
    groups = [group for path in paths for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def _recorded() -> set[str]:
    paths = sorted((ROOT / "prometheus").glob("*.rules.yml"))
    groups = [group for path in paths for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def _sections() -> dict[str, str]:
    """Heading and text of each section about an alert."""
    parts = re.split(r"^## (.+)$", RUNBOOKS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text for name, text in zip(parts[::2], parts[1::2], strict=True) if name.startswith("Headway")}


def _blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _promql() -> list[str]:
    inline = re.findall(r"`((?:rate|increase|sum|max)[ (][^`]*)`", RUNBOOKS.read_text(encoding="utf-8"))
    return [*_blocks(RUNBOOKS, "promql"), *inline]


def test_each_alert_has_a_section_in_the_order_of_the_rules() -> None:
    assert list(_sections()) == list(_alerts())


def test_each_alert_names_its_section() -> None:
    for name, rule in _alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/guides/runbooks.md#{name.lower()}"


def test_sections_say_how_urgent_and_have_all_parts() -> None:
    alerts = _alerts()
    for name, text in _sections().items():
        severity = alerts[name]["labels"]["severity"]
        assert text.strip().startswith(f"*{severity.capitalize()}.*"), name
        assert re.findall(r"\*\*(Look|False alarm)\.\*\*", text) == list(PARTS), name
        assert re.search(r"\*\*(Causes, and what to do|Do)\.\*\*", text), name


def test_anchors_of_the_guides_are_headings() -> None:
    """Anchors as the usual forges make them: lower case, spaces to hyphens, no other signs."""
    for page in PAGES:
        for path, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            target = page.parent / path if path else page
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}, anchor


def test_queries_are_promql(tmp_path: Path) -> None:
    require_command("promtool", "prometheus")
    rules = [{"record": f"runbook:query:{number}", "expr": text} for number, text in enumerate(_promql())]
    path = tmp_path / "runbooks.rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "runbooks", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_queries_name_metrics_that_are_there() -> None:
    known = set(re.findall(r"`(headway_\w+)`", REFERENCE.read_text(encoding="utf-8")))
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    known |= _recorded() | FOREIGN_METRICS
    for text in _promql():
        bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", text)
        names = set(re.findall(r"[a-z_:][a-z0-9_:]*", bare)) - {"sum", "max", "rate", "increase", "count", "by"}
        assert names <= known, names - known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_headway_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = [line for block in _blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in [*lines, *(span for span in spans if span.startswith(("headway ", ".venv/bin/headway ")))]:
        for call in re.findall(r"(?:^|[ /])headway ((?:serve|release|models|db|plan|predict|quality|drift).*)", line):
            _assert_command(get_command(cli), call)  # type: ignore[arg-type]


def _assert_command(command: Command, call: str) -> None:
    words = shlex.split(call, comments=True)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    assert not hasattr(command, "commands") or not words, f"no command: {call}"
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options, call


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_scripts_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    settings = {f"HEADWAY_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bHEADWAY_[A-Z_]+[A-Z]\b", text)) <= settings
    paths = r"(?<![\w./-])((?:scripts|k8s|nginx|prometheus|docker|examples|grafana)/[\w./-]*\w/?)"
    for path in re.findall(paths, text):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)`", text)) <= targets


def test_objects_of_the_cluster_and_of_compose_exist() -> None:
    """What kubectl and docker compose are told to look at, by the names of the manifests."""
    manifests = [one for one in yaml.safe_load_all((ROOT / "k8s" / "all.yaml").read_text(encoding="utf-8")) if one]
    objects = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in manifests}
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"\b((?:deployment|service)/[a-z][a-z-]*)", text))
        named |= {f"horizontalpodautoscaler/{name}" for name in re.findall(r"kubectl .*\bhpa ([a-z-]+)", text)}
        assert named <= objects, named - objects
        assert set(re.findall(r"\b(headway-\d+)\b", text)) <= set(services)
        assert set(re.findall(r"-n ([a-z-]+)", text)) <= {"headway"}
