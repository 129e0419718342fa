"""The files of nginx/ agree with the app, the documentation and each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from app.server.options import ServerOptions
from app.settings import Settings
from tests.nginx.balancer import NGINX, Replica, configure
from tests.running import ROOT
from tests.tools import require_command

pytestmark = pytest.mark.xdist_group("nginx")  # one set of replicas

FILES = sorted(NGINX.rglob("*.conf"))
# What nginx alone says; the guide tells their meaning.
OF_NGINX = {"too_many_requests", "no_replica"}


def find_value(name: str, directive: str) -> str:
    (value,) = re.findall(rf"^\s*{directive} (\S+);", (NGINX / name).read_text(), re.MULTILINE)
    return str(value)


def default(name: str) -> float:
    return float(Settings.model_fields[name].default)


def test_limits_are_those_of_the_app() -> None:
    options = ServerOptions("")
    assert int(find_value("site/limits.conf", "client_max_body_size")) == default("max_body_bytes")
    assert find_value("headway/server.conf", "client_header_timeout") == f"{options.header_timeout_seconds:g}s"
    assert find_value("headway/server.conf", "large_client_header_buffers 4") == "16k"
    assert options.max_header_bytes == 4 * 16 * 1024
    assert float(find_value("headway/proxy.conf", "proxy_read_timeout")[:-1]) > default("max_deadline_ms") / 1000
    assert float(find_value("headway/grpc.conf", "grpc_read_timeout")[:-1]) > default("max_deadline_ms") / 1000
    for directory in ("site", "kubernetes"):
        text = (NGINX / directory / "replicas.conf").read_text()
        idle = re.findall(r"keepalive_timeout (\d+)s;", text)
        assert len(idle) == 2
        assert all(int(seconds) < default("keepalive_seconds") for seconds in idle)
        assert text.count("least_conn;") == text.count("upstream headway") == 2
        servers = re.findall(r"^\s*server .*$", text, re.MULTILINE)
        assert all(line.endswith("max_fails=0;") for line in servers)


def test_first_replica_is_where_the_app_listens() -> None:
    assert (
        f"server {Settings.model_fields['host'].default}:{default('port'):g} "
        in (NGINX / "site/replicas.conf").read_text()
    )


def test_codes_are_in_the_reference() -> None:
    maps = (NGINX / "headway/maps.conf").read_text().partition("$headway_error_code {")[2].partition("}")[0]
    codes = dict(re.findall(r"(\d+|default) (\w+);", maps))
    reference = (ROOT / "docs/reference/errors.md").read_text()
    statuses = dict(re.findall(r"^\| `(\w+)` \| (\d+) ", reference, re.MULTILINE))
    guide = (ROOT / "docs/guides/nginx.md").read_text()
    for status, code in codes.items():
        if code in OF_NGINX:
            assert code not in statuses
            assert f"`{code}`" in guide
        else:
            assert status in (statuses[code], "default"), code


def test_routes_are_there_in_the_app(replicas: list[Replica]) -> None:
    paths = httpx.get(f"{replicas[0].url}/openapi.json").json()["paths"]
    locations = re.findall(r"^location = (\S+) {\n    (\S+)", (NGINX / "headway/server.conf").read_text(), re.MULTILINE)
    for path, first in locations:
        if path == "/nginx-health":
            continue
        if first == "return":
            assert f"`POST {path}`" in (ROOT / "docs/reference/api.md").read_text()
        else:
            assert path in paths
    repeated = re.findall(r"^location [=~] (\S+) {\n    include headway/predictions", _read_all(), re.MULTILINE)
    predictions = [path for path in paths if re.search(r"predict$|/infer$", path)]
    assert predictions
    for path in predictions:
        written = re.sub(r"{\w+}", "x", path)
        assert any(re.fullmatch(pattern, written) for pattern in repeated), path
        assert set(paths[path]) == {"post"}
    assert not [path for path in set(paths) - set(predictions) if any(re.fullmatch(one, path) for one in repeated)]


def _read_all() -> str:
    return "\n".join(path.read_text() for path in FILES)


def test_only_predictions_are_repeated() -> None:
    found = [
        (path.name, words)
        for path in FILES
        for words in re.findall(r"^\s*(?:proxy|grpc)_next_upstream ([^;]+);", path.read_text(), re.MULTILINE)
    ]
    assert sorted(found) == [
        ("grpc.conf", "error timeout"),
        ("grpc.conf", "error timeout non_idempotent"),
        ("predictions.conf", "error timeout non_idempotent"),
        ("proxy.conf", "error timeout"),
    ]


def test_every_file_is_used_and_explained() -> None:
    included = set(re.findall(r"include (\S+\.conf);", _read_all())) | {"nginx.conf"}
    guide = (ROOT / "docs/guides/nginx.md").read_text()
    for path in FILES:
        name = str(path.relative_to(NGINX))
        if path.parent.name == "kubernetes":
            assert (NGINX / "site" / path.name).exists(), name
        else:
            assert name in included, name
        if path.parent.name in {"site", "kubernetes"}:
            assert path.name in guide, name


@pytest.mark.parametrize("is_cluster", [False, True])
def test_nginx_finds_no_fault(tmp_path: Path, certificates: Path, is_cluster: bool) -> None:
    """gRPC too, of which no more is tested here. Warnings count."""
    changes = {
        "site/main.conf": [("/var/log/nginx", str(tmp_path))],
        "site/files.conf": [("/var/log/nginx", str(tmp_path))],
        "site/listen.conf": [("http2 on;", "")] if is_cluster else [("/etc/nginx/tls", str(certificates))],
    }
    configure(tmp_path / "conf", changes, is_cluster=is_cluster)
    command = [require_command("nginx", "nginx"), "-t", "-e", str(tmp_path / "log"), "-g", f"pid {tmp_path}/pid;"]
    done = subprocess.run(
        [*command, "-c", str(tmp_path / "conf/nginx.conf")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
