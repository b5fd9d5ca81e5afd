"""A proxy loads its configuration anew in the middle of a transfer.

nginx and HAProxy then keep the connections that they have, in the old worker, and say GOAWAY on HTTP/2: nothing is
lost.  Told to end old workers in time, they cut: the client goes on over a connection through the new worker, and no
application notices.  With a server that keeps nothing, that cut is a reset, and the client says so and connects anew.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

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


class Reloadable:
    """A tunnel through one of these proxies, with an echo behind a local forward."""

    def __init__(
        self,
        directory: Path,
        transport: str,
        start: Callable[[Place], Nginx | Haproxy],
        stack: ExitStack,
        **server: object,
    ) -> None:
        target = stack.enter_context(Target(echo))
        self.port = unused_port()
        self.tunnel = Tunnel(
            directory / "tunnel",
            [{"local": f"127.0.0.1:{self.port}", "to": target.address}],
            client={"transport": transport},
            server=server,
        )
        front = TunnelProxy(directory / "front", self.tunnel.port)
        self.proxy = stack.enter_context(start(front.place))
        self.tunnel.client_settings |= {"url": front.url, "tls": {"ca_file": str(front.ca_file)}}
        stack.enter_context(self.tunnel).start()


@pytest.mark.parametrize("transport", ALL)
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_reload_in_the_middle_of_a_transfer_loses_nothing(tmp_path: Path, transport: str, proxy: str) -> None:
    with ExitStack() as stack:
        path = Reloadable(tmp_path, transport, PROXIES[proxy], stack)
        sock = stack.enter_context(connection(path.port))
        parts = [os.urandom(PART) for _ in range(3)]
        reloaded = threading.Event()

        def send() -> None:
            sock.sendall(parts[0])
            assert reloaded.wait(SECONDS)
            sock.sendall(parts[1])
            sock.sendall(parts[2])

        sender = threading.Thread(target=send, name="sender")
        sender.start()
        came = receive_exactly(sock, PART // 2)  # so all is in flight, there and back, when the proxy reloads
        path.proxy.reload()
        reloaded.set()
        came += receive_exactly(sock, 3 * PART - len(came))
        sender.join()
        assert hashlib.sha256(came).digest() == hashlib.sha256(b"".join(parts)).digest()
        assert exchange(sock, b"and on it goes") == b"and on it goes"
        wait_until_echoes(path.port)  # new streams use the connection, too
        assert path.tunnel.client.count("connected to ") == 1
        if transport != "websocket":
            # GOAWAY was heeded: the next connection was up before the old one was left.
            path.tunnel.client.wait_for("moved to a fresh connection .* since the other end of it is leaving")
            assert exchange(sock, b"over the fresh one") == b"over the fresh one"
        assert path.tunnel.client.count("was lost after") == 0


@pytest.mark.parametrize("transport", ALL)
@pytest.mark.parametrize("proxy", IMPATIENT)
def test_a_proxy_that_ends_its_old_worker_causes_another_connection_and_nothing_else(
    tmp_path: Path, transport: str, proxy: str
) -> None:
    with ExitStack() as stack:
        path = Reloadable(tmp_path, transport, IMPATIENT[proxy], stack)
        sock = stack.enter_context(connection(path.port))
        assert exchange(sock, b"before") == b"before"
        path.proxy.reload()
        path.tunnel.wait_resumed()
        assert exchange(sock, b"after") == b"after"
        wait_until_echoes(path.port)
        assert path.tunnel.client.count("connected to ") == 1


@pytest.mark.parametrize("transport", ALL)
@pytest.mark.parametrize("proxy", IMPATIENT)
def test_where_nothing_is_resumed_such_a_proxy_causes_a_reset_and_a_reconnect(
    tmp_path: Path, transport: str, proxy: str
) -> None:
    with ExitStack() as stack:
        path = Reloadable(tmp_path, transport, IMPATIENT[proxy], stack, resume_for=0)
        sock = stack.enter_context(connection(path.port))
        assert exchange(sock, b"before") == b"before"
        path.proxy.reload()
        assert ending_of(sock) == RESET
        path.tunnel.client.wait_for("the connection to .* ended after .*; its streams were reset")
        path.tunnel.wait_connected(2)
        wait_until_echoes(path.port)
