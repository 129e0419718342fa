"""What the connections of one worker share: their limits, and whether they are to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uvicorn.server import ServerState


@dataclass(frozen=True)
class ProtocolLimits:
    """`header_timeout_seconds` runs from the connection, or from the first byte of a later request."""

    max_header_bytes: int = 64 * 1024
    header_timeout_seconds: float = 10.0


def _ignore() -> None:
    """No one counts the connections."""


class ConnectionState(ServerState):
    """While `is_closing`, every answer closes its connection."""

    def __init__(self, limits: ProtocolLimits | None = None) -> None:
        super().__init__()
        self.limits = limits or ProtocolLimits()
        self.is_closing = False
        self.on_connection_lost: Callable[[], None] = _ignore
