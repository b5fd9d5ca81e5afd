"""The PROXY protocol at the ends of forwards: targets are told who came, and balancers in front are believed."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from qanat.base.proxy_protocol import HeaderReader, encode
from tests.support.applications import (
    RESET,
    Target,
    connection,
    echo,
    ending_of,
    exchange,
    receive_all,
    unix_connection,
)
from tests.support.harness import SECONDS, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.proxies import Haproxy
from tests.support.machine.web import Nginx, wait_until_listening

SOURCE = "127.0.0.2"
CLIENT = "203.0.113.7:4711"


def tell(sock: socket.socket, target: Target) -> str:
    """Read a header, say what it names, then echo."""
    reader = HeaderReader()
    while reader.endpoints is None:
        reader.feed(sock.recv(1))
    sock.sendall(f"{reader.endpoints.source} to {reader.endpoints.destination}\n".encode())
    return echo(sock, target)


@dataclass(frozen=True, slots=True)
class Site:
    tunnel: Tunnel
    ports: dict[str, int]
    unix: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-"))
        told = stack.enter_context(Target(tell))
        plain = stack.enter_context(Target(echo))
        nginx_port, haproxy_port, balancer_port = (unused_port() for _ in range(3))
        block = (
            f"server {{ listen 127.0.0.1:{nginx_port} proxy_protocol; location / "
            '{ return 200 "$proxy_protocol_addr:$proxy_protocol_port"; } }'
        )
        stack.enter_context(Nginx(directory / "nginx", [block], nginx_port))
        names = ("local v1", "local v2", "remote v1", "remote v2", "nginx", "haproxy", "balancer", "nothing")
        ports = {name: unused_port() for name in names}
        (directory / "haproxy.cfg").write_text(
            "defaults\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n"
            f"frontend in\n  mode http\n  bind 127.0.0.1:{haproxy_port} accept-proxy\n"
            '  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port]"\n'
            f"frontend front\n  mode tcp\n  bind 127.0.0.1:{balancer_port}\n  default_backend out\n"
            f"backend out\n  mode tcp\n  server remote 127.0.0.1:{ports['balancer']} send-proxy-v2\n"
        )
        where = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        forwards = [
            {"local": where["local v1"], "to": told.address, "proxy_protocol": "v1"},
            {"local": where["local v2"], "to": told.address, "proxy_protocol": "v2"},
            {"local": f"{short}/told", "to": told.address, "proxy_protocol": "v2"},
            {"remote": where["remote v1"], "to": told.address, "proxy_protocol": "v1"},
            {"remote": where["remote v2"], "to": told.address, "proxy_protocol": "v2"},
            {"local": where["nginx"], "to": f"127.0.0.1:{nginx_port}", "proxy_protocol": "v1"},
            {"remote": where["haproxy"], "to": f"127.0.0.1:{haproxy_port}", "proxy_protocol": "v2"},
            {"remote": where["balancer"], "to": told.address, "proxy_protocol": "v1", "accept_proxy_protocol": True},
            {"remote": where["nothing"], "to": plain.address},
        ]
        tunnel = Tunnel(directory / "tunnel", forwards, server={"trusted_proxies": ["127.0.0.1/32"]})
        stack.enter_context(tunnel).start()
        balancer = stack.enter_context(Haproxy(directory / "haproxy.cfg"))
        wait_until_listening(haproxy_port, balancer)
        yield Site(tunnel, {**ports, "front": balancer_port}, f"{short}/told")


def who_came(port: int, *, before: bytes = b"", source: str = SOURCE) -> tuple[str, str]:
    """What the target was told of a connection to `port`, and what it should have been told."""
    with socket.create_connection(("127.0.0.1", port), SECONDS, (source, 0)) as sock:
        data = bytes(range(256)) * 400
        sock.sendall(before + data)
        sock.shutdown(socket.SHUT_WR)
        line, _, rest = receive_all(sock).partition(b"\n")
        assert rest == data, "the stream's own bytes come whole behind the header"
        return line.decode(), f"{source}:{sock.getsockname()[1]} to 127.0.0.1:{port}"


@pytest.mark.parametrize("way", ["local v1", "local v2", "remote v1", "remote v2"])
def test_a_target_is_told_who_came_and_where_to(site: Site, way: str) -> None:
    told, right = who_came(site.ports[way])
    assert told == right


def test_of_a_unix_socket_the_path_is_told(site: Site) -> None:
    with unix_connection(site.unix) as sock:
        assert exchange(sock, b"") == b""
        assert sock.makefile("rb").readline().decode() == f" to {site.unix}\n"


@pytest.mark.parametrize("way", ["nginx", "haproxy"])
def test_nginx_and_haproxy_as_targets_know_who_came(site: Site, way: str) -> None:
    command = [require_program("curl"), "-sS", "--interface", SOURCE, "-w", " %{local_port}"]
    answer = subprocess.run(
        [*command, f"http://127.0.0.1:{site.ports[way]}/"], capture_output=True, timeout=SECONDS, check=True, text=True
    )
    told, _, port = answer.stdout.partition(" ")
    assert told == f"{SOURCE}:{port}"


def test_a_balancer_in_front_of_a_remote_forward_is_believed(site: Site) -> None:
    told, _ = who_came(site.ports["front"])
    assert told.startswith(f"{SOURCE}:")
    assert told.endswith(f" to 127.0.0.1:{site.ports['front']}")
    for version in ("v1", "v2"):
        header = encode(version, CLIENT, "192.0.2.1:443")
        assert who_came(site.ports["balancer"], before=header, source="127.0.0.1")[0] == f"{CLIENT} to 192.0.2.1:443"


def test_who_is_no_trusted_proxy_is_nobody_but_itself(site: Site) -> None:
    """What looks like a header is the stream's own bytes then."""
    with socket.create_connection(("127.0.0.1", site.ports["balancer"]), SECONDS, (SOURCE, 0)) as sock:
        sock.sendall(b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n")
        sock.shutdown(socket.SHUT_WR)
        first, second = receive_all(sock).splitlines()
        assert first.startswith(f"{SOURCE}:".encode())
        assert second.startswith(b"PROXY TCP4 203.0.113.7")


def test_a_trusted_proxy_without_a_header_is_reset_and_told_of(site: Site) -> None:
    for first in (b"GET / HTTP/1.1\r\n\r\n", b"PROXY nonsense\r\n"):
        with connection(site.ports["balancer"]) as sock:
            sock.sendall(first)
            assert ending_of(sock) == RESET
    site.tunnel.server.wait_for("Have it send the PROXY protocol")


def test_a_client_that_wants_it_of_a_server_without_trusted_proxies_is_told_what_to_do(tmp_path: Path) -> None:
    forward = {"remote": f"127.0.0.1:{unused_port()}", "to": "127.0.0.1:1", "accept_proxy_protocol": True}
    with Tunnel(tmp_path, [forward]) as tunnel:
        tunnel.start_server()
        tunnel.start_client(wait=False).wait_for("accept_proxy_protocol needs `trusted_proxies` on the server")
