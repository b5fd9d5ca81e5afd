"""Promises about a balancer in front that says by the PROXY protocol who came: it is believed, and nobody else."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qanat.base.proxy_protocol import V2_SIGNATURE, encode
from qanat.config.server_settings import ServerLimits
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door.front_door import FrontDoor
from tests.support.background import DEADLINE, wait_until
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_nginx_stream
from tests.support.machine.proxies import Haproxy
from tests.support.machine.web import Nginx, wait_until_listening
from tests.support.server.front_door_rig import (
    WEBSOCKET,
    Certificate,
    connect,
    exchange,
    front_door,
    read_head,
    read_to_end,
    request,
)

CLIENT = "203.0.113.7:4711"
HEALTH = request("GET /healthz HTTP/1.1")
PROXIES: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": ("127.0.0.1/32",)}
NONE = b"a PROXY protocol header came before"


class Door:
    """A front door that notes who came over a tunnel."""

    def __init__(self, door: FrontDoor, seen: queue.Queue[ClientAddress]) -> None:
        self.door, self._seen = door, seen

    def who_comes(self, port: int, *headers: str, before: bytes = b"", source: str = "127.0.0.1") -> ClientAddress:
        """Who the server takes a client for that connects to `port` from `source` and sends `before` first."""
        head = "\r\n".join(["GET /tunnel HTTP/1.1", *headers]) + f"\r\n{WEBSOCKET}\r\n"
        with socket.create_connection(("127.0.0.1", port), DEADLINE, (source, 0)) as sock:
            sock.sendall(before + head.encode())
            assert read_head(sock).startswith(b"HTTP/1.1 101 ")
            return self._seen.get(timeout=DEADLINE)

    @property
    def port(self) -> int:
        return self.door.addresses[0][1]


@contextlib.contextmanager
def noting_door(**settings: Any) -> Iterator[Door]:
    seen: queue.Queue[ClientAddress] = queue.Queue()
    with front_door(lambda pipe, address, slot: seen.put(address), **settings) as door:
        yield Door(door, seen)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_who_came_is_what_the_header_says(version: str) -> None:
    header = encode(version, CLIENT, "192.0.2.1:443")
    with noting_door(**PROXIES) as door:
        address = door.who_comes(door.port, "X-Forwarded-For: 198.51.100.1", before=header)
        assert (address.client, address.via_proxy) == ("203.0.113.7", False)
        assert str(address).startswith(f"{CLIENT} via 127.0.0.1:")
        assert exchange(door.door, header + HEALTH).endswith(b"ok\n")


def test_a_proxy_behind_a_balancer_is_believed_in_turn() -> None:
    header = encode("v2", "127.0.0.1:4711", "127.0.0.1:443")
    with noting_door(**PROXIES) as door:
        address = door.who_comes(door.port, "X-Forwarded-For: 198.51.100.1", before=header)
        assert (address.client, address.via_proxy) == ("198.51.100.1", True)


def test_a_header_may_come_in_pieces_and_before_tls_or_http2(tmp_path: Path) -> None:
    certificate = Certificate(tmp_path)
    with front_door(tls=certificate.tls, **PROXIES) as door, connect(door) as sock:
        for byte in encode("v2", CLIENT, "192.0.2.1:443"):
            sock.sendall(bytes([byte]))
        with certificate.client_context().wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(HEALTH)
            assert read_to_end(tls).endswith(b"ok\n")
    with front_door(**PROXIES) as door, connect(door) as sock:
        sock.sendall(encode("v1", CLIENT, "192.0.2.1:443") + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert sock.recv(9)[3] == 4, "SETTINGS"


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2_SIGNATURE + b"\x20\0\0\0"])
def test_a_health_check_by_the_balancer_itself_is_served(header: bytes) -> None:
    with noting_door(**PROXIES) as door:
        assert exchange(door.door, header + HEALTH).endswith(b"ok\n")
        address = door.who_comes(door.port, "X-Forwarded-For: 198.51.100.1", before=header)
        assert (address.client, address.via_proxy) == ("198.51.100.1", True)


@pytest.mark.parametrize(
    "first", [HEALTH, b"PROXY TCP4 nonsense\r\n" + HEALTH, V2_SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 60_000)]
)
def test_a_trusted_proxy_without_a_right_header_is_refused_and_told_of_once(
    first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with front_door(**PROXIES) as door:
        for _ in range(3):
            assert exchange(door, first) == b""
        wait_until(lambda: "send-proxy-v2" in caplog.text, "it was logged")
    assert caplog.text.count("in `trusted_proxies`") == 1


def test_who_is_not_trusted_needs_no_header_and_may_send_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with noting_door(proxy_protocol=True, trusted_proxies=("192.0.2.0/24",)) as door:
        assert door.who_comes(door.port).client == "127.0.0.1"
        for version in ("v1", "v2"):
            assert NONE in exchange(door.door, encode(version, CLIENT, "192.0.2.1:443") + HEALTH)
    assert caplog.text.count("only the addresses in trusted_proxies may send it") == 1


def test_a_balancer_that_sends_it_unasked_is_named_with_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with front_door() as door:
        for version in ("v1", "v2"):
            assert NONE in exchange(door, encode(version, CLIENT, "192.0.2.1:443") + HEALTH)
    assert caplog.text.count("set proxy_protocol: true") == 1


def test_a_header_that_comes_slowly_dies_at_the_deadline() -> None:
    with front_door(limits=ServerLimits(header_timeout=0.3), **PROXIES) as door, connect(door) as sock:
        sock.sendall(b"PROXY TCP4 203.0.1")
        assert read_to_end(sock) == b""


def test_clients_of_one_balancer_are_slowed_down_by_themselves() -> None:
    limits = ServerLimits(per_address_rate=0.01, per_address_burst=1, header_timeout=60)
    with front_door(limits=limits, **PROXIES) as door:
        for n in range(10):
            assert exchange(door, encode("v2", f"203.0.113.{n}:1", "192.0.2.1:443") + HEALTH).endswith(b"ok\n")


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl proxy-v2-options crc32c"])
def test_haproxy_tells_who_came(option: str, tmp_path: Path) -> None:
    with noting_door(**PROXIES) as door:
        port = unused_port()
        (tmp_path / "haproxy.cfg").write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n"
            f"frontend in\n  bind 127.0.0.1:{port}\n  default_backend out\n"
            f"backend out\n  server qanat 127.0.0.1:{door.port} {option} check check-send-proxy\n"
        )
        with Haproxy(tmp_path / "haproxy.cfg") as program:
            wait_until_listening(port, program)
            address = door.who_comes(port, source="127.0.0.2")
        assert (address.client, address.via_proxy) == ("127.0.0.2", False)
        assert " via 127.0.0.1:" in address.peer


def test_nginx_tells_who_came(tmp_path: Path) -> None:
    with noting_door(**PROXIES) as door:
        port = unused_port()
        stream = (
            f"{require_nginx_stream()}\nstream {{ server {{ listen 127.0.0.1:{port}; "
            f"proxy_pass 127.0.0.1:{door.port}; proxy_protocol on; }} }}"
        )
        with Nginx(tmp_path, [], port, stream):
            address = door.who_comes(port, source="127.0.0.2")
        assert address.client == "127.0.0.2"
