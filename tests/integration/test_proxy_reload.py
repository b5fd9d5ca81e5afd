"""A proxy loads its configuration anew in the middle of a transfer.

nginx and HAProxy then keep the connections that they have, in the old worker, and say GOAWAY on HTTP/2: nothing is
lost.  Told to end old workers in time, they cut: the client goes on over a connection through the new worker, and no
application notices.  With a server that keeps nothing, that cut is a reset, and the client says so and connects anew.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from qanat.handshake.tokens import generate_token
from tests.support.applications import (
    RESET,
    Target,
    connection,
    echo,
    ending_of,
    exchange,
    receive_exactly,
    wait_until_echoes,
)
from tests.support.background import Background
from tests.support.harness import SECONDS, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.proxies import ALL, Haproxy, Place, TunnelProxy, start_haproxy, start_nginx
from tests.support.machine.web import Nginx

PART = 4_000_000
PROXIES: dict[str, Callable[[Place], Nginx | Haproxy]] = {"nginx": start_nginx, "HAProxy": start_haproxy}
IMPATIENT: dict[str, Callable[[Place], Nginx | Haproxy]] = {
    "nginx": partial(start_nginx, settings="worker_shutdown_timeout 1s;"),
    "HAProxy": partial(start_haproxy, settings="hard-stop-after 1s"),
}
OFFER_EXTENDED_CONNECT = (PROXIES["HAProxy"], IMPATIENT["HAProxy"])


class Reloadable:
    """A server behind one of these proxies, and a client for each transport with an echo behind a local forward."""

    def __init__(
        self, directory: Path, start: Callable[[Place], Nginx | Haproxy], stack: ExitStack, **server: object
    ) -> None:
        carried = ALL if start in OFFER_EXTENDED_CONNECT else tuple(one for one in ALL if one != "websocket-h2")
        self.ports = {transport: unused_port() for transport in carried}
        tokens = {transport: directory / f"{transport}.token" for transport in carried}
        for file in tokens.values():
            file.touch(mode=0o600)
            file.write_text(generate_token())
        accounts = [
            {"name": transport, "token_file": str(file), "allow_connect": ["127.0.0.1:*"]}
            for transport, file in tokens.items()
        ]
        behind = stack.enter_context(Tunnel(directory / "server", server={"clients": accounts, **server}))
        behind.start_server()
        front = TunnelProxy(directory / "front", behind.port)
        self.proxy = stack.enter_context(start(front.place))
        target = stack.enter_context(Target(echo))
        self.clients = {
            transport: stack.enter_context(
                Tunnel(
                    directory / transport,  # its server is not started
                    [{"local": f"127.0.0.1:{self.ports[transport]}", "to": target.address}],
                    url=front.url,
                    client={
                        "name": transport,
                        "token_file": str(tokens[transport]),
                        "server_fingerprint": behind.fingerprint,
                        "transport": transport,
                        "tls": {"ca_file": str(front.ca_file)},
                    },
                )
            )
            for transport in carried
        }
        for client in self.clients.values():
            client.start_client()
        self.socks = {transport: stack.enter_context(connection(port)) for transport, port in self.ports.items()}


class Transfer:
    """Parts that are sent to an echo, the first at once and the others after `reloaded`."""

    def __init__(self, sock: socket.socket, reloaded: threading.Event) -> None:
        self._sock, self._reloaded = sock, reloaded
        self._parts = [os.urandom(PART) for _ in range(3)]
        self._sending = Background(self._send)
        self._came = receive_exactly(sock, PART // 2)  # so all is in flight, there and back

    def _send(self) -> None:
        self._sock.sendall(self._parts[0])
        assert self._reloaded.wait(SECONDS)
        self._sock.sendall(self._parts[1])
        self._sock.sendall(self._parts[2])

    def arrives_whole(self) -> bool:
        came = self._came + receive_exactly(self._sock, 3 * PART - len(self._came))
        self._sending.result()
        return hashlib.sha256(came).digest() == hashlib.sha256(b"".join(self._parts)).digest()


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_reload_in_the_middle_of_a_transfer_loses_nothing(tmp_path: Path, proxy: str) -> None:
    with ExitStack() as stack:
        path = Reloadable(tmp_path, PROXIES[proxy], stack)
        reloaded = threading.Event()
        transfers = {transport: Transfer(sock, reloaded) for transport, sock in path.socks.items()}
        path.proxy.reload()
        reloaded.set()
        for transport, client in path.clients.items():
            sock = path.socks[transport]
            assert transfers[transport].arrives_whole(), transport
            assert exchange(sock, b"and on it goes") == b"and on it goes"
            wait_until_echoes(path.ports[transport])  # new streams use the connection, too
            assert client.client.count("connected to ") == 1
            if transport != "websocket":
                # GOAWAY was heeded: the next connection was up before the old one was left.
                client.client.wait_for("moved to a fresh connection .* since the other end of it is leaving")
                assert exchange(sock, b"over the fresh one") == b"over the fresh one"
            assert client.client.count("was lost after") == 0


@pytest.mark.parametrize("proxy", IMPATIENT)
def test_a_proxy_that_ends_its_old_worker_causes_another_connection_and_nothing_else(
    tmp_path: Path, proxy: str
) -> None:
    with ExitStack() as stack:
        path = Reloadable(tmp_path, IMPATIENT[proxy], stack)
        for sock in path.socks.values():
            assert exchange(sock, b"before") == b"before"
        path.proxy.reload()
        for transport, client in path.clients.items():
            client.wait_resumed()
            assert exchange(path.socks[transport], b"after") == b"after"
            wait_until_echoes(path.ports[transport])
            assert client.client.count("connected to ") == 1


@pytest.mark.parametrize("proxy", IMPATIENT)
def test_where_nothing_is_resumed_such_a_proxy_causes_a_reset_and_a_reconnect(tmp_path: Path, proxy: str) -> None:
    with ExitStack() as stack:
        path = Reloadable(tmp_path, IMPATIENT[proxy], stack, resume_for=0)
        for sock in path.socks.values():
            assert exchange(sock, b"before") == b"before"
        path.proxy.reload()
        for transport, client in path.clients.items():
            assert ending_of(path.socks[transport]) == RESET
            client.client.wait_for("the connection to .* ended after .*; its streams were reset")
            client.wait_connected(2)
            wait_until_echoes(path.ports[transport])
