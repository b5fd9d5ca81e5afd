"""Promises of a client with two servers, both real: which of them it uses, and when."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import RefusedError
from qanat.client import remote_forwards
from qanat.client.client import Client, run_client
from qanat.client.remote_forwards import RemoteForwards
from qanat.config.client_settings import ClientSettings, Reconnect, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.server_settings import ClientAccount, ServerSettings
from qanat.endpoints import target
from qanat.endpoints.wakeable import WakeableSocket
from qanat.server.server import Server
from tests.support.applications import END, RESET, Target, connection, echo, ending_of, exchange, receive_exactly
from tests.support.background import Background, wait_until
from tests.support.harness import Relay
from tests.support.identities import place_identity
from tests.support.machine.ports import unused_port
from tests.support.server.raw_peers import SECONDS

TOKEN = os.urandom(32)
QUICK = Reconnect(first=0.01, min=0.02, max=0.05)
SOON = 0.4
"""`failover_after`."""


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qanat")


@pytest.fixture(autouse=True)
def _on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that one server still has is in use for the other, which is otherwise asked again in ten seconds."""
    monkeypatch.setattr(remote_forwards, "RETRY_IN_USE", 0.1)


class Place:
    """A server that can be started and stopped, always at the same address and with the same key."""

    def __init__(self, number: int, directory: Path, token: bytes) -> None:
        directory.mkdir()
        self.port = unused_port()
        self._settings = ServerSettings(
            clients=(ClientAccount("a", (token,), ("127.0.0.1:*", "127.0.0.1:0"), ("127.0.0.1:*",)),),
            listen=(("127.0.0.1", self.port),),
            identity=place_identity(directory / "server.key"),
            node=f"server-{number}",
            drain=0.1,
            takeover_timeout=0.3,
        )
        self.server: Server | None = None
        self.fingerprint = Server(self._settings).identity.fingerprint

    def start(self) -> None:
        self.server = Server(self._settings)
        self.server.start()

    def stop(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.stop()

    @property
    def remote(self) -> RemoteServer:
        return RemoteServer((f"ws://127.0.0.1:{self.port}/tunnel",), TOKEN, self.fingerprint)

    @property
    def streams(self) -> int:
        """Streams open through this server."""
        if self.server is None:
            return 0
        return sum(session.open_streams for session in self.server.registry.sessions)

    @property
    def sessions(self) -> int:
        return 0 if self.server is None else len(self.server.registry.sessions)


class Rig:
    """Two servers, neither of them started, and what all forwards lead to, from either of them."""

    def __init__(self, directory: Path, stack: ExitStack, tokens: tuple[bytes, bytes] = (TOKEN, TOKEN)) -> None:
        self.directory = directory
        self.stack = stack
        self.first = self.add_place(1, tokens[0])
        self.second = self.add_place(2, tokens[1])
        self.target = stack.enter_context(Target(echo))
        self.local = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", self.target.port))
        self.remote_port = unused_port()
        self.remote = Forward(
            "remote", TcpAddress("127.0.0.1", self.remote_port), TcpAddress("127.0.0.1", self.target.port)
        )

    def add_place(self, number: int, token: bytes = TOKEN) -> Place:
        place = Place(number, self.directory / str(number), token)
        self.stack.callback(place.stop)
        return place

    def client(self, *forwards: Forward, servers: tuple[RemoteServer, ...] | None = None, **settings: object) -> Client:
        """A started client, of both servers unless others are named."""
        values: dict[str, object] = {
            "reconnect": QUICK,
            "drain": 0.1,
            "failover_after": SOON,
            "state_dir": self.directory,
            **settings,
        }
        servers = servers or (self.first.remote, self.second.remote)
        client = Client(ClientSettings("a", servers, forwards, **values))  # type: ignore[arg-type]
        client.start()
        self.stack.callback(client.stop)
        return client

    def client_of_the_first(self, *forwards: Forward, **settings: object) -> Client:
        """Start both servers, and a client; its session is with the first."""
        self.first.start()
        self.second.start()
        client = self.client(*forwards, **settings)
        # Making its first key may take a client longer than it waits for a server.
        wait_until(lambda: client.servers[0].disconnected_since is None, "the client has a session with the first")
        wait_until(lambda: (self.first.sessions, self.second.sessions) == (1, 0), "only the first has a session")
        return client

    def client_of_the_second(self, *forwards: Forward) -> Client:
        """Start the second server alone, and a client; its session is with it."""
        self.second.start()
        client = self.client(*forwards)
        wait_until(lambda: self.second.sessions == 1, "the second has a session")
        return client

    @contextmanager
    def old_connection(self, client: Client) -> Iterator[socket.socket]:
        """A connection over the second server, which has the remote port, too."""
        with connection(client.local_ports[0]) as old:
            assert can_be_used(old)
            wait_until(listens(self.remote_port), "the second listens")
            yield old


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path, stack)


def listens(port: int) -> Callable[[], bool]:
    def try_it() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=SECONDS).close()
        except OSError:
            return False
        return True

    return try_it


def listener_of(place: Place) -> list[int]:
    """The ports of remote forwards that this server listens on."""
    if place.server is None:
        return []
    sessions = place.server.registry.sessions
    return [listener.port for session in sessions for listener in list(session._listeners.values())]


def can_be_used(sock: socket.socket) -> bool:
    return exchange(sock, b"through the tunnel") == b"through the tunnel"


# --- connect: first ---------------------------------------------------------------------------------


def test_while_the_first_is_there_no_other_is_bothered(rig: Rig) -> None:
    first, second = rig.first, rig.second
    client = rig.client_of_the_first(rig.local)
    with connection(client.local_ports[0]) as sock:
        assert can_be_used(sock)
        assert (first.streams, second.streams) == (1, 0)
        threading.Event().wait(3 * SOON)  # nothing may happen in this time
        assert (first.sessions, second.sessions) == (1, 0)


def test_the_second_is_used_when_the_first_is_not_there(rig: Rig) -> None:
    second = rig.second
    second.start()
    began = time.monotonic()
    client = rig.client(rig.local)
    with connection(client.local_ports[0]) as sock:
        assert can_be_used(sock)
        assert time.monotonic() - began >= SOON
        assert second.streams == 1


def test_a_short_absence_of_the_first_bothers_nobody(rig: Rig) -> None:
    first, second = rig.first, rig.second
    client = rig.client_of_the_first(rig.local, failover_after=10.0)
    with connection(client.local_ports[0]) as sock:
        assert can_be_used(sock)
        assert first.server is not None
        [session] = first.server.registry.sessions
        session.lanes[0].cut("the network was cut")
        assert can_be_used(sock)
    assert second.sessions == 0


def test_when_the_first_goes_new_connections_and_ports_go_to_the_second(rig: Rig) -> None:
    first, second, port = rig.first, rig.second, rig.remote_port
    client = rig.client_of_the_first(rig.local, rig.remote)
    with connection(client.local_ports[0]) as before:
        assert can_be_used(before)
        wait_until(lambda: listener_of(first) == [port], "the first listens")
        first.stop()
        assert ending_of(before) == RESET
    with connection(client.local_ports[0]) as after:
        assert can_be_used(after)
        assert second.streams == 1
    wait_until(lambda: listener_of(second) == [port], "the second listens")
    with connection(port) as sock:
        assert can_be_used(sock)


def test_when_the_first_is_back_new_connections_go_there_and_the_seconds_finish_in_peace(rig: Rig) -> None:
    first, second, port = rig.first, rig.second, rig.remote_port
    client = rig.client_of_the_second(rig.local, rig.remote)
    with rig.old_connection(client) as old, connection(port) as old_remote:
        assert can_be_used(old_remote)
        wait_until(lambda: second.streams == 2, "the probe of the port is over")
        first.start()
        wait_until(lambda: first.sessions == 1, "the first has a session")
        wait_until(lambda: listener_of(first) == [port], "the first has the port")
        assert listener_of(second) == []
        with connection(client.local_ports[0]) as new, connection(port) as new_remote:
            assert can_be_used(new)
            assert can_be_used(new_remote)
            wait_until(lambda: (first.streams, second.streams) == (2, 2), "each has its own")
            for sock in (old, old_remote):
                assert can_be_used(sock)
                sock.shutdown(socket.SHUT_WR)
                assert ending_of(sock) == END
            wait_until(lambda: second.sessions == 0, "the second's session has ended")
            for sock in (new, new_remote):
                assert can_be_used(sock)


def test_a_second_that_is_left_while_a_target_is_being_connected_to_keeps_that_stream(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = rig.first, rig.second
    connecting, reachable = threading.Event(), threading.Event()
    connect = target.Target.connect

    def connect_slowly(one: target.Target) -> WakeableSocket:
        connecting.set()
        assert reachable.wait(SECONDS)
        return connect(one)

    monkeypatch.setattr(target.Target, "connect_now", lambda _: None)
    monkeypatch.setattr(target.Target, "connect", connect_slowly)
    port = rig.remote_port
    rig.client_of_the_second(rig.remote)
    wait_until(lambda: listener_of(second) == [port], "the second listens")
    with connection(port) as sock:
        assert connecting.wait(SECONDS)
        first.start()
        wait_until(lambda: listener_of(first) == [port], "the first has the port")
        reachable.set()
        assert can_be_used(sock)
        assert second.sessions == 1
    wait_until(lambda: second.sessions == 0, "the second's session has ended")


def test_a_second_that_is_left_with_nothing_open_is_closed_at_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    first, second = rig.first, rig.second
    rig.client_of_the_second()
    first.start()
    wait_until(lambda: (first.sessions, second.sessions) == (1, 0), "the session has moved")
    wait_until(lambda: "the client prefers another server" in caplog.text, "the log says so")


def test_a_first_that_comes_back_in_time_still_has_its_streams(rig: Rig) -> None:
    """It was only out of reach: the session waits for it, while new connections go to the second."""
    first, second = rig.first, rig.second
    for place in (first, second):
        place.start()
    at = unused_port()
    with ExitStack() as network:
        network.enter_context(Relay(first.port, at=at))
        remote = RemoteServer((f"ws://127.0.0.1:{at}/tunnel",), TOKEN, first.fingerprint)
        client = rig.client(rig.local, servers=(remote, second.remote))
        wait_until(lambda: (first.sessions, second.sessions) == (1, 0), "only the first has a session")
        old = rig.stack.enter_context(connection(client.local_ports[0]))
        assert can_be_used(old)
    old.sendall(b"meanwhile")
    wait_until(lambda: second.sessions == 1, "the second has a session")
    between = rig.stack.enter_context(connection(client.local_ports[0]))
    assert can_be_used(between)
    assert (first.streams, second.streams) == (1, 1)
    with Relay(first.port, at=at):
        assert receive_exactly(old, 9) == b"meanwhile"
        wait_until(lambda: second_is_left(client), "it prefers the first again")
        with connection(client.local_ports[0]) as new:
            assert can_be_used(new)
            assert (first.streams, second.streams) == (2, 1)
        for sock in (old, between):
            assert can_be_used(sock)
            sock.shutdown(socket.SHUT_WR)
            assert ending_of(sock) == END
        wait_until(lambda: second.sessions == 0, "the second's session has ended")
        client.stop()


def second_is_left(client: Client) -> bool:
    session = client.servers[1].session
    return session is None or session.retired


def test_it_goes_back_and_forth_as_often_as_the_first_does(rig: Rig) -> None:
    first, second = rig.first, rig.second
    client = rig.client_of_the_second(rig.local)
    for _ in range(3):
        wait_until(lambda: second.sessions == 1, "the second has a session")
        with connection(client.local_ports[0]) as sock:
            assert can_be_used(sock)
        first.start()
        wait_until(lambda: (first.sessions, second.sessions) == (1, 0), "the session is with the first")
        with connection(client.local_ports[0]) as sock:
            assert can_be_used(sock)
        first.stop()


def test_a_second_that_is_only_finishing_returns_to_service_when_the_first_goes_again(rig: Rig) -> None:
    first, second, port = rig.first, rig.second, rig.remote_port
    client = rig.client_of_the_second(rig.local, rig.remote)
    with rig.old_connection(client) as old:
        first.start()
        wait_until(lambda: listener_of(first) == [port], "the first has the port")
        first.stop()
        wait_until(lambda: listener_of(second) == [port], "the second has it again")
        with connection(client.local_ports[0]) as new, connection(port) as new_remote:
            for sock in (old, new, new_remote):
                assert can_be_used(sock)
            assert second.streams == 3
        assert second.sessions == 1


def test_a_second_that_is_back_in_service_is_not_taken_for_absent(rig: Rig) -> None:
    """Its session was there all the time, so nothing would say that it is back, and the third would be used too."""
    first, second = rig.first, rig.second
    third = rig.add_place(3)
    second.start()
    third.start()
    client = rig.client(rig.local, servers=(first.remote, second.remote, third.remote))
    wait_until(lambda: (second.sessions, third.sessions) == (1, 0), "only the second has a session")
    with connection(client.local_ports[0]) as old:
        assert can_be_used(old)
        first.start()
        wait_until(lambda: first.sessions == 1 and second_is_left(client), "it prefers the first")
        first.stop()
        wait_until(lambda: not second_is_left(client), "the second is in service again")
        threading.Event().wait(3 * SOON)  # nothing may happen in this time
        assert third.sessions == 0
        assert can_be_used(old)


def test_a_port_that_is_asked_for_again_just_as_the_servers_change_costs_no_session(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may give the processor to another thread between the last look and the question."""
    first = rig.first
    reached, go_on = threading.Event(), threading.Event()
    request = RemoteForwards._request

    def request_late(self: RemoteForwards, number: int) -> None:
        if "-forward-" in threading.current_thread().name and not reached.is_set():
            reached.set()
            assert go_on.wait(SECONDS)
        request(self, number)

    monkeypatch.setattr(RemoteForwards, "_request", request_late)
    port = rig.remote_port
    first.start()
    with socket.create_server(("127.0.0.1", port)):
        client = rig.client(rig.local, rig.remote, servers=(first.remote,))
        sock = rig.stack.enter_context(connection(client.local_ports[0]))
        assert can_be_used(sock)
        assert reached.wait(SECONDS)
    session = client.servers[0].session
    assert session is not None

    def change() -> None:
        session.retire()
        session.return_to_service()

    changing = Background(change)
    go_on.set()
    changing.result()
    wait_until(lambda: listener_of(first) == [port], "the first has the port")
    assert can_be_used(sock)
    assert not session.ended.is_set()


# --- connect: all -----------------------------------------------------------------------------------


def test_with_all_of_them_wanted_each_serves_the_remote_forwards_and_local_ones_are_spread(rig: Rig) -> None:
    first, second = rig.first, rig.second
    for place in (first, second):
        place.start()
    # On one machine two servers cannot have the same port, so let the system choose.
    remote = Forward("remote", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", rig.target.port))
    client = rig.client(rig.local, remote, connect="all")
    for place in (first, second):
        wait_until(lambda place=place: len(listener_of(place)) == 1, "each of them listens")
        with connection(listener_of(place)[0]) as sock:
            assert can_be_used(sock)
    wait_until(lambda: not first.streams + second.streams, "these are over")
    socks = []
    for count in range(1, 7):
        socks.append(rig.stack.enter_context(connection(client.local_ports[0])))
        assert can_be_used(socks[-1])
        assert abs(first.streams - second.streams) <= 1
        assert first.streams + second.streams == count
    second.stop()
    endings = []
    for sock in socks:
        try:
            endings.append(can_be_used(sock))
        except (ConnectionResetError, BrokenPipeError, AssertionError):
            endings.append(False)
    assert sorted(endings) == [False] * 3 + [True] * 3
    with connection(client.local_ports[0]) as sock:
        assert can_be_used(sock)
        assert first.streams == 4


# --- refusals ---------------------------------------------------------------------------------------


def test_an_unexpected_error_in_choosing_a_server_does_not_end_the_choosing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose, calls = Client._choose_servers_locked, itertools.count()

    def choose_or_fail(client: Client, now: float) -> float | None:
        if next(calls) == 0:
            raise ZeroDivisionError
        return choose(client, now)

    monkeypatch.setattr(Client, "_choose_servers_locked", choose_or_fail)
    rig.client_of_the_second()
    assert caplog.text.count("please report it") == 1


def test_a_client_that_both_refuse_gives_up(tmp_path: Path) -> None:
    with ExitStack() as stack:
        rig = Rig(tmp_path, stack, (os.urandom(32), os.urandom(32)))
        rig.first.start()
        rig.second.start()
        servers = (rig.first.remote, rig.second.remote)
        for connect in ("first", "all"):
            settings = ClientSettings(
                "a", servers, connect=connect, failover_after=SOON, reconnect=QUICK, state_dir=tmp_path
            )
            with pytest.raises(RefusedError, match="does not accept the client 'a'"):
                run_client(settings, threading.Event(), lambda: None)


@pytest.mark.parametrize("connect", ["first", "all"])
@pytest.mark.parametrize("refusing", [0, 1])
def test_a_server_that_refuses_is_no_reason_not_to_use_the_other(tmp_path: Path, connect: str, refusing: int) -> None:
    other = os.urandom(32)
    with ExitStack() as stack:
        rig = Rig(tmp_path, stack, (TOKEN, other) if refusing else (other, TOKEN))
        both = rig.first, rig.second
        for place in both:
            place.start()
        # It is the refusal that decides, and not the time.
        client = rig.client(rig.local, connect=connect, failover_after=60.0)
        with connection(client.local_ports[0]) as sock:
            assert can_be_used(sock)
            assert both[1 - refusing].streams == 1
            assert both[refusing].sessions == 0
        assert client.failure is None
        assert not client.over.is_set()
