"""The listening sockets, bound by us: gunicorn retries a taken port for 5 s and ends without saying why."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

from app.server.options import ConfigurationError, ServerOptions


class _Option(NamedTuple):
    """Where the address of a listener is set, for messages."""

    host: str
    port: str


_FIRST = _Option("--host", "--port")
_ALSO = _Option("HEADWAY_MANAGEMENT_BIND", "HEADWAY_MANAGEMENT_BIND")
_SHARED = _Option("--host", "--grpc-port")


def bind_listeners(options: ServerOptions) -> list[socket.socket]:
    """Bound, not yet listening, in the order of the options. Raises ConfigurationError with what to do."""
    listeners: list[socket.socket] = []
    try:
        if options.uds is not None:
            listeners.append(_bind_unix(options.uds))
        else:
            listeners.append(_bind_port(options.host, options.port, _FIRST))
        for host, port in options.also_bind:
            listeners.append(_bind_port(host, port, _ALSO, listeners))
    except ConfigurationError:
        close_listeners(listeners)
        raise
    return listeners


def hold_shared(host: str, port: int, listeners: Sequence[socket.socket]) -> socket.socket:
    """A socket that keeps the port for the workers, which bind it anew each; it never listens.

    Raises ConfigurationError where one of our `listeners` or somebody else has the port: two servers that both share it
    would not notice.
    """
    with _bind_port(host, port, _SHARED, listeners) as probe:
        family, address = probe.family, probe.getsockname()
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError as exc:
        holder.close()
        raise _explain(exc, host, port, _SHARED) from exc
    return holder


def start_listening(listeners: list[socket.socket], backlog: int) -> None:
    for number, listener in enumerate(listeners):
        try:
            listener.listen(backlog)
        except OSError as exc:
            host, port = listener.getsockname()[:2]
            raise _explain(exc, host, port, _ALSO if number else _FIRST) from exc


def close_listeners(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def describe_shared(holder: socket.socket, is_tls: bool) -> str:
    """As `describe_address`, of what `hold_shared` gave: gRPC's."""
    return describe_address(holder, is_tls).replace("http", "grpc", 1)


def describe_address(listener: socket.socket, is_tls: bool) -> str:
    """What to call it in a browser or in `curl`."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if is_tls else 'http'}://{host}:{name[1]}"


def remove_unix_socket(path: str, inode: int) -> None:
    """Remove our socket file; not one that a successor has put in its place."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


def _bind_port(host: str, port: int, option: _Option, others: Sequence[socket.socket] = ()) -> socket.socket:
    """`others` are ours, in the order of the options. None listens yet, so the kernel would let them share a port."""
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536
        raise ConfigurationError(f"port {port} does not exist: choose one up to 65535 with {option.port}")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as exc:
        raise ConfigurationError(f"host {host} is not known: check {option.host}") from exc
    # Of a name with addresses of both families, such as localhost, clients expect the IPv4 one to work.
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    for number, other in enumerate(others):
        if _overlap(address, other.getsockname()):
            taker = _ALSO if number else _FIRST
            raise ConfigurationError(
                f"port {port} is wanted twice, by {taker.port} and by {option.port}: choose another with one of them"
            )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        listener.close()
        raise _explain(exc, host, port, option) from exc
    return listener


def _overlap(one: Any, other: Any) -> bool:
    """Whether a connection to one address could be for the other; they are of `getsockname`."""
    if isinstance(other, str) or one[1] != other[1] or one[1] == 0:
        return False
    hosts = [_unmapped(address[0]) for address in (one, other)]
    if hosts[0] == hosts[1]:
        return True
    # Of the wildcards that of IPv6 is IPv4's, too.
    return any(host.is_unspecified and (host.version == 6 or hosts[0].version == hosts[1].version) for host in hosts)


def _unmapped(host: str) -> IPv4Address | IPv6Address:
    found = ip_address(host.partition("%")[0])
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _explain(exc: OSError, host: str, port: int, option: _Option) -> ConfigurationError:
    code = exc.errno
    if code == errno.EADDRINUSE:
        text = f"port {port} on {host} is taken: stop the other server or choose another with {option.port}"
    elif code in (errno.EACCES, errno.EPERM):
        text = f"no permission for port {port} on {host}: choose one above 1023 with {option.port}"
    elif code == errno.EADDRNOTAVAIL:
        text = f"{host} is not an address of this machine: check {option.host}"
    else:
        text = f"cannot listen on port {port} of {host}: {exc}"
    return ConfigurationError(text)


def _bind_unix(path: str) -> socket.socket:
    _clear_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o666)  # a proxy runs as another user; the directory says who may come in
    except OSError as exc:
        listener.close()
        raise ConfigurationError(f"cannot make the socket {path}: {exc.strerror or exc}") from exc
    return listener


def _clear_stale(path: str) -> None:
    """Remove the socket of a server that was killed; refuse to touch anything else."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{path} exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as exc:
            raise ConfigurationError(f"cannot use the socket {path}: {exc.strerror or exc}") from exc
    raise ConfigurationError(f"the socket {path} is taken: stop the other server or choose another path")
