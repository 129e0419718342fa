"""The script that puts nginx's files in their places in a pod, on a ConfigMap as a node mounts it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.k8s.rendering import get_object, get_pod, render
from tests.running import ROOT
from tests.tools import require_command

SCRIPT = ROOT / "k8s/base/nginx-place.sh"
RESOLV = "# of a pod\nnameserver 10.43.0.10\nsearch team-a.svc.cluster.internal svc.cluster.internal\noptions ndots:5\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """As the kubelet writes a ConfigMap: what is seen are links into a directory that is replaced as a whole."""
    objects = render("k8s")
    (volume,) = [it for it in get_pod(objects, "headway-nginx")["volumes"] if it["name"] == "files"]
    data = get_object(objects, "ConfigMap", volume["configMap"]["name"])["data"]
    mounted = tmp_path / "files"
    for item in volume["configMap"]["items"]:
        path = mounted / "..2026" / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data[item["key"]])
    (mounted / "..data").symlink_to("..2026")
    for entry in (mounted / "..2026").iterdir():
        (mounted / entry.name).symlink_to(f"..data/{entry.name}")
    return mounted


def _place(files: Path, resolv: str, workers: str = "2") -> subprocess.CompletedProcess[str]:
    resolv_conf = files.parent / "resolv.conf"
    resolv_conf.write_text(resolv)
    command = ["sh", SCRIPT, files, files.parent / "placed", resolv_conf, workers]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_a_pod_knows_is_written_in(files: Path) -> None:
    done = _place(files, RESOLV, "3")
    assert done.returncode == 0, done.stderr
    placed = files.parent / "placed"
    replicas = (placed / "site/replicas.conf").read_text()
    assert "\nresolver 10.43.0.10 valid=5s;\n" in replicas
    servers = re.findall(r"^\s*server (\S+) resolve", replicas, re.MULTILINE)
    assert servers == [f"headway-pods.team-a.svc.cluster.internal:{port}" for port in (8000, 9000)]
    assert "worker_processes 3;\n" in (placed / "site/main.conf").read_text()
    seen = {path.relative_to(placed): path.read_text() for path in placed.rglob("*") if path.is_file()}
    given = {path.relative_to(files / "..2026"): path.read_text() for path in (files / "..2026").rglob("*.conf")}
    changed = {os.fspath(path) for path in given if seen[path] != given[path]}
    assert (set(seen), changed) == (set(given), {"site/main.conf", "site/replicas.conf"})
    # A container that is started again finds what it wrote.
    assert _place(files, RESOLV).returncode == 0


def test_servers_of_ipv6_and_more_than_one(files: Path) -> None:
    resolv = "search a.svc.cluster.local svc.cluster.local\nnameserver fd00::a\nnameserver 10.0.0.10\n"
    assert _place(files, resolv).returncode == 0
    replicas = (files.parent / "placed/site/replicas.conf").read_text()
    assert "\nresolver [fd00::a] 10.0.0.10 valid=5s;\n" in replicas


@pytest.mark.parametrize("resolv", ["", "search a.svc.cluster.local\n", "nameserver 10.0.0.10\n"])
def test_what_is_missing_is_told(files: Path, resolv: str) -> None:
    done = _place(files, resolv)
    assert done.returncode == 1
    assert "names no nameserver, or no domain to search" in done.stderr
    assert not (files.parent / "placed").exists()


def test_nginx_finds_no_fault(files: Path) -> None:
    """As far as an nginx before 1.27.3 understands: without `resolve` and `http2 on`."""
    nginx = require_command("nginx", "nginx")
    assert _place(files, RESOLV).returncode == 0
    placed = files.parent / "placed"
    for name, pattern, other in (
        ("replicas", r"server \S+:(\d+) resolve", r"server 127.0.0.1:\1"),
        ("listen", "http2 on;", ""),
        ("main", "/var/log/nginx", str(placed)),
        ("files", "/var/log/nginx", str(placed)),
    ):
        path = placed / f"site/{name}.conf"
        path.write_text(re.sub(pattern, other, path.read_text()))
    command = [nginx, "-t", "-e", placed / "log", "-c", placed / "nginx.conf", "-g", f"pid {placed}/pid;"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr
