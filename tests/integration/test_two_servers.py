"""Two servers behind one name, with HAProxy as deploy/haproxy-two-servers.cfg has it: each session stays on its own.

Clients come in twos, of which HAProxy gives each server one, and each through a relay of its own, where it is cut.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from qanat.handshake.tokens import generate_token
from tests.support.applications import RESET, Conversation, Target, connection, echo, wait_until_echoes
from tests.support.cuts import RESUMED
from tests.support.harness import SECONDS, Relay, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.proxies import ALL, TunnelProxy, start_haproxy_two_servers
from tests.support.machine.web import HOST

NODES = ("node-1", "node-2")
SERVES = r"; the server is (node-\d),"


class Client:
    """One client with a local forward to an echo, through a relay to HAProxy; connected when it is made."""

    def __init__(self, site: Site, transport: str, target: Target, stack: ExitStack) -> None:
        name, token_file = site.take_account()
        self.port = unused_port()
        self.relay = stack.enter_context(Relay(site.front.place.port))
        self.tunnel = stack.enter_context(
            Tunnel(
                site.directory / name,  # its server is not started
                [{"local": f"127.0.0.1:{self.port}", "to": target.address}],
                url=f"wss://{HOST}:{self.relay.port}/tunnel",
                client={
                    "name": name,
                    "token_file": token_file,
                    "server_fingerprint": site.fingerprint,
                    "transport": transport,
                    "tls": {"ca_file": str(site.front.ca_file)},
                },
            )
        )
        self.program = self.tunnel.start_client()

    @property
    def node(self) -> str:
        """Where its last session began."""
        return self.program.wait_for(SERVES, count=self.program.count(SERVES))[1]


class Site:
    """Both servers, and HAProxy before them."""

    def __init__(self, directory: Path, stack: ExitStack, without: str | None = None, instead: str = "") -> None:
        self.directory = directory
        self.servers = {node: stack.enter_context(Tunnel(directory / node, server={"node": node})) for node in NODES}
        first, second = self.servers.values()
        self.fingerprint = first.fingerprint
        accounts = []
        for number in range(2):
            file = directory / f"{number}.token"
            file.touch(mode=0o600)
            file.write_text(generate_token())
            account = {"name": f"client-{number}", "token_file": str(file), "allow_connect": ["127.0.0.1:*"]}
            accounts.append(account)
        self._accounts = iter(accounts)
        for server in self.servers.values():
            server.server_settings |= {"identity": str(first.directory / "server.key"), "clients": accounts}
            server.start_server()
        start = partial(start_haproxy_two_servers, second_port=second.port, without=without, instead=instead)
        self.front = TunnelProxy(directory / "front", first.port, start)
        stack.enter_context(self.front.start())

    def take_account(self) -> tuple[str, str]:
        """A name that no client has had, and the file of its token."""
        account = next(self._accounts)
        return str(account["name"]), str(account["token_file"])

    def pair(self, transport: str, stack: ExitStack) -> list[Client]:
        target = stack.enter_context(Target(echo))
        return [Client(self, transport, target, stack) for _ in range(2)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def site(tmp_path: Path, stack: ExitStack) -> Site:
    return Site(tmp_path, stack)


@contextmanager
def streams(clients: list[Client]) -> Iterator[list[Conversation]]:
    """A conversation through each of them, for as long as the block lasts."""
    with ExitStack() as stack:
        socks = [stack.enter_context(connection(client.port)) for client in clients]
        talks = [Conversation(sock) for sock in socks]
        try:
            for talk in talks:
                check_goes_on(talk)
            yield talks
        finally:
            for sock, talk in zip(socks, talks, strict=True):
                with suppress(OSError):  # it was reset
                    sock.shutdown(socket.SHUT_WR)
                talk.join(SECONDS)


def check_goes_on(talk: Conversation) -> None:
    for _ in range(2):  # of which the first may have ended before
        talk.flowing.clear()
        assert talk.flowing.wait(SECONDS), talk.ending


def cut(clients: list[Client], back: str, *, count: int) -> None:
    """Cut all at once, so that HAProxy has no idle server to prefer; returns when all have said `back` so often."""
    for client in clients:
        client.relay.cut()
    for client in clients:
        client.program.wait_for(back, count=count)


@pytest.mark.parametrize("transport", ALL)
def test_sessions_are_spread_and_each_is_resumed_where_it_is(site: Site, stack: ExitStack, transport: str) -> None:
    clients = site.pair(transport, stack)
    assert {client.node for client in clients} == set(NODES)
    with streams(clients) as talks:
        for number in range(5):
            cut(clients, RESUMED, count=number + 1)
            for talk in talks:
                check_goes_on(talk)
    for client in clients:
        assert client.program.count(SERVES) == 1


@pytest.mark.parametrize("transport", ALL)
def test_when_a_server_is_killed_its_clients_begin_anew_on_the_other(
    site: Site, stack: ExitStack, transport: str
) -> None:
    kept, moved = sorted(site.pair(transport, stack), key=lambda client: client.node)
    with streams([kept, moved]) as (goes_on, ends):
        site.servers[moved.node].server.kill()
        ends.join(SECONDS)
        assert ends.ending == RESET
        wait_until_echoes(moved.port)
        assert moved.node == kept.node
        check_goes_on(goes_on)
    assert kept.program.count(SERVES) == 1


def test_a_load_balancers_own_cookie_leads_back_too(tmp_path: Path, stack: ExitStack) -> None:
    """As the load balancers of clouds and ingresses set it, which know nothing of ours."""
    site = Site(tmp_path, stack, without="cookie qanat-node", instead="cookie SRV insert indirect nocache")
    target = stack.enter_context(Target(echo))
    clients = [Client(site, transport, target, stack) for transport in ("websocket", "http2")]
    with streams(clients) as talks:
        for number in range(4):
            cut(clients, RESUMED, count=number + 1)
            for talk in talks:
                check_goes_on(talk)
    for client in clients:
        assert client.program.count(SERVES) == 1


def test_without_the_cookie_a_session_is_lost_that_comes_to_the_other_server(tmp_path: Path, stack: ExitStack) -> None:
    site = Site(tmp_path, stack, without="cookie qanat-node")
    clients = site.pair("websocket", stack)
    for number in range(20):  # in each of which both may come back to the right one by chance
        cut(clients, f"{RESUMED}|{SERVES}", count=number + 2)
        if any(client.program.count(SERVES) > 1 for client in clients):
            return
    pytest.fail("all sessions were resumed, twenty times over")
