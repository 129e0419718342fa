"""compose.yaml and docker/postgresql.yaml agree with the app, with nginx/ and prometheus/, and with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings
from tests.running import ROOT
from tests.tools import require_command

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WITH_POSTGRESQL: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "postgresql.yaml").read_text())
REPLICAS = ["headway-1", "headway-2", "headway-3"]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
HTTP_PORT = Settings.model_fields["port"].default
ALL = [*SERVICES.items(), *((name, one) for name, one in WITH_POSTGRESQL["services"].items() if name not in REPLICAS)]


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_replicas_are_all_alike() -> None:
    assert [name for name in SERVICES if name.startswith("headway")] == REPLICAS
    assert SERVICES["headway-1"] == SERVICES["headway-2"] == SERVICES["headway-3"]
    assert all(name in SERVICES["nginx"]["depends_on"] for name in REPLICAS)


@pytest.mark.parametrize("text", ["compose.yaml", "docker/postgresql.yaml"])
def test_variables_are_settings(text: str) -> None:
    names = set(re.findall(r"HEADWAY_([A-Z_]+):", (ROOT / text).read_text()))
    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_settings_are_those_of_the_image() -> None:
    environment = SERVICES["headway-1"]["environment"]
    in_image = dict(re.findall(r"(HEADWAY_\w+)=(\S+)", DOCKERFILE))
    assert in_image.items() <= environment.items()
    assert environment["HEADWAY_PORT"] == str(HTTP_PORT)
    Settings(
        **{
            name.removeprefix("HEADWAY_").lower(): value
            for name, value in environment.items()
            if value and "$" not in value
        }
    )


def test_version_is_that_of_the_project() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    images = {one["image"] for _, one in ALL if one["image"].startswith("headway")}
    assert images == {f"headway:{version[1]}"}
    assert SERVICES["headway-1"]["build"]["args"]["VERSION"] == version[1]
    assert f" AS {SERVICES['headway-1']['build']['target']}\n" in DOCKERFILE


@pytest.mark.parametrize(("name", "service"), ALL)
def test_service_is_closed_and_pinned(name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True, name
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r":v?\d+\.\d+(\.\d+)?[a-z0-9.-]*$", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize(("name", "service"), ALL)
def test_mounted_files_are_there(name: str, service: dict[str, Any]) -> None:
    volumes = COMPOSE["volumes"].keys() | WITH_POSTGRESQL["volumes"].keys()
    mounts = [volume.split(":") for volume in service.get("volumes", [])]
    targets = {target for _, target, *_ in mounts}
    for source, target, *options in mounts:
        if not source.startswith("./"):
            assert source in volumes
            continue
        assert options == ["ro"], f"{name}: {source}"
        assert (ROOT / source).exists(), source
        # A file over one in a directory that is mounted read-only needs a place there.
        parent, _, file = target.rpartition("/")
        above = next((s for s, t, *_ in mounts if t == parent), None)
        assert parent not in targets or (ROOT / str(above) / file).exists()


def test_stopping_fits_the_server() -> None:
    grace = seconds(SERVICES["headway-1"]["stop_grace_period"])
    assert grace > Settings.model_fields["graceful_timeout_seconds"].default
    longest = re.search(r"proxy_read_timeout (\d+)s", (ROOT / "nginx/headway/proxy.conf").read_text())
    assert longest
    assert seconds(SERVICES["nginx"]["stop_grace_period"]) > float(longest[1])


def test_health_check_is_that_of_the_image() -> None:
    words = SERVICES["headway-1"]["healthcheck"]["test"]
    assert "CMD [" + ", ".join(f'"{word}"' for word in words[1:]) + "]" in DOCKERFILE
    assert "/nginx-health" in SERVICES["nginx"]["healthcheck"]["test"][-1]


def test_nginx_asks_the_replicas() -> None:
    ours, shipped = ((ROOT / path).read_text() for path in ("docker/nginx/replicas.conf", "nginx/site/replicas.conf"))
    for upstream, port in (("headway", HTTP_PORT), ("headway_grpc", 9000)):
        block = ours.partition(f"upstream {upstream} {{")[2].partition("}")[0]
        assert re.findall(r"server (\S+) resolve max_fails=0;", block) == [f"{name}:{port}" for name in REPLICAS]
    # Nothing but the servers differs from what tests/nginx proves.
    assert without_servers(ours) == without_servers(shipped)
    listen = (ROOT / "nginx/kubernetes/listen.conf").read_text()
    inside = SERVICES["nginx"]["ports"][0].rpartition(":")[2]
    assert f"listen {inside};" in listen


def without_servers(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "server ", "resolver", "zone "))]


def test_nginx_has_every_file() -> None:
    """Those of nginx/site with others in their places, as the guide says for a cluster."""
    placed = {volume.split(":")[1] for volume in SERVICES["nginx"]["volumes"]}
    assert {"/etc/nginx/nginx.conf", "/etc/nginx/headway", "/etc/nginx/site"} <= placed
    over = {path.rpartition("/")[2] for path in placed if path.startswith("/etc/nginx/site/")}
    assert over == {"files.conf", "listen.conf", "redirect.conf", "replicas.conf"}


def test_prometheus_scrapes_each_replica() -> None:
    ours, root = (yaml.safe_load((ROOT / path).read_text()) for path in ("docker/prometheus.yml", "prometheus.yml"))
    (targets,) = [
        group["targets"]
        for job in ours["scrape_configs"]
        if job["job_name"] == "headway"
        for group in job["static_configs"]
    ]
    assert targets == [f"{name}:{HTTP_PORT}" for name in REPLICAS]
    assert ours["global"] == root["global"]
    assert [job["job_name"] for job in ours["scrape_configs"]] == [job["job_name"] for job in root["scrape_configs"]]
    mounted = dict(reversed(volume.split(":")[:2]) for volume in SERVICES["prometheus"]["volumes"])
    (pattern,) = ours["rule_files"]
    directory = Path(mounted[f"/etc/prometheus/{Path(pattern).parent}"])
    assert list((ROOT / directory).glob(Path(pattern).name))


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    promtool = require_command("promtool", "prometheus")
    shutil.copy(ROOT / "docker/prometheus.yml", tmp_path / "prometheus.yml")
    shutil.copytree(ROOT / "prometheus", tmp_path / "rules")
    done = subprocess.run(
        [promtool, "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_its_dashboards_and_prometheus() -> None:
    grafana = SERVICES["grafana"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in grafana["volumes"]}
    provider = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/headway.yml").read_text())["providers"][0]
    assert mounted[provider["options"]["path"]] == "./grafana/dashboards"
    source = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"].strip("${}") in grafana["environment"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounted[str(home.parent)] / home.name).exists()


def test_postgresql_is_of_all_replicas() -> None:
    services = WITH_POSTGRESQL["services"]
    urls = {services[name]["environment"]["HEADWAY_DATABASE_URL"] for name in (*REPLICAS, "database-upgrade")}
    assert len(urls) == 1
    assert "@postgresql:5432/" in urls.pop()
    assert services["headway-1"]["environment"]["HEADWAY_REPLICAS"] == str(len(REPLICAS))
    assert services["database-upgrade"]["command"] == ["headway", "db", "upgrade"]


def test_no_secret_is_committed() -> None:
    for path in ("compose.yaml", "docker/postgresql.yaml"):
        for value in re.findall(r"(?:PASSWORD|TOKEN|SECRET|API_KEYS): (\S+)", (ROOT / path).read_text()):
            assert value.startswith("${")
