"""What `headway serve` prints once the first worker accepts: the address, the models, the sizing, a line to try."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any

from rich.markup import escape

from app.cli.console import err
from app.engine.cpu import Sizing
from app.settings import Settings

_EXAMPLE = Path("examples/cat.jpg")


class Banner:
    def __init__(self, settings: Settings, sizing: Sizing) -> None:
        self._settings = settings
        self._sizing = sizing
        self._management: str | None = None
        self._grpc: str | None = None

    def note_addresses(self, addresses: tuple[str, ...]) -> None:
        """Of all listeners: the first, the management API's where it is open, gRPC's where it has a port."""
        for address in addresses[1:]:
            if address.startswith("grpc"):
                self._grpc = address
            else:
                self._management = address

    def show(self, address: str) -> None:
        """Ask the server itself what it serves, so that what is printed is so."""
        base = address if address.startswith("unix:") else _reachable(address)
        sizing = self._sizing
        lines = [f"[bold green]Headway[/] serves at [bold]{escape(base)}[/]"]
        lines += self._model_lines(base)
        lines.append(
            f"  {_count(sizing.workers, 'worker')} × {_count(sizing.threads, 'thread')} "
            f"[dim]({escape(sizing.reason)})[/]"
        )
        if self._management is not None:
            lines.append(f"  management at {escape(_reachable(self._management))} [dim](with the admin token)[/]")
        if self._grpc is not None:
            lines.append(f"  gRPC at {escape(_reachable(self._grpc))}")
        lines += [
            "",
            f"  {escape(self._curl(base))}",
            "",
            "  [dim]page: /   API: /docs   metrics: /metrics   stop: Ctrl-C[/]",
        ]
        err.print("\n".join(lines))

    def _model_lines(self, base: str) -> list[str]:
        try:
            listed = self._get_models(base)
        except (OSError, ValueError, http.client.HTTPException):
            return ["  [dim]GET /models lists what is served[/]"]
        lines = []
        width = max((len(model["name"]) for model in listed["models"]), default=0) + 1
        for model in listed["models"]:
            versions = ", ".join(_describe(model, version) for version in model["versions"])
            lines.append(f"  {model['name']:<{width}} {versions or '[red]' + escape(model.get('error', '')) + '[/]'}")
        return lines or ["  [yellow]no models: the registry directory is empty[/]"]

    def _get_models(self, base: str) -> dict[str, Any]:
        scheme, _, netloc = base.partition("://")
        if scheme == "https":
            # Our own certificate, on our own machine: it need not name this address.
            context = ssl._create_unverified_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(netloc, timeout=2, context=context)
        elif scheme == "http":
            connection = http.client.HTTPConnection(netloc, timeout=2)
        else:
            raise ValueError("a unix socket")
        keys = self._settings.api_keys
        headers = {"Authorization": f"Bearer {keys[0].get_secret_value()}"} if keys else {}
        try:
            connection.request("GET", f"{self._settings.root_path}/models", headers=headers)
            loaded: dict[str, Any] = json.loads(connection.getresponse().read())
            return loaded
        finally:
            connection.close()

    def _curl(self, base: str) -> str:
        photo = str(_EXAMPLE) if _EXAMPLE.is_file() else "photo.jpg"
        where = f"--unix-socket {self._settings.uds} http://localhost" if base.startswith("unix:") else base
        key = " -H 'Authorization: Bearer YOUR_KEY'" if self._settings.api_keys else ""
        insecure = " -k" if base.startswith("https") else ""
        return f"curl{insecure} {where}/predict{key} -H 'Content-Type: image/jpeg' --data-binary @{photo}"


def _describe(model: dict[str, Any], version: dict[str, Any]) -> str:
    aliases = [alias for alias, target in model["aliases"].items() if target == version["version"]]
    text = version["version"] + (f" ({', '.join(aliases)})" if aliases else "")
    return text if version["state"] == "ready" else f"[red]{text} {version['state']}[/]"


def _reachable(address: str) -> str:
    """An address that can be typed: a wildcard is no destination."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
