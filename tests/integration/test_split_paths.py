"""Promises of a whole tunnel over `split`, through what people have in front and never set up for it.

nginx, Apache, h2o, Varnish and Squid as they are installed, paths that lose and repeat requests, and the worst of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import scenarios
from tests.support.applications import (
    Target,
    connection,
    echo,
    exchange,
    greeting,
    receive_exactly,
)
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.web import Nginx
from tests.support.scenarios import Bulk
from tests.support.troubles.catalog import TROUBLES

SIZE = 4_000_000
PATHS = {trouble.name: trouble for trouble in TROUBLES}

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Way:
    """A tunnel over one path, and the ports where its forwards listen, by target."""

    tunnel: Tunnel
    ports: dict[str, int]
    bulk: Bulk
    bulk_target: Target


@pytest.fixture(
    params=[
        "nginx",
        "apache",
        "h2o",
        "varnish",
        "squid",
        "posts-lost",
        "posts-repeated",
        "worst",
        "h2-only-without-8441",
    ]
)
def way(request: pytest.FixtureRequest, directory: Path) -> Iterator[Way]:
    bulk = Bulk(SIZE)
    with Target(greeting) as greets, Target(echo) as echoes, Target(bulk.handler) as bulk_target:
        targets = {"greeting": greets, "echo": echoes, "bulk": bulk_target}
        ports = {name: unused_port() for name in targets}
        forwards = [{"local": f"127.0.0.1:{ports[name]}", "to": target.address} for name, target in targets.items()]
        tunnel = Tunnel(
            directory / "tunnel",
            forwards,
            client={"transport": "split"},
            server={"trusted_proxies": ["127.0.0.1/32"]},
        )
        with PATHS[request.param].start(tunnel.port, directory / "path") as path, tunnel:
            tunnel.client_settings["url"] = path.url
            tunnel.start()
            yield Way(tunnel, ports, bulk, bulk_target)


def test_a_proxy_that_takes_the_token_for_a_login_is_passed_without_it(directory: Path) -> None:
    port, front = unused_port(), unused_port()
    with Target(echo) as target:
        forward = {"local": f"127.0.0.1:{port}", "to": target.address}
        tunnel = Tunnel(directory / "tunnel", [forward], client={"transport": "split"})
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{front}/tunnel"
        block = (
            f"server {{ listen 127.0.0.1:{front}; location / {{\nif ($http_authorization) {{ return 401; }}\n"
            f"proxy_pass http://127.0.0.1:{tunnel.port};\n}} }}"
        )
        with Nginx(directory / "nginx", [block], front), tunnel:
            tunnel.start()
            with connection(port) as sock:
                assert exchange(sock, b"without") == b"without"


def test_a_tunnel_keeps_its_promises_over_requests_that_each_end(way: Way) -> None:
    with connection(way.ports["greeting"]) as sock:
        assert receive_exactly(sock, 11) == b"220 hello\r\n"
    with connection(way.ports["echo"]) as sock:
        for turn in range(20):
            ping = f"turn {turn}".encode()
            assert exchange(sock, ping) == ping
    way.bulk.run(way.ports["bulk"], way.bulk_target)
    scenarios.streams_at_once(way.ports["echo"], 20)
    assert way.tunnel.client.count("was lost") == 0
