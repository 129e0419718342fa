"""The workflows hold before anybody pushes them: two checkers find nothing, and what they call is there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.running import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
SCRIPTS = sorted(
    [*GITHUB.glob("*.sh"), *GITHUB.rglob("actions/*/*.sh"), ROOT / ".ci/run", *(ROOT / "scripts").glob("*.sh")]
)
TOOLS = Path(sys.executable).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def _load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in _load(path)["jobs"].items():
            yield f"{path.name}: {name}", job


def _steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for where, job in _jobs():
        yield from ((where, step) for step in job.get("steps", ()))
    for path in ACTIONS:
        yield from ((path.parent.name, step) for step in _load(path)["runs"]["steps"])


def _commands() -> str:
    return "\n".join(step["run"] for _, step in _steps() if "run" in step)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing() -> None:
    _run(TOOLS / "actionlint", f"-shellcheck={TOOLS / 'shellcheck'}", "-pyflakes=", *WORKFLOWS)


def test_zizmor_finds_nothing() -> None:
    _run(TOOLS / "zizmor", "--offline", "--no-progress", "--persona=pedantic", GITHUB)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(script: Path) -> None:
    assert script.stat().st_mode & 0o111, "not executable"
    # Those two do not see that a function can stand in for a command that is missing.
    _run(TOOLS / "shellcheck", "--exclude=SC2119,SC2120", script)


def test_actions_are_pinned_to_one_commit_each() -> None:
    commits: dict[str, set[str]] = {}
    for path in (*WORKFLOWS, *ACTIONS):
        for action, ref, version in re.findall(r"uses: ([^./\s][^@\s]*)@(\S+)(.*)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[0-9a-f]{40}", ref), f"{path.name}: {action}@{ref}"
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", version), f"{path.name}: {action} does not say its version"
            commits.setdefault(action, set()).add(ref)
    assert commits
    assert all(len(refs) == 1 for refs in commits.values()), commits


def test_no_checkout_keeps_its_token() -> None:
    checkouts = [(where, step) for where, step in _steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    for where, step in checkouts:
        assert step["with"]["persist-credentials"] is False, where


def test_no_job_has_more_rights_than_it_names() -> None:
    for path in WORKFLOWS:
        assert _load(path)["permissions"] == {}, path.name
    for where, job in _jobs():
        assert job["permissions"], where
        assert "uses" in job or job["timeout-minutes"] <= 90, where


def test_only_jobs_that_build_or_release_may_write() -> None:
    writers = {where for where, job in _jobs() if "write" in job["permissions"].values()}
    assert writers == {"main.yml: image", "image.yml: image", "release.yml: image", "release.yml: release"}


def test_steps_call_what_exists() -> None:
    commands = _commands()
    called = re.findall(r"(?:^|\s)((?:\.ci|\.github|scripts)/[\w./-]+)", commands, re.MULTILINE)
    assert {".ci/run", "scripts/deploy.sh"} <= set(called)
    for path in called:
        assert (ROOT / path).is_file(), path
    targets = re.findall(r"\bmake ([a-z-]+)", commands)
    assert targets
    assert set(targets) <= MAKE_TARGETS


def test_deployment_names_overlays_that_exist_and_waits_for_approval() -> None:
    deploy = _load(GITHUB / "workflows/deploy.yml")
    # YAML 1.1 reads the key `on` as true.
    overlays = deploy[True]["workflow_dispatch"]["inputs"]["overlay"]["options"]
    assert deploy["jobs"]["deploy"]["environment"] == "${{ inputs.overlay }}"
    for overlay in overlays:
        assert (ROOT / "k8s/overlays" / overlay / "kustomization.yaml").is_file(), overlay


def test_images_are_targets_of_the_dockerfile() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    stages = set(re.findall(r"^FROM .* AS (\S+)", dockerfile, re.MULTILINE | re.IGNORECASE))
    scanned = set(_load(GITHUB / "workflows/scan.yml")["jobs"]["image"]["strategy"]["matrix"]["target"])
    included = _load(GITHUB / "workflows/image.yml")["jobs"]["image"]["strategy"]["matrix"]["include"]
    assert {entry["target"] for entry in included} == scanned
    assert scanned <= stages


def test_every_checker_has_the_same_python_the_oldest_allowed() -> None:
    oldest = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    image = f"python:{oldest}-bookworm"
    assert {job["container"]["image"] for _, job in _jobs() if "container" in job} == {image}
    assert {step["with"]["python-version"] for _, step in _steps() if "setup-python" in step.get("uses", "")} == {
        oldest
    }
    (docker,) = _load(ROOT / ".circleci/config.yml")["jobs"]["check"]["docker"]
    assert docker == {"image": image}
    assert f"image '{image}'" in (ROOT / "Jenkinsfile").read_text(encoding="utf-8")


def test_other_checkers_only_call_make_check() -> None:
    steps = _load(ROOT / ".circleci/config.yml")["jobs"]["check"]["steps"]
    assert [step if isinstance(step, str) else step["run"]["command"] for step in steps] == ["checkout", "make check"]
    jenkins = (ROOT / "Jenkinsfile").read_text(encoding="utf-8")
    stages = jenkins.partition("stages {")[2].partition("post {")[0]
    assert re.findall(r"sh '(.*)'", stages) == ["make check"]
    assert jenkins.count("{") == jenkins.count("}")
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()[-1] == "exec make check"


def test_dependabot_looks_where_files_are() -> None:
    updates = _load(GITHUB / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} >= {"pip", "github-actions", "docker"}
    for update in updates:
        for folder in update.get("directories", [update.get("directory")]):
            assert any((ROOT / folder.lstrip("/")).iterdir()), folder
