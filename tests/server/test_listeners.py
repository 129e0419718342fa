from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from app.server.listeners import bind_listeners, close_listeners, describe_address, hold_shared, start_listening
from app.server.options import ConfigurationError, ServerOptions


def bind(**options: object) -> list[socket.socket]:
    return bind_listeners(ServerOptions(app="a:b", **options))  # type: ignore[arg-type]


def test_any_free_port() -> None:
    listeners = bind(port=0)
    address = describe_address(listeners[0], is_tls=False)
    close_listeners(listeners)
    assert address.startswith("http://127.0.0.1:")
    assert not address.endswith(":0")


def test_port_that_is_taken_between_bind_and_listen() -> None:
    first, second = bind(port=0), []
    try:
        second = bind(port=first[0].getsockname()[1])
        start_listening(first, 5)
        with pytest.raises(ConfigurationError, match="is taken"):
            start_listening(second, 5)
    finally:
        close_listeners(first + second)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"host": "no.such.host.invalid"}, "is not known: check --host"),
        ({"host": "203.0.113.7"}, "is not an address of this machine"),
        ({"port": 70_000}, "port 70000 does not exist"),
    ],
)
def test_impossible_address(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        bind(**options)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may bind any port")
def test_port_without_permission() -> None:
    with pytest.raises(ConfigurationError, match="no permission for port 80"):
        bind(port=80)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("localhost", "127.0.0.1"),
        pytest.param("::1", "::1", marks=needs_ipv6),
        pytest.param("::", "::1", marks=needs_ipv6),
        pytest.param("127.0.0.1", "::", marks=needs_ipv6),
        pytest.param("::ffff:127.0.0.1", "127.0.0.1", marks=needs_ipv6),
    ],
)
def test_one_port_for_two_listeners(first: str, second: str) -> None:
    listeners = bind(host=first, port=0)
    port = listeners[0].getsockname()[1]
    try:
        with pytest.raises(ConfigurationError, match=f"port {port} is wanted twice, by --port and by --grpc-port"):
            hold_shared(second, port, listeners)
    finally:
        close_listeners(listeners)
    with pytest.raises(ConfigurationError, match="by --port and by HEADWAY_MANAGEMENT_BIND"):
        bind(host=first, port=port, also_bind=((second, port),))


@pytest.mark.parametrize("host", [pytest.param("::1", marks=needs_ipv6), "127.0.0.2"])
def test_one_port_of_two_addresses(host: str) -> None:
    listeners = bind(host="127.0.0.1", port=0)
    port = listeners[0].getsockname()[1]
    with hold_shared(host, port, listeners) as holder:
        assert holder.getsockname()[1] == port
    close_listeners(listeners)


def test_second_port_taken_closes_the_first() -> None:
    message = "is taken: .* with HEADWAY_MANAGEMENT_BIND"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match=message):
        bind(port=0, also_bind=(taken.getsockname()[:2],))


def test_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    close_listeners(bind(uds=path))
    assert os.path.exists(path)
    listeners = bind(uds=path)
    assert describe_address(listeners[0], is_tls=False) == f"unix:{path}"
    close_listeners(listeners)


def test_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listeners = bind(uds=path)
    start_listening(listeners, 5)
    with pytest.raises(ConfigurationError, match="is taken"):
        bind(uds=path)
    close_listeners(listeners)


def test_file_in_place_of_unix_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("important")
    with pytest.raises(ConfigurationError, match="not a socket"):
        bind(uds=str(path))
    assert path.read_text() == "important"
