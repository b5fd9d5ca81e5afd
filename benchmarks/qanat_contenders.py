"""Qanat over each of its transports, by each way to its server: plain, with TLS, behind nginx and behind HAProxy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.contenders import LOOPBACK, Contender, Process, Running, Site, await_echo
from benchmarks.rig.processes import ROOT, python
from qanat.base.version import __version__
from qanat.cli.demo import TRANSPORTS
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.tokens import generate_token
from tests.support.harness import Program
from tests.support.machine.ports import unused_port
from tests.support.machine.proxies import Place, TunnelProxy, start_haproxy, start_nginx

PLAIN, TLS = "", "wss"
FRONTS: Mapping[str, tuple[str, Callable[[Place], Program]]] = {
    "nginx": ("nginx", start_nginx),
    "haproxy": ("haproxy", start_haproxy),
}
"""Proxies with TLS in front of the server, by name: the program, and what starts it with our file for it in deploy/."""
STREAMS = 8192
"""That a client may open: for the measurement of idle ones the default would be too few."""

CLIENTS_A_PROCESS = 125
"""More in one would keep each other from answering in time."""


class _Adopted:
    """A program that the tests' rig has started."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.pid = program.pid

    @property
    def running(self) -> bool:
        return self._program.process.poll() is None

    @property
    def last_words(self) -> str:
        return " ".join(self._program.output.split())[-300:]

    def stop(self) -> None:
        self._program.close()


class QanatServer:
    """A server with its files in the site's folder, and accounts with a token each."""

    def __init__(self, site: Site, names: tuple[str, ...], settings: Mapping[str, Any] | None = None) -> None:
        self._site = site
        self.folder = site.folder
        self.fingerprint = load_or_create_identity(self.folder / "server.key").fingerprint
        with site.at_far():
            self.port = unused_port()
        for name in names:
            token = self.folder / f"{name}.token"
            token.touch(mode=0o600)
            token.write_text(generate_token())
        accounts = [
            {"name": name, "token_file": f"{name}.token", "allow_connect": [f"{site.far_host}:*"]} for name in names
        ]
        server = {
            "listen": f"{site.far_host}:{self.port}",
            "clients": accounts,
            "drain": 0.5,
            "limits": {"streams": STREAMS},
            "log": {"level": "warning"},
            **(settings or {}),
        }
        (self.folder / "server.yaml").write_text(json.dumps({"server": server}))
        self.process = site.far(*python(ROOT / "tunnel.py", "server", "-c", self.folder / "server.yaml"))
        try:
            site.await_far(self.process, self.port)
        except BaseException:
            self.process.stop()
            raise

    def client_file(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Write the configuration of the client `name`, with these keys beside the necessary ones."""
        client = {
            "name": name,
            "proxy": "none",
            "token_file": f"{name}.token",
            "server_fingerprint": self.fingerprint,
            "drain": 0.5,
            "log": {"level": "warning"},
            "url": f"ws://{self._site.far_host}:{self.port}/tunnel",
            **settings,
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(json.dumps({"client": client}))
        return file


def start_qanat(site: Site, transport: str, front: str = PLAIN) -> Running:
    """Start a server and a client with one local forward to the target, with the defaults of both."""
    more: dict[str, Any] = {}
    if front == TLS:
        ca_file, issued = site.certificate()
        issued.key.chmod(0o600)
        more["tls"] = {"certificate": str(issued.certificate), "key": str(issued.key)}
    elif front in FRONTS:
        more["trusted_proxies"] = ["127.0.0.1/32"]
    server = QanatServer(site, ("bench",), more)
    running = Running((LOOPBACK, 0), far=[server.process])
    try:
        settings: dict[str, Any] = {"transport": transport}
        if front == TLS:
            settings |= {"url": f"wss://localhost:{server.port}/tunnel", "tls": {"ca_file": str(ca_file)}}
        elif front in FRONTS:
            proxy = TunnelProxy(site.folder / front, server.port, FRONTS[front][1])
            settings |= {"url": proxy.url, "tls": {"ca_file": str(proxy.ca_file)}}
            running.between.append(_Adopted(proxy.start()))
        with site.at_near():
            entrance = unused_port()
        running.address = (LOOPBACK, entrance)
        settings["forwards"] = [{"local": f"{LOOPBACK}:{entrance}", "to": f"{site.far_host}:{site.target}"}]
        client: Process = site.near(*python(ROOT / "tunnel.py", "client", "-c", server.client_file("bench", settings)))
        running.near.append(client)
    except BaseException:
        running.stop()
        raise
    return await_echo(running, site)


def start_idle_clients(site: Site, count: int, transport: str) -> Running:
    """Start a server, and `count` clients in few processes, that hold a connection each and carry nothing."""
    names = tuple(f"idle-{number}" for number in range(count))
    # All come from one address at once, which is what the limits are there to slow down.
    limits = {"connections": 8192, "sessions": 4096, "handshakes": 512, "handshake_rate": 1000}
    server = QanatServer(site, names, {"limits": {**limits, "per_address_rate": 10000, "per_address_burst": 10000}})
    running = Running((site.far_host, server.port), far=[server.process])
    try:
        for first in range(0, count, CLIENTS_A_PROCESS):
            some = names[first : first + CLIENTS_A_PROCESS]
            files = [server.client_file(name, {"transport": transport}) for name in some]
            listed, ready = site.folder / f"clients-{first}", site.folder / f"ready-{first}"
            listed.write_text("\n".join(map(str, files)))
            clients = site.near(*python("-m", "benchmarks.idle_clients", listed, ready))
            running.near.append(clients)
            clients.wait_until(ready.exists, f"connected with clients {first} to {first + len(some)}", 60)
    except BaseException:
        running.stop()
        raise
    return running


def _contender(transport: str, front: str) -> Contender:
    program = FRONTS[front][0] if front in FRONTS else None
    title = {PLAIN: f"Qanat, {transport}", TLS: f"Qanat, {transport}, TLS"}.get(
        front, f"Qanat, {transport}, behind {front}"
    )
    return Contender(
        f"{transport}-{front}" if front else transport,
        title,
        lambda site: start_qanat(site, transport, front),
        programs=(program,) if program else (),
        packages=program or "",
        version=lambda: __version__,
        on_paths=front == PLAIN,
        start_clients=(lambda site, count: start_idle_clients(site, count, transport)) if front == PLAIN else None,
    )


IMPASSABLE = {("websocket-h2", "nginx")}
"""What a proxy does not carry."""

QANAT = tuple(
    _contender(transport, front)
    for front in (PLAIN, TLS, *FRONTS)
    for transport in TRANSPORTS
    if (transport, front) not in IMPASSABLE
)
"""All ways, the plain ones first."""
