"""Every rendered object is what Kubernetes takes, holds together with the others, and is as closed as "restricted"."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate

from tests.k8s.rendering import (
    COMPONENTS,
    TARGETS,
    find_kubectl,
    find_objects,
    get_object,
    get_pod,
    render,
    render_text,
)
from tests.running import ROOT

VERSIONS = ("1.29", "1.33", "1.37")
# Kinds that come with an operator, and what is used of them. The types of these fields: scripts/verify_kubernetes.sh.
CUSTOM = {
    "ServiceMonitor": (
        "monitoring.coreos.com/v1",
        r"jobLabel|selector\.matchLabels\.app/(name|component)|endpoints\.(port|path|interval|scrapeTimeout)",
    ),
    "PrometheusRule": (
        "monitoring.coreos.com/v1",
        r"groups\.(name|interval|rules\.(record|alert|expr|for|labels\.severity|annotations\.(summary|action|runbook\w*)))",
    ),
    "HTTPRoute": (
        "gateway.networking.k8s.io/v1",
        r"parentRefs\.(name|namespace|sectionName)|hostnames"
        r"|rules\.(matches\.path\.(type|value)|timeouts\.request|backendRefs\.(name|port))",
    ),
}
CLUSTER_WIDE = {"Namespace"}


def _render_with(component: str, tmp_path: Path) -> list[dict[str, Any]]:
    names = ("base", f"components/{component}", "components/images")
    base, own, images = (os.path.relpath(ROOT / "k8s" / name, tmp_path) for name in names)
    written = {"resources": [base], "components": [own, images], "namespace": "headway"}
    if component == "models-image":
        written["images"] = [{"name": "headway-models", "newTag": "1"}]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(written))
    return render(str(tmp_path))


@pytest.fixture(scope="module", params=[*TARGETS, *COMPONENTS])
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What an operator gets from the default, from an overlay, and from the default with one of the components."""
    return (
        render(request.param)
        if request.param in TARGETS
        else _render_with(request.param, tmp_path_factory.mktemp("component"))
    )


def _pods(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Labels and spec."""
    for deployment in find_objects(objects, "Deployment"):
        template = deployment["spec"]["template"]
        yield template["metadata"]["labels"], template["spec"]


def _paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Of what an object says, without the places in lists."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{prefix}.{name.replace('app.kubernetes.io', 'app')}")
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, prefix)
    else:
        yield prefix.removeprefix(".")


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_objects_are_valid(objects: list[dict[str, Any]]) -> None:
    for it in objects:
        if it["kind"] in CUSTOM:
            version, known = CUSTOM[it["kind"]]
            assert it["apiVersion"] == version
            unknown = {path for path in _paths(it["spec"]) if not re.fullmatch(known, path)}
            assert not unknown
            continue
        _validate(json.dumps(it))


@functools.cache
def _validate(it: str) -> None:
    """Many objects stand in several targets."""
    for version in VERSIONS:
        validate(json.loads(it), version, strict=True)


def test_default_needs_nothing_that_a_fresh_cluster_has_not() -> None:
    objects = render("k8s")
    assert not {it["kind"] for it in objects} & {*CUSTOM, "Secret", "Ingress", "PersistentVolumeClaim"}
    for _, pod in _pods(objects):
        for container in _containers(pod):
            for source in container.get("envFrom", []):
                assert "secretRef" not in source or source["secretRef"]["optional"]
            assert not any("secretKeyRef" in it.get("valueFrom", {}) for it in container.get("env", []))


def test_namespace_of_all_is_one(objects: list[dict[str, Any]]) -> None:
    (namespace,) = find_objects(objects, "Namespace")
    for it in objects:
        if it["kind"] not in CLUSTER_WIDE:
            assert it["metadata"].get("namespace") == namespace["metadata"]["name"], it["metadata"]["name"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    assert len(names) == len(set(names))


def test_pods_are_restricted(objects: list[dict[str, Any]]) -> None:
    for _, pod in _pods(objects):
        assert pod["automountServiceAccountToken"] is False
        # HEADWAY_PORT=tcp://… of a Service named headway would end the start.
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all(set(it) <= {"name", "emptyDir", "configMap", "persistentVolumeClaim"} for it in pod["volumes"])
        for container in _containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert set(container["resources"]["limits"]) == {"memory"}
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")
    for account in find_objects(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_references_lead_somewhere(objects: list[dict[str, Any]]) -> None:
    maps = {it["metadata"]["name"]: it["data"] for it in find_objects(objects, "ConfigMap")}
    claims = {it["metadata"]["name"] for it in find_objects(objects, "PersistentVolumeClaim")}
    used = set()
    for _, pod in _pods(objects):
        volumes = {it["name"]: it for it in pod["volumes"]}
        assert get_object(objects, "ServiceAccount", pod["serviceAccountName"])
        for volume in volumes.values():
            if "configMap" in volume:
                name = volume["configMap"]["name"]
                used.add(name)
                assert {it["key"] for it in volume["configMap"].get("items", [])} in (set(), set(maps[name]))
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        mounted = {it["name"] for container in _containers(pod) for it in container["volumeMounts"]}
        assert mounted == set(volumes)
        used |= {
            it["configMapRef"]["name"] for c in _containers(pod) for it in c.get("envFrom", []) if "configMapRef" in it
        }
    assert {name for name in maps if name != "headway-dashboards"} == used


def test_selectors_find_pods(objects: list[dict[str, Any]]) -> None:
    pods = [(labels, pod) for labels, pod in _pods(objects)]
    selectors = [it["spec"]["selector"] for it in find_objects(objects, "Service")]
    selectors += [it["spec"]["selector"]["matchLabels"] for it in find_objects(objects, "PodDisruptionBudget")]
    selectors += [it["spec"]["podSelector"]["matchLabels"] for it in find_objects(objects, "NetworkPolicy")]
    selectors += [it["spec"]["selector"]["matchLabels"] for it in find_objects(objects, "Deployment")]
    for selector in selectors:
        assert len([labels for labels, _ in pods if selector.items() <= labels.items()]) == 1, selector
    for service in find_objects(objects, "Service"):
        (pod,) = [pod for labels, pod in pods if service["spec"]["selector"].items() <= labels.items()]
        named = {port["name"] for container in pod["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
    for monitor in find_objects(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [
            it for it in find_objects(objects, "Service") if wanted.items() <= it["metadata"]["labels"].items()
        ]
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
        # The alerts say job="headway".
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "headway"


def test_replicas_are_the_autoscaler_s(objects: list[dict[str, Any]]) -> None:
    """With a number in the Deployment each apply would set it back to that."""
    has_autoscaler = bool(find_objects(objects, "HorizontalPodAutoscaler"))
    assert ("replicas" in get_object(objects, "Deployment")["spec"]) is not has_autoscaler


def test_local_is_one_small_pod() -> None:
    objects = render("k8s/overlays/local")
    assert get_object(objects, "Deployment")["spec"]["replicas"] == 1
    assert not find_objects(objects, "PodDisruptionBudget")
    assert not any("topologySpreadConstraints" in pod for _, pod in _pods(objects))


def test_production_demands_the_database() -> None:
    pod = get_pod(render("k8s/overlays/production"))
    for container in _containers(pod):
        env = {it["name"]: it for it in container["env"]}
        reference = env["HEADWAY_DATABASE_URL"]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "headway", "key": "HEADWAY_DATABASE_URL"}
        scaler = get_object(render("k8s/overlays/production"), "HorizontalPodAutoscaler")
        assert int(env["HEADWAY_REPLICAS"]["value"]) == scaler["spec"]["maxReplicas"]


def test_secret_template_is_valid_and_never_applied() -> None:
    (secret,) = yaml.safe_load_all((ROOT / "k8s/secret.example.yaml").read_text())
    _validate(json.dumps(secret))
    assert not any(secret["stringData"].values())
    for target in TARGETS:
        assert not find_objects(render(target), "Secret")


def test_what_is_made_is_current(tmp_path: Path) -> None:
    for name in ("k8s", "nginx", "grafana", "prometheus", "models"):
        shutil.copytree(ROOT / name, tmp_path / name)
    env = {**os.environ, "KUBECTL": find_kubectl()}
    subprocess.run([ROOT / "scripts/render.sh", tmp_path], env=env, check=True)
    for path in ROOT.glob("k8s/**/*.yaml"):
        assert (tmp_path / path.relative_to(ROOT)).read_text() == path.read_text(), f"run scripts/render.sh ({path})"
    for path in (ROOT / "models").glob("*/release.yaml"):
        name = f"{path.parent.name}.yaml"
        assert (ROOT / "k8s/components/releases" / name).exists(), name
        assert f"      - {name}\n" in (ROOT / "k8s/components/releases/kustomization.yaml").read_text()
    assert (ROOT / "k8s/all.yaml").read_text().partition("\n")[2] == render_text("k8s")
    rules = sorted((ROOT / "prometheus").glob("*.rules.yml"))
    made = list(yaml.safe_load_all((ROOT / "k8s/components/monitoring/rules.yaml").read_text()))
    assert [it["spec"] for it in made] == [yaml.safe_load(path.read_text()) for path in rules]


def test_dashboards_are_all_there() -> None:
    (found,) = find_objects(render("grafana"), "ConfigMap")
    files = (ROOT / "grafana/dashboards").glob("*.json")
    assert found["data"] == {f"headway-{path.name}": path.read_text() for path in files}
