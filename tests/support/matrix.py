"""Every transport over every path, all at once: one client process for each cell, two servers, and the proxies.

`Matrix` starts all of it and collects which promises each cell has kept; `table` is what README.md shows and the run
prints.  What is promised of a cell that is used are its methods; tests/integration/test_matrix.py calls them.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qanat.handshake.tokens import generate_token
from tests.support import scenarios
from tests.support.applications import (
    Target,
    connection,
    echo,
    exchange,
    greeting,
    receive_all,
    receive_exactly,
    reply_after_end,
)
from tests.support.harness import ROOT, Program, Tunnel, qanat
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port
from tests.support.machine.proxies import ALL, DEPLOYMENTS, SPLIT, Place
from tests.support.machine.web import HOST
from tests.support.scenarios import Bulk

TRANSPORTS = (*ALL, SPLIT)
DIRECT_TLS, DIRECT_PLAIN = "direct TLS", "direct plain"
PATHS = (DIRECT_TLS, DIRECT_PLAIN, *dict.fromkeys(deployment.proxy for deployment in DEPLOYMENTS))
CELLS = tuple(
    (transport, path)
    for path in PATHS
    for transport in TRANSPORTS
    if path in (DIRECT_TLS, DIRECT_PLAIN)
    or any(path == deployment.proxy and transport in deployment.transports for deployment in DEPLOYMENTS)
)
"""The transports that pass each path."""
NOT_OFFERED = "not offered"
PROMISES = (
    "the server speaks first",
    "20 turns of ping-pong",
    "8 MB both ways at once",
    "a reply after FIN arrives whole",
    "20 streams at once",
    "90 s of silence",
)
BULK = 8_000_000
START = 120.0
"""Seconds until each client is connected: all of them start at once, on machines with two processors."""
SILENCE = 90.0
"""Seconds; more than nginx (60), HAProxy (50), nghttpx (60) and Apache (20) let a silent connection live."""
BEGIN, END = "<!-- the matrix: from here -->\n", "<!-- the matrix: to here -->\n"


@dataclass(frozen=True, slots=True)
class Cell:
    """One transport over one path: a running client, and the ports where its forwards listen, by target."""

    transport: str
    path: str
    client: Program
    ports: dict[str, int]
    bulk: Bulk
    bulk_target: Target
    kept: list[str] = field(default_factory=list)

    @property
    def connections(self) -> int:
        """How many connections the client has had: its session's first, and all others by which it was resumed."""
        return self.client.count(f"connected to .* over {self.transport} as") + self.client.count("was lost after")

    def check_server_speaks_first(self) -> None:
        """An application's server; the tunnel's own has done so before, or there were no tunnel."""
        with connection(self.ports["greeting"]) as sock:
            assert receive_exactly(sock, 11) == b"220 hello\r\n"

    def check_ping_pong(self) -> None:
        with connection(self.ports["echo"]) as sock:
            for turn in range(20):
                ping = f"turn {turn}".encode()
                assert exchange(sock, ping) == ping

    def check_bulk(self) -> None:
        self.bulk.run(self.ports["bulk"], self.bulk_target)

    def check_reply_after_end(self) -> None:
        with connection(self.ports["reply"]) as sock:
            sock.sendall(b"all that there is to say")
            sock.shutdown(socket.SHUT_WR)
            assert len(receive_all(sock)) == 32 + (1 << 20)

    def check_streams_at_once(self) -> None:
        scenarios.streams_at_once(self.ports["echo"], 20)
        scenarios.streams_at_once(self.ports["remote echo"], 20)


class Matrix:
    """Starts every cell; ends all with `stack`.  The cells by transport and path are in `cells`."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._bulk = Bulk(BULK)
        self._authority = Authority(directory)
        issued = self._authority.issue(HOST)
        issued.key.chmod(0o600)
        self._targets = {
            name: stack.enter_context(Target(handler))
            for name, handler in (("greeting", greeting), ("echo", echo), ("reply", reply_after_end))
        }
        for name in self._names():
            self._token_file(name).touch(mode=0o600)
            self._token_file(name).write_text(generate_token() + "\n")
        plain = self._server("plain", {"trusted_proxies": ["127.0.0.1/32"]})
        tls = self._server("tls", {"tls": {"certificate": str(issued.certificate), "key": str(issued.key)}})
        urls = {(transport, DIRECT_PLAIN): (plain, f"http://{HOST}:{plain.port}/tunnel") for transport in TRANSPORTS}
        urls |= {(transport, DIRECT_TLS): (tls, f"https://{HOST}:{tls.port}/tunnel") for transport in TRANSPORTS}
        for number, deployment in enumerate(DEPLOYMENTS):
            place = Place(directory / f"proxy-{number}", unused_port(), plain.port, issued)
            place.directory.mkdir()
            stack.enter_context(deployment.start(place))
            for transport in deployment.transports:
                urls[transport, deployment.proxy] = (plain, f"https://{HOST}:{place.port}/tunnel")
        self.cells = {key: self._client(*key, *urls[key]) for key in CELLS}
        for cell in self.cells.values():
            cell.client.wait_for(f"connected to .* over {cell.transport} as", seconds=START)
            cell.client.wait_for("the server listens on", seconds=START)
        self._unused_since = time.monotonic()

    def wait_unused(self) -> None:
        """Block until SILENCE seconds have passed since all were connected; nobody may have used one by then."""
        sleep_until(self._unused_since + SILENCE)

    def table(self) -> str:
        """Markdown: for each cell how many of the promises it has kept."""
        rows = [["", *PATHS], ["---"] * (len(PATHS) + 1)]
        for transport in TRANSPORTS:
            cells = [self.cells.get((transport, path)) for path in PATHS]
            kept = [NOT_OFFERED if cell is None else f"{len(cell.kept)} of {len(PROMISES)}" for cell in cells]
            rows.append([f"`{transport}`", *kept])
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def check_output(self) -> None:
        """No log may hold a traceback."""
        for cell in self.cells.values():
            assert "Traceback" not in cell.client.output, cell.client.output

    def _server(self, name: str, settings: dict[str, Any]) -> Tunnel:
        accounts = [
            {
                "name": client,
                "token_file": str(self._token_file(client)),
                "allow_connect": ["127.0.0.1:*"],
                "allow_listen": ["127.0.0.1:1-65535"],
            }
            for client in self._names()
        ]
        tunnel = Tunnel(self._directory / name, server={"clients": accounts, **settings})
        self._stack.enter_context(tunnel).start_server()
        return tunnel

    def _client(self, transport: str, path: str, server: Tunnel, url: str) -> Cell:
        name = _name(transport, path)
        bulk = self._stack.enter_context(Target(self._bulk.handler))
        targets = {**self._targets, "bulk": bulk}
        ports = {target: unused_port() for target in (*targets, "remote echo")}
        tls = {"tls": {"ca_file": str(self._authority.ca_file)}} if url.startswith("https:") else {}
        settings = {
            **tls,
            "name": name,
            "url": url,
            "transport": transport,
            "token_file": str(self._token_file(name)),
            "server_fingerprint": server.fingerprint,
            "forwards": [
                *({"local": f"127.0.0.1:{ports[key]}", "to": target.address} for key, target in targets.items()),
                {"remote": f"127.0.0.1:{ports['remote echo']}", "to": self._targets["echo"].address},
            ],
        }
        file = self._directory / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"client": settings}))
        client = self._stack.enter_context(qanat("client", "-c", file, cwd=ROOT))
        return Cell(transport, path, client, ports, self._bulk, bulk)

    def _names(self) -> list[str]:
        return [_name(transport, path) for transport, path in CELLS]

    def _token_file(self, name: str) -> Path:
        return self._directory / f"{name}.token"


def _name(transport: str, path: str) -> str:
    return f"{transport}-{path.replace(' ', '-')}"


def sleep_until(moment: float) -> None:
    """Block until `time.monotonic()` says `moment`: for a silence that is itself what is tested."""
    threading.Event().wait(max(0.0, moment - time.monotonic()))
