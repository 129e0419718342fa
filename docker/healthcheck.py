"""Exit 0 where the server of this container is ready, else 1. The standard library alone: it runs every few seconds."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys

TIMEOUT_SECONDS = 4.0
PATH = "/health/ready"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(self._path)


def connect() -> http.client.HTTPConnection:
    """To where the settings of the server say that it listens."""
    if path := os.environ.get("HEADWAY_UDS"):
        return UnixConnection(path)
    port = int(os.environ.get("HEADWAY_PORT") or 8000)
    if os.environ.get("HEADWAY_SSL_CERTFILE"):
        # Its certificate is for another name than this, and it is in this container.
        context = ssl._create_unverified_context()
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=context)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)


def is_ready() -> bool:
    try:
        connection = connect()
        connection.request("GET", PATH)
        return connection.getresponse().status == 200
    except (OSError, ValueError, http.client.HTTPException):
        return False


if __name__ == "__main__":
    sys.exit(0 if is_ready() else 1)
