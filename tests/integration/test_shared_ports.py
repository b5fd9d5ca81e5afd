"""Several clients share a remote forward on one server, and one client has the same forward on two servers."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from qanat.handshake.tokens import generate_token
from tests.support.applications import END, Target, connection, echo, exchange, receive_exactly, wait_until_echoes
from tests.support.harness import Program, Relay, Tunnel
from tests.support.machine.ports import unused_port

LISTENS = r"the server listens on 127\.0\.0\.1:(\d+) for"
IN_USE = "the server cannot listen for .*: Address already in use .*; asking again in 10 s"
NOT_ALLOWED = r"the server cannot listen for .* is not allowed .*; asking again in 60 s"


class Office:
    """One server, and clients that all want the same port there; behind each an echo that first says its name."""

    def __init__(self, directory: Path, rules: dict[str, str], stack: ExitStack) -> None:
        """`rules` are the keys that allow each client to have the port, by its name, one letter."""
        self._directory, self._stack = directory, stack
        self.port = unused_port()
        accounts = []
        for name, rule in rules.items():
            (directory / f"{name}.token").touch(mode=0o600)
            (directory / f"{name}.token").write_text(generate_token())
            allowed = {rule: [f"127.0.0.1:{self.port}"]} if rule else {}
            accounts.append({"name": name, "token_file": str(directory / f"{name}.token"), **allowed})
        self.tunnel = stack.enter_context(Tunnel(directory / "server", server={"clients": accounts}))
        self.server = self.tunnel.start_server()
        self.relays: dict[str, Relay] = {}

    def client(self, name: str, said: str = LISTENS) -> Program:
        """Start one; returns when it has heard whether it may."""

        def say_name_and_echo(sock: socket.socket, target: Target) -> str:
            sock.sendall(name.encode())
            return echo(sock, target)

        target = self._stack.enter_context(Target(say_name_and_echo))
        relay = self.relays[name] = self._stack.enter_context(Relay(self.tunnel.port))
        tunnel = Tunnel(
            self._directory / name,
            [{"remote": f"127.0.0.1:{self.port}", "to": target.address}],
            url=f"ws://127.0.0.1:{relay.port}/tunnel",
            client={
                "name": name,
                "token_file": str(self._directory / f"{name}.token"),
                "server_fingerprint": self.tunnel.fingerprint,
            },
        )
        program = self._stack.enter_context(tunnel).start_client(wait=False)
        program.wait_for(said)
        return program

    def connect(self, count: int) -> list[tuple[str, socket.socket]]:
        """So many connections that stay open; each with the client that got it."""
        socks = [self._stack.enter_context(connection(self.port)) for _ in range(count)]
        return [(receive_exactly(sock, 1).decode(), sock) for sock in socks]

    def who(self, count: int) -> Counter[str]:
        """Who got so many connections, one after the other."""
        names = Counter[str]()
        for _ in range(count):
            with connection(self.port) as sock:
                names[receive_exactly(sock, 1).decode()] += 1
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
        return names


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def names(given: Sequence[tuple[str, socket.socket]]) -> list[str]:
    return [name for name, _ in given]


def test_clients_share_a_port_for_as_long_as_they_are_there(tmp_path: Path, stack: ExitStack) -> None:
    office = Office(tmp_path, {"a": "shared_listen", "b": "shared_listen", "c": "allow_listen", "d": ""}, stack)
    a = office.client("a")
    assert names(office.connect(2)) == ["a", "a"]
    b = office.client("b")
    given = office.connect(4)
    assert names(given[:2]) == ["b", "b"]  # the least loaded
    assert sorted(names(given[2:])) == ["a", "b"]
    assert given  # all stay open

    # Those who may not share it do not get it.
    office.client("c", IN_USE)
    office.client("d", NOT_ALLOWED)

    # One that is cut off is left out at once.  Its streams wait, and it takes part again when it has resumed.
    (held,) = (sock for name, sock in given if name == "a")
    a.process.send_signal(signal.SIGSTOP)
    office.relays["a"].cut()
    office.server.wait_for(r"a from \S+ was lost")
    assert names(office.connect(3)) == ["b"] * 3
    held.sendall(b"are you there?")
    a.process.send_signal(signal.SIGCONT)
    a.wait_for("resumed by")
    assert receive_exactly(held, 14) == b"are you there?"
    assert names(office.connect(3)) == ["a"] * 3

    # One that stops leaves, and the last one frees the port.
    assert a.stop() == 0
    assert office.who(3) == {"b": 3}
    assert b.stop() == 0
    with socket.create_server(("127.0.0.1", office.port)):
        pass


def test_a_client_that_may_not_share_has_the_port_alone(tmp_path: Path, stack: ExitStack) -> None:
    office = Office(tmp_path, {"a": "shared_listen", "c": "allow_listen"}, stack)
    office.client("c")
    office.client("a", IN_USE)
    assert office.who(4) == {"c": 4}


def test_one_client_offers_a_port_on_two_servers_at_once(tmp_path: Path, stack: ExitStack) -> None:
    """On one machine they cannot have the same port, so each chooses one."""
    rules = {"allow_listen": ["127.0.0.1:0"]}
    servers = [stack.enter_context(Tunnel(tmp_path / node, account=rules)) for node in ("one", "two")]
    for server in servers:
        server.start_server()
    target = stack.enter_context(Target(echo))
    client = servers[0]
    for key in ("url", "token_file", "server_fingerprint"):
        del client.client_settings[key]
    client.client_settings |= {
        "connect": "all",
        "servers": [
            {
                "url": f"ws://127.0.0.1:{server.port}/tunnel",
                "token_file": str(server.directory / "a.token"),
                "server_fingerprint": server.fingerprint,
            }
            for server in servers
        ],
        "forwards": [{"remote": "127.0.0.1:0", "to": target.address}],
    }
    program = client.start_client(wait=False)
    ports = [int(program.wait_for(LISTENS, count=count)[1]) for count in (1, 2)]
    with connection(ports[0]) as one, connection(ports[1]) as two:
        assert exchange(one, b"one") == b"one"
        assert exchange(two, b"two") == b"two"
        assert servers[1].server.stop() == 0
        # The port of the other goes on, with its stream.
        assert sorted(lives(sock) for sock in (one, two)) == [False, True]
    servers[1].start_server()
    wait_until_echoes(int(program.wait_for(LISTENS, count=3)[1]))
    assert target.wait_endings(1)[0] != END


def lives(sock: socket.socket) -> bool:
    try:
        return exchange(sock, b"still there?") == b"still there?"
    except (AssertionError, OSError):
        return False
