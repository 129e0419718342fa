"""TLS, HTTP/2, and plain HTTP that is sent on."""

from __future__ import annotations

import json
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.nginx.balancer import Nginx
from tests.tools import require_command

pytestmark = pytest.mark.xdist_group("nginx")  # one set of replicas

ROW = {"model": "m", "inputs": [[0, 0, 1]]}


def test_prediction_by_tls_with_our_own_authority(secure: httpx.Client) -> None:
    answer = secure.post("/predict", json=ROW)
    assert answer.json()["results"][0]["predictions"][0]["label"] == "high"
    assert answer.headers.get_list("strict-transport-security") == ["max-age=31536000"]
    assert answer.headers["server"] == "nginx"  # and not which version of it


def test_unknown_authority_is_refused(secure_nginx: Nginx) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"https://localhost:{secure_nginx.port}/")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_version_of_tls(secure_nginx: Nginx, certificates: Path, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    context.minimum_version = context.maximum_version = version
    answer = httpx.get(f"https://localhost:{secure_nginx.port}/models", verify=context)
    assert answer.status_code == 200


def test_old_tls_is_refused(secure_nginx: Nginx) -> None:
    """`openssl` can be told to offer what Python's ssl no longer does."""
    openssl = require_command("openssl", "openssl")
    command = [openssl, "s_client", "-connect", f"127.0.0.1:{secure_nginx.port}", "-cipher", "ALL:@SECLEVEL=0"]
    old = subprocess.run([*command, "-tls1_1"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert old.returncode != 0
    assert b"alert protocol version" in old.stderr
    new = subprocess.run([*command, "-tls1_2"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert new.returncode == 0


def test_http_2(secure_nginx: Nginx, certificates: Path) -> None:
    curl = require_command("curl", "curl")
    command = [curl, "-s", "--http2", "--cacert", str(certificates / "ca.pem"), "-w", "\n%{http_version}"]
    url = f"https://localhost:{secure_nginx.port}/predict"
    asked = [*command, url, "-H", "Content-Type: application/json", "-d", json.dumps(ROW)]
    body, _, version = subprocess.run(asked, capture_output=True, check=True).stdout.decode().rpartition("\n")
    assert version == "2"
    assert json.loads(body)["model"] == "m"


def test_plain_http_is_sent_to_https(secure_nginx: Nginx, authority: ssl.SSLContext) -> None:
    url = f"http://localhost:{secure_nginx.plain_port}/predict?model=m"
    answer = httpx.post(url, json=ROW)
    assert answer.status_code == 308
    assert answer.headers["server"] == "nginx"
    assert answer.headers["location"] == f"https://localhost:{secure_nginx.port}/predict?model=m"
    answer = httpx.post(url, json=ROW, follow_redirects=True, verify=authority)
    assert (answer.status_code, answer.request.method) == (200, "POST")
