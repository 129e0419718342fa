"""A real nginx with the files of nginx/, and real replicas behind it that can be killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.running import PATIENCE_SECONDS, ROOT, RunningServer, running_server
from tests.tools import require_command

NGINX = ROOT / "nginx"
# A file in nginx/ → what is replaced in it, each of which must be there. All else is as users get it.
Changes = dict[str, Sequence[tuple[str, str]]]
_LISTENING, _ESTABLISHED = 0x0A, 0x01


def wait_for(is_so: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < limit, f"waited in vain for {what}"
        time.sleep(0.01)


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- replicas


class Replica:
    """`headway serve` with one worker, always on the same port."""

    def __init__(self, directory: Path, models: Path) -> None:
        self.port = find_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self._directory = directory
        self._models = models
        self._starts = 0
        self._life = contextlib.ExitStack()
        self._server: RunningServer | None = None

    def start(self) -> None:
        self._starts += 1
        log = self._directory / f"log-{self._starts}"
        server = running_server(
            log,
            "--port",
            str(self.port),
            workers=1,
            HEADWAY_MODELS=str(self._models),
            HEADWAY_THREADS="1",
            HEADWAY_SECRET="1:" + "ab" * 16,
        )
        self._server = self._life.enter_context(server)

    def stop(self) -> None:
        """SIGTERM, and wait until it has answered what it took."""
        self._life.close()
        self._server = None

    def pause(self) -> None:
        """It is there, takes connections and does nothing: a machine that hangs."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)
        self.stop()
        wait_for(lambda: not find_connections(self.port, _LISTENING), "the end of its listener")

    @property
    def is_running(self) -> bool:
        return self._server is not None

    def read_requests(self) -> list[dict[str, Any]]:
        """The lines of its access log."""
        lines: list[dict[str, Any]] = []
        for log in sorted(self._directory.glob("log-*")):
            lines += [json.loads(line) for line in log.read_text().splitlines() if '"headway.access"' in line]
        return lines

    def count_connections(self) -> int:
        return len(find_connections(self.port, _ESTABLISHED))

    def has_unread(self) -> bool:
        """Bytes wait for it that it has not read."""
        return self.count_unread() > 0

    def count_unread(self) -> int:
        """Connections with such bytes."""
        return sum(unread > 0 for unread in find_connections(self.port, _ESTABLISHED))

    def _pids(self) -> list[int]:
        assert self._server is not None
        return [self._server.process.pid, *self._server.worker_pids()]


def find_connections(port: int, state: int) -> list[int]:
    """The unread bytes of each connection to a local port that is in this state (proc_net_tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [row for row in rows if int(row[1].partition(":")[2], 16) == port and int(row[3], 16) == state]
    return [int(row[4].partition(":")[2], 16) for row in ours]


# --- nginx


@dataclass
class Nginx:
    process: subprocess.Popen[bytes]
    directory: Path
    port: int
    plain_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def read_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "access.log").read_text().splitlines()]

    def get_line(self, request_id: str) -> dict[str, Any]:
        """Its line, which is written after the answer."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [line for line in self.read_log() if line["request_id"] == request_id]
            return bool(found)

        wait_for(look, f"the line of {request_id}")
        assert len(found) == 1, found
        return found[0]


def list_replicas(addresses: Sequence[str], *options: str) -> Changes:
    """In place of those in site/replicas.conf. `options` are of the last one."""
    ports = ("8000", "8010", "8020")
    old = "".join(f"    server 127.0.0.1:{port} max_fails=0;\n" for port in ports)
    lines = [f"    server {address} max_fails=0;\n" for address in addresses]
    lines[-1] = lines[-1].replace(";", "".join(f" {option}" for option in options) + ";")
    return {"site/replicas.conf": [(old, "".join(lines))]}


def raise_limits() -> Changes:
    """For many requests of one caller."""
    return {
        "site/limits.conf": [
            ("rate=500r/s", "rate=100000r/s"),
            ("rate=1000r/s", "rate=100000r/s"),
            ("burst=1000", "burst=100000"),
            ("burst=2000", "burst=100000"),
        ]
    }


@contextlib.contextmanager
def running_nginx(directory: Path, changes: Changes, tls: Path | None = None) -> Iterator[Nginx]:
    """With the certificate in `tls`; without one as in a cluster, behind what ends TLS."""
    command = require_command("nginx", "nginx")
    directory.mkdir(exist_ok=True)
    port, plain_port = find_port(), find_port()
    configure(directory / "conf", changes | _move(directory, port, plain_port, tls), is_cluster=tls is None)
    with (directory / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [command, "-e", str(directory / "error.log"), "-c", str(directory / "conf" / "nginx.conf")], stderr=stderr
        )
    try:
        wait_for(lambda: find_connections(port, _LISTENING) or process.poll() is not None, "nginx")
        assert process.poll() is None, (directory / "stderr").read_text()
        yield Nginx(process, directory, port, plain_port)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def configure(directory: Path, changes: Changes, *, is_cluster: bool) -> None:
    """A copy of nginx/ with these changes; as in a cluster but for its replicas.conf, which needs a newer nginx."""
    shutil.copytree(NGINX, directory)
    if is_cluster:
        for name in ("listen.conf", "front.conf", "redirect.conf"):
            shutil.copy(directory / "kubernetes" / name, directory / "site" / name)
    for name, replacements in changes.items():
        path = directory / name
        text = path.read_text()
        for old, new in replacements:
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new)
        path.write_text(text)


def _move(directory: Path, port: int, plain_port: int, tls: Path | None) -> Changes:
    """The paths and ports of a machine, to those of a test."""
    user = "user root;\n" if os.geteuid() == 0 else ""  # else nginx takes another, who may not read here
    main = f"{user}daemon off;\npid {directory}/pid;\nerror_log {directory}/error.log"
    parts = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{part}_temp_path {directory}/{part};\n" for part in parts)
    changes: Changes = {
        "site/main.conf": [("error_log /var/log/nginx/error.log", main)],
        "site/files.conf": [("access_log /var/log/nginx", f"{temporary}access_log {directory}")],
    }
    if tls is None:
        # Debian's nginx 1.22 does not know `http2 on`.
        changes["site/listen.conf"] = [("listen 8080", f"listen 127.0.0.1:{port}"), ("http2 on;", "")]
        return changes
    changes["site/listen.conf"] = [("\nlisten 443", f"\nlisten 127.0.0.1:{port}"), ("/etc/nginx/tls", str(tls))]
    changes["site/redirect.conf"] = [
        ("listen 80;", f"listen 127.0.0.1:{plain_port};"),
        ("https://$host", f"https://$host:{port}"),
    ]
    return changes


# --- certificates


def make_certificates(directory: Path) -> Path:
    """An authority of our own (ca.pem), and what it says of localhost (fullchain.pem, privkey.pem)."""
    openssl = require_command("openssl", "openssl")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=A test", "-days", "2", *usage)
    run("req", *key, "-keyout", "privkey.pem", "-out", "request.pem", "-subj", "/CN=localhost")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    run("x509", "-req", "-in", "request.pem", *signer, "-out", "fullchain.pem", "-days", "2")
    return directory
