"""Names, ports, paths, limits and times are one across the manifests, nginx, Prometheus, the image and the app."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import httpx
import pytest
import yaml

from app.optimize.planning.hpa_file import parse_quantity
from app.server.options import ServerOptions
from app.settings import Settings
from tests.k8s.rendering import COMPONENTS, TARGETS, find_objects, get_object, get_pod, render
from tests.running import ROOT

DOCKERFILE = ROOT / "docker/Dockerfile"


@pytest.fixture(scope="module")
def base() -> list[dict[str, Any]]:
    return render("k8s")


def _settings(objects: list[dict[str, Any]]) -> dict[str, str]:
    """What the ConfigMap says."""
    (found,) = [it for it in find_objects(objects, "ConfigMap") if "HEADWAY_HOST" in it["data"]]
    data: dict[str, str] = found["data"]
    return data


def _container(objects: list[dict[str, Any]], deployment: str = "headway") -> dict[str, Any]:
    (container,) = get_pod(objects, deployment)["containers"]
    return dict(container)


def _nginx(objects: list[dict[str, Any]]) -> dict[str, str]:
    """Files by the path at which nginx finds them."""
    (volume,) = [it for it in get_pod(objects, "headway-nginx")["volumes"] if it["name"] == "files"]
    data = get_object(objects, "ConfigMap", volume["configMap"]["name"])["data"]
    return {it["path"]: data[it["key"]] for it in volume["configMap"]["items"]}


def test_variables_are_settings(base: list[dict[str, Any]]) -> None:
    known = {f"HEADWAY_{name.upper()}" for name in Settings.model_fields}
    texts = [path.read_text() for path in (ROOT / "k8s").rglob("*") if path.suffix in (".yaml", ".env")]
    named = {name for text in texts for name in re.findall(r"\bHEADWAY_[A-Z_]+\b", text)}
    assert named <= known
    values = {name.removeprefix("HEADWAY_").lower(): value for name, value in _settings(base).items()}
    Settings.model_validate(values)


def test_times_fit() -> None:
    for target in TARGETS:
        objects = render(target)
        settings = Settings.model_validate(
            {name.removeprefix("HEADWAY_").lower(): value for name, value in _settings(objects).items()}
        )
        assert settings.drain_seconds is not None
        # It raises where the drain and the longest deadline do not fit.
        ServerOptions(
            "",
            drain_seconds=settings.drain_seconds,
            longest_deadline_seconds=settings.max_deadline_ms / 1000,
            graceful_timeout_seconds=settings.graceful_timeout_seconds,
        )
        for name, longest in (("headway", settings.graceful_timeout_seconds), ("headway-nginx", _read_timeout())):
            command = _container(objects, name)["lifecycle"]["preStop"]["exec"]["command"]
            assert command[0] == "sleep"
            # The answer of DNS, 5 s in nginx and as long in the cluster, is older than that nowhere.
            assert int(command[1]) >= 10
            assert longest < get_pod(objects, name)["terminationGracePeriodSeconds"] - int(command[1])
    assert "valid=5s" in (ROOT / "nginx/kubernetes/replicas.conf").read_text()


def _read_timeout() -> float:
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", (ROOT / "nginx/headway/proxy.conf").read_text())
    return float(seconds)


def test_probes_are_routes(base: list[dict[str, Any]], client: httpx.Client) -> None:
    container = _container(base)
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"/health/startup", "/health/ready", "/health/live"}
    annotations = get_object(base, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    for path in {*paths, annotations["prometheus.io/path"]}:
        assert client.get(path).status_code == 200, path
    for kind in ("startup", "readiness", "liveness"):
        path = _container(base, "headway-nginx")[f"{kind}Probe"]["httpGet"]["path"]
        assert f"location = {path} {{" in _nginx(base)["headway/server.conf"]


def test_ports(base: list[dict[str, Any]]) -> None:
    port = Settings.model_fields["port"].default
    files = _nginx(base)
    pods, front = get_object(base, "Service", "headway-pods"), get_object(base, "Service")
    grpc = int(_settings(base)["HEADWAY_GRPC_PORT"])
    assert _container(base)["ports"] == [
        {"name": "http", "containerPort": port},
        {"name": "grpc", "containerPort": grpc},
    ]
    assert int(_settings(base)["HEADWAY_PORT"]) == port
    assert [it["port"] for it in pods["spec"]["ports"]] == [port, grpc]
    assert f"server headway-pods.headway.svc.cluster.local:{port} resolve" in files["site/replicas.conf"]
    assert f"server headway-pods.headway.svc.cluster.local:{grpc} resolve" in files["site/replicas.conf"]
    annotations = get_object(base, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    (listening,) = re.findall(r"^listen (\d+);", files["site/listen.conf"], re.MULTILINE)
    assert _container(base, "headway-nginx")["ports"] == [{"name": "http", "containerPort": int(listening)}]
    assert [(it["port"], it["targetPort"]) for it in front["spec"]["ports"]] == [(80, "http")]
    policies = {it["metadata"]["name"]: it["spec"]["ingress"] for it in find_objects(base, "NetworkPolicy")}
    assert [it["port"] for rule in policies["headway"] for it in rule["ports"]] == [port, grpc, port]
    assert [it["port"] for rule in policies["headway-nginx"] for it in rule["ports"]] == [int(listening)]
    # The management API stays inside the pod.
    assert "HEADWAY_MANAGEMENT_BIND" not in _settings(base)
    assert str(Settings.model_fields["management_bind"].default).startswith("127.0.0.1:")


def test_files_of_nginx_are_all_there(base: list[dict[str, Any]]) -> None:
    files = _nginx(base)
    root = ROOT / "nginx"
    expected = {"nginx.conf": root / "nginx.conf"}
    expected |= {f"headway/{it.name}": it for it in (root / "headway").glob("*.conf") if it.name != "tls.conf"}
    expected |= {f"site/{it.name}": it for it in (root / "site").glob("*.conf")}
    expected |= {f"site/{it.name}": it for it in (root / "kubernetes").glob("*.conf")}
    assert files == {path: it.read_text() for path, it in expected.items()}
    included = {name for text in files.values() for name in re.findall(r"^\s*include (\S+);", text, re.MULTILINE)}
    assert included == set(files) - {"nginx.conf"}
    assert re.search(r"client_max_body_size (\d+);", files["site/limits.conf"])[1] == str(_max_body())  # type: ignore[index]
    images = re.findall(r"nginx-unprivileged:(\d+)\.(\d+)\.(\d+)", _container(base, "headway-nginx")["image"])
    assert tuple(map(int, images[0])) >= (1, 27, 3)


def _max_body() -> int:
    return int(Settings.model_fields["max_body_bytes"].default)


def test_networks_that_are_believed_are_the_same(base: list[dict[str, Any]]) -> None:
    networks = re.findall(r"set_real_ip_from (\S+);", _nginx(base)["site/front.conf"])
    assert _settings(base)["HEADWAY_FORWARDED_ALLOW_IPS"].split(",") == networks


def test_image(base: list[dict[str, Any]]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    dockerfile = DOCKERFILE.read_text()
    pod, container = get_pod(base), _container(base)
    assert container["image"] == f"headway:{version}"
    ((uid, gid),) = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (int(uid), int(gid), int(gid))
    assert f"EXPOSE {' '.join(str(it['containerPort']) for it in container['ports'])}\n" in dockerfile
    assert f"CMD {json.dumps(container['args'])}\n" in dockerfile
    assert "ENTRYPOINT" not in dockerfile
    assert f"HEADWAY_DATA_DIR={_settings(base)['HEADWAY_DATA_DIR']}" in dockerfile
    mounted = {it["mountPath"] for it in container["volumeMounts"]}
    assert mounted == {"/tmp", "/dev/shm", _settings(base)["HEADWAY_DATA_DIR"]}


def test_threads_of_a_pod_are_its_cpus() -> None:
    """The PromQL of demand divides by the threads of a pod, one for each CPU that is asked for."""
    rules = yaml.safe_load((ROOT / "prometheus/autoscaling.rules.yml").read_text())
    (expression,) = [it["expr"] for it in rules["groups"][0]["rules"] if "demand" in it["record"]]
    (threads,) = re.findall(r"^\s*/ (\d+)$", expression, re.MULTILINE)
    for target in TARGETS:
        objects = render(target)
        container = _container(objects)
        (cpus,) = [it for it in container["env"] if it["name"] == "HEADWAY_CPUS"]
        assert cpus["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"
        if find_objects(objects, "HorizontalPodAutoscaler"):
            assert parse_quantity(container["resources"]["requests"]["cpu"]) == int(threads)


def test_metrics_of_the_autoscaler_are_handed_on(base: list[dict[str, Any]]) -> None:
    adapter = yaml.safe_load((ROOT / "k8s/prometheus-adapter.values.yaml").read_text())
    made = {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    metrics = get_object(base, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert {it["pods"]["metric"]["name"] for it in metrics if it["type"] == "Pods"} == made


def test_jobs_and_intervals_of_prometheus() -> None:
    configuration = yaml.safe_load((ROOT / "prometheus.yml").read_text())
    (job,) = [it for it in configuration["scrape_configs"] if it["job_name"] == "headway"]
    (monitor,) = find_objects(render("k8s/overlays/production"), "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["interval"] == job.get("scrape_interval", configuration["global"]["scrape_interval"])
    assert endpoint["path"] == job.get("metrics_path", "/metrics")


def test_ways_in_lead_to_the_service(base: list[dict[str, Any]]) -> None:
    service = get_object(base, "Service")
    ingress = get_object(render("k8s/overlays/production"), "Ingress")
    assert "ingressClassName" not in ingress["spec"]
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert (backend["name"], backend["port"]) == (
        service["metadata"]["name"],
        {"name": service["spec"]["ports"][0]["name"]},
    )
    route = yaml.safe_load((ROOT / "k8s/components/gateway/httproute.yaml").read_text())
    assert route["spec"]["rules"][0]["backendRefs"] == [
        {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}
    ]


def test_components_are_used_or_named() -> None:
    """None is lost: an overlay takes it, or tells of it."""
    texts = "\n".join(path.read_text() for path in (ROOT / "k8s").rglob("*.yaml"))
    for component in COMPONENTS:
        assert f"components/{component}" in texts, component
