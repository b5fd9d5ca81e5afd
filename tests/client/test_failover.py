"""Promises of a client with two servers, both real: which of them it uses, and when."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qanat.base.errors import RefusedError
from qanat.client import session as client_session
from qanat.client.client import Client, run_client
from qanat.config.settings import ClientAccount, ClientSettings, Forward, Reconnect, RemoteServer, ServerSettings
from qanat.endpoints.wakeable import WakeableSocket
from qanat.server.server import Server
from tests.support.applications import END, RESET, Target, connection, echo, ending_of, exchange, receive_exactly
from tests.support.background import Background, wait_until
from tests.support.harness import Relay
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
    monkeypatch.setattr(client_session, "RETRY_IN_USE", 0.1)


class Place:
    """A server that can be started and stopped, always at the same address and with the same key."""

    def __init__(self, number: int, directory: Path, token: bytes = TOKEN) -> None:
        directory.mkdir()
        self.port = unused_port()
        self._settings = ServerSettings(
            clients=(ClientAccount("a", (token,), ("127.0.0.1:*", "127.0.0.1:0"), ("127.0.0.1:*",)),),
            listen=(("127.0.0.1", self.port),),
            identity=directory / "server.key",
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


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    """Two servers, neither of them started."""
    both = Place(1, tmp_path / "1"), Place(2, tmp_path / "2")
    yield both
    for place in both:
        place.stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def target() -> Iterator[Target]:
    """What all forwards lead to, from either server."""
    with Target(echo) as target:
        yield target


def start_client(
    directory: Path, places: tuple[Place | RemoteServer, ...], stack: ExitStack, *forwards: Forward, **settings: object
) -> Client:
    values: dict[str, object] = {
        "reconnect": QUICK,
        "drain": 0.1,
        "failover_after": SOON,
        "state_dir": directory,
        **settings,
    }
    servers = tuple(place.remote if isinstance(place, Place) else place for place in places)
    client = Client(ClientSettings("a", servers, forwards, **values))  # type: ignore[arg-type]
    client.start()
    stack.callback(client.stop)
    return client


def start_with_the_first(
    directory: Path, places: tuple[Place, Place], stack: ExitStack, *forwards: Forward, **settings: object
) -> Client:
    """Both servers, and a client whose session is with the first."""
    first, second = places
    for place in places:
        place.start()
    client = start_client(directory, places, stack, *forwards, **settings)
    # Making its first key may take a client longer than it waits for a server.
    wait_until(lambda: (first.sessions, second.sessions) == (1, 0), "only the first has a session")
    return client


def start_with_the_second(
    directory: Path, places: tuple[Place, Place], stack: ExitStack, *forwards: Forward, **settings: object
) -> Client:
    """The second server alone, and a client whose session is with it."""
    second = places[1]
    second.start()
    client = start_client(directory, places, stack, *forwards, **settings)
    wait_until(lambda: second.sessions == 1, "the second has a session")
    return client


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


def remote_forward(target: Target) -> tuple[Forward, int]:
    port = unused_port()
    return Forward("remote", ("127.0.0.1", port), ("127.0.0.1", target.port)), port


def local_forward(target: Target) -> Forward:
    return Forward("local", ("127.0.0.1", 0), ("127.0.0.1", target.port))


def can_be_used(sock: socket.socket) -> bool:
    return exchange(sock, b"through the tunnel") == b"through the tunnel"


# --- connect: first ---------------------------------------------------------------------------------


def test_while_the_first_is_there_no_other_is_bothered(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    first, second = places
    client = start_with_the_first(tmp_path, places, stack, local_forward(target))
    with connection(client.local_ports[0]) as sock:
        assert can_be_used(sock)
        assert (first.streams, second.streams) == (1, 0)
        threading.Event().wait(3 * SOON)  # nothing may happen in this time
        assert (first.sessions, second.sessions) == (1, 0)


def test_the_second_is_used_when_the_first_is_not_there(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    second = places[1]
    second.start()
    began = time.monotonic()
    client = start_client(tmp_path, places, stack, local_forward(target))
    with connection(client.local_ports[0]) as sock:
        assert can_be_used(sock)
        assert time.monotonic() - began >= SOON
        assert second.streams == 1


def test_a_short_absence_of_the_first_bothers_nobody(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    first, second = places
    client = start_with_the_first(tmp_path, places, stack, local_forward(target), failover_after=10.0)
    with connection(client.local_ports[0]) as sock:
        assert can_be_used(sock)
        assert first.server is not None
        [session] = first.server.registry.sessions
        session.lanes[0].cut("the network was cut")
        assert can_be_used(sock)
    assert second.sessions == 0


def test_when_the_first_goes_new_connections_and_ports_go_to_the_second(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    first, second = places
    remote, port = remote_forward(target)
    client = start_with_the_first(tmp_path, places, stack, local_forward(target), remote)
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


def test_when_the_first_is_back_new_connections_go_there_and_the_seconds_finish_in_peace(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    first, second = places
    remote, port = remote_forward(target)
    client = start_with_the_second(tmp_path, places, stack, local_forward(target), remote)
    with connection(client.local_ports[0]) as old:
        assert can_be_used(old)
        wait_until(listens(port), "the second listens")
        with connection(port) as old_remote:
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
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = places
    connecting, reachable = threading.Event(), threading.Event()
    connect = client_session.connect

    def connect_slowly(*arguments: Any, **options: Any) -> WakeableSocket:
        connecting.set()
        assert reachable.wait(SECONDS)
        return connect(*arguments, **options)

    monkeypatch.setattr(client_session, "connect", connect_slowly)
    remote, port = remote_forward(target)
    start_with_the_second(tmp_path, places, stack, remote)
    wait_until(lambda: listener_of(second) == [port], "the second listens")
    with connection(port) as sock:
        assert connecting.wait(SECONDS)
        first.start()
        wait_until(lambda: listener_of(first) == [port], "the first has the port")
        reachable.set()
        assert can_be_used(sock)
        assert second.sessions == 1
    wait_until(lambda: second.sessions == 0, "the second's session has ended")


def test_a_second_that_is_left_with_nothing_open_is_told_goodbye_at_once(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = places
    start_with_the_second(tmp_path, places, stack)
    first.start()
    wait_until(lambda: (first.sessions, second.sessions) == (1, 0), "the session has moved")
    wait_until(lambda: "the client prefers another server" in caplog.text, "the log says so")


def test_a_first_that_comes_back_in_time_still_has_its_streams(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    """It was only out of reach: the session waits for it, while new connections go to the second."""
    first, second = places
    for place in places:
        place.start()
    at = unused_port()
    with ExitStack() as network:
        network.enter_context(Relay(first.port, at=at))
        remote = RemoteServer((f"ws://127.0.0.1:{at}/tunnel",), TOKEN, first.fingerprint)
        client = start_client(tmp_path, (remote, second.remote), stack, local_forward(target))
        wait_until(lambda: (first.sessions, second.sessions) == (1, 0), "only the first has a session")
        old = stack.enter_context(connection(client.local_ports[0]))
        assert can_be_used(old)
    old.sendall(b"meanwhile")
    wait_until(lambda: second.sessions == 1, "the second has a session")
    between = stack.enter_context(connection(client.local_ports[0]))
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


def test_it_goes_back_and_forth_as_often_as_the_first_does(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    first, second = places
    client = start_with_the_second(tmp_path, places, stack, local_forward(target))
    for _ in range(3):
        wait_until(lambda: second.sessions == 1, "the second has a session")
        with connection(client.local_ports[0]) as sock:
            assert can_be_used(sock)
        first.start()
        wait_until(lambda: (first.sessions, second.sessions) == (1, 0), "the session is with the first")
        with connection(client.local_ports[0]) as sock:
            assert can_be_used(sock)
        first.stop()


def test_a_second_that_is_only_finishing_returns_to_service_when_the_first_goes_again(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    first, second = places
    remote, port = remote_forward(target)
    client = start_with_the_second(tmp_path, places, stack, local_forward(target), remote)
    with connection(client.local_ports[0]) as old:
        assert can_be_used(old)
        wait_until(listens(port), "the second listens")
        first.start()
        wait_until(lambda: listener_of(first) == [port], "the first has the port")
        first.stop()
        wait_until(lambda: listener_of(second) == [port], "the second has it again")
        with connection(client.local_ports[0]) as new, connection(port) as new_remote:
            for sock in (old, new, new_remote):
                assert can_be_used(sock)
            assert second.streams == 3
        assert second.sessions == 1


def test_a_second_that_is_back_in_service_is_not_taken_for_absent(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    """Its session was there all the time, so nothing would say that it is back, and the third would be used too."""
    first, second = places
    third = Place(3, tmp_path / "3")
    stack.callback(third.stop)
    second.start()
    third.start()
    client = start_client(tmp_path, (first, second, third), stack, local_forward(target))
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
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may give the processor to another thread between the last look and the question."""
    first = places[0]
    reached, go_on = threading.Event(), threading.Event()
    request = client_session.ClientSession._request

    def request_late(self: client_session.ClientSession, number: int) -> None:
        if "-forward-" in threading.current_thread().name and not reached.is_set():
            reached.set()
            assert go_on.wait(SECONDS)
        request(self, number)

    monkeypatch.setattr(client_session.ClientSession, "_request", request_late)
    remote, port = remote_forward(target)
    first.start()
    with socket.create_server(("127.0.0.1", port)):
        client = start_client(tmp_path, (first,), stack, local_forward(target), remote)
        sock = stack.enter_context(connection(client.local_ports[0]))
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


def test_with_all_of_them_wanted_each_serves_the_remote_forwards_and_local_ones_are_spread(
    tmp_path: Path, places: tuple[Place, Place], stack: ExitStack, target: Target
) -> None:
    first, second = places
    for place in places:
        place.start()
    # On one machine two servers cannot have the same port, so let the system choose.
    remote = Forward("remote", ("127.0.0.1", 0), ("127.0.0.1", target.port))
    client = start_client(tmp_path, places, stack, local_forward(target), remote, connect="all")
    for place in places:
        wait_until(lambda place=place: len(listener_of(place)) == 1, "each of them listens")
        with connection(listener_of(place)[0]) as sock:
            assert can_be_used(sock)
    wait_until(lambda: not first.streams + second.streams, "these are over")
    socks = []
    for count in range(1, 7):
        socks.append(stack.enter_context(connection(client.local_ports[0])))
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
    tmp_path: Path,
    places: tuple[Place, Place],
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    choose, calls = Client._choose_servers_locked, itertools.count()

    def choose_or_fail(client: Client, now: float) -> float | None:
        if next(calls) == 0:
            raise ZeroDivisionError
        return choose(client, now)

    monkeypatch.setattr(Client, "_choose_servers_locked", choose_or_fail)
    start_with_the_second(tmp_path, places, stack)
    assert caplog.text.count("please report it") == 1


def test_a_client_that_both_refuse_gives_up(tmp_path: Path) -> None:
    both = Place(1, tmp_path / "1", os.urandom(32)), Place(2, tmp_path / "2", os.urandom(32))
    try:
        for place in both:
            place.start()
        servers = tuple(place.remote for place in both)
        for connect in ("first", "all"):
            settings = ClientSettings(
                "a", servers, connect=connect, failover_after=SOON, reconnect=QUICK, state_dir=tmp_path
            )
            with pytest.raises(RefusedError, match="does not accept the client 'a'"):
                run_client(settings, threading.Event(), lambda: None)
    finally:
        for place in both:
            place.stop()


@pytest.mark.parametrize("connect", ["first", "all"])
@pytest.mark.parametrize("refusing", [0, 1])
def test_a_server_that_refuses_is_no_reason_not_to_use_the_other(
    tmp_path: Path, stack: ExitStack, target: Target, connect: str, refusing: int
) -> None:
    tokens = [TOKEN, TOKEN]
    tokens[refusing] = os.urandom(32)
    both = Place(1, tmp_path / "1", tokens[0]), Place(2, tmp_path / "2", tokens[1])
    for place in both:
        place.start()
        stack.callback(place.stop)
    # It is the refusal that decides, and not the time.
    client = start_client(tmp_path, both, stack, local_forward(target), connect=connect, failover_after=60.0)
    with connection(client.local_ports[0]) as sock:
        assert can_be_used(sock)
        assert both[1 - refusing].streams == 1
        assert both[refusing].sessions == 0
    assert client.failure is None
    assert not client.over.is_set()
