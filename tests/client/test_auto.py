"""Promises of `transport: auto` over real paths: what gets through is found, remembered, left and returned to."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from qanat.base import connect as base_connect
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.sockets import close_socket
from qanat.client import connect as connect_module
from qanat.client import race, remembered_ways, ways
from qanat.client.client import Client
from qanat.config.client_settings import ClientTls
from qanat.config.forward_settings import Forward
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.keys import ServerIdentity
from qanat.server import server as server_module
from qanat.server.server import Server
from qanat.transports.dial import tcp
from tests.support.applications import Conversation, Target, connection, echo, exchange
from tests.support.background import wait_until
from tests.support.chaos import ChaosRelay
from tests.support.harness import SECONDS
from tests.support.harness import Relay as Lines
from tests.support.logs import wait_for_log
from tests.support.machine.ports import silent_address
from tests.support.server.raw_sessions import client_to, real_server
from tests.support.troubles import RELAYS, Relay, Rules, Trouble, trouble

MOVED = "moved to a fresh connection to"
SLOW = {"answer-held-2s"}
"""Troubles that take seconds however one goes; `benchmarks/auto.py` has them."""


@dataclass
class Counted:
    """What has reached the server: connections that were given its key, and operations with its private key."""

    connections: int = 0
    private: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            setattr(self, what, getattr(self, what) + 1)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    decrypt, shake = ServerIdentity.decrypt, server_module.server_handshake

    def counting_decrypt(*arguments: Any) -> Any:
        counted.count("private")
        return decrypt(*arguments)

    def counting_shake(*arguments: Any, **named: Any) -> Any:
        counted.count("connections")
        return shake(*arguments, **named)

    monkeypatch.setattr(ServerIdentity, "decrypt", counting_decrypt)
    monkeypatch.setattr(server_module, "server_handshake", counting_shake)
    return counted


@pytest.fixture(autouse=True)
def _fresh(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO, "qanat.client")
    yield
    tcp._experience.clear()
    base_connect._slow.clear()


@dataclass(frozen=True)
class Place:
    """A server, and an echo that can be reached through it."""

    server: Server
    target: Target

    @property
    def port(self) -> int:
        return int(self.server.addresses[0][1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        server = stack.enter_context(real_server(tmp_path_factory.mktemp("server")))
        yield Place(server, stack.enter_context(Target(echo)))


@contextmanager
def client_at(place: Place, directory: Path, *urls: str, ca_file: Path | None = None, **more: Any) -> Iterator[Client]:
    forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", place.target.port))
    settings = {"transports": ("auto",), "tls": ClientTls(ca_file=ca_file), "connect_timeout": SECONDS, **more}
    with client_to(urls, place.server.identity.fingerprint, directory, forward, **settings) as client:
        yield client


def answers(client: Client) -> bool:
    with connection(client.local_ports[0]) as sock:
        return exchange(sock, b"hello") == b"hello"


def chosen(client: Client) -> str:
    """The transport of the present session's connection."""
    found = client.servers[0].connector.ways
    assert found is not None
    assert found.current is not None
    return found.current.transport


def url(port: int) -> str:
    return f"ws://127.0.0.1:{port}/tunnel"


# --- what gets through is found -----------------------------------------------------------------------


PASSABLE = [one for one in RELAYS if one.passes and one.name not in SLOW]


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("one", PASSABLE, ids=lambda one: one.name)
def test_whatever_lets_any_transport_through_lets_this_client_through(
    place: Place, tmp_path: Path, one: Trouble, tls: bool, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        one.start(place.port, tmp_path / "path", tls=tls) as path,
        client_at(place, tmp_path, path.url, ca_file=path.ca_file) as client,
    ):
        assert answers(client)
        tries = 1 + caplog.text.count("cannot connect")
        assert counted.connections <= race.MAX_HANDSHAKES * tries
        transport = chosen(client)
        assert any(passed.removesuffix("-streamed").removesuffix("-packets") == transport for passed in one.passes)


def test_a_way_that_is_remembered_takes_no_longer_than_one_that_is_fixed(place: Place, tmp_path: Path) -> None:
    """On a line where a round trip takes 0.3 s: a proof that cost one would make it a fifth slower."""

    def first_byte(transport: str) -> float:
        began = time.monotonic()
        with client_at(place, tmp_path, url(relay.port), transports=(transport,)) as client:
            assert answers(client)
            return time.monotonic() - began

    with ChaosRelay(place.port, delay=0.15, calm=True) as relay:
        assert first_byte("auto")
        pairs = [(first_byte("auto"), first_byte("websocket")) for _ in range(2)]
    assert min(remembered for remembered, _ in pairs) < 1.2 * min(fixed for _, fixed in pairs), pairs


def test_a_remembered_way_on_which_its_proof_does_not_come_back_is_left(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trouble("nothing").start(place.port, tmp_path / "path") as path:
        with client_at(place, tmp_path, path.url) as client:
            assert answers(client)
            assert chosen(client) == "websocket"
        sent = []

        def lost(sealed: SealedPipe) -> None:
            """Have the path let a handshake through, and nothing after it."""
            sent.append(sealed)
            sealed.probes_due += [1]

        monkeypatch.setattr(connect_module, "send_probe", lost)
        monkeypatch.setattr(connect_module, "PROOF_TIMEOUT", 0.5)
        with client_at(place, tmp_path, path.url) as client:
            assert answers(client)
            assert chosen(client) != "websocket"
        assert len(sent) == 1
    assert caplog.text.count("does not work here: sent 16 KiB, after a handshake that went well") == 1


@pytest.mark.parametrize("patient", [True, False], ids=["takes over", "gives up"])
def test_a_server_that_waits_for_a_silent_predecessor_is_no_fault_of_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    """What probes the way comes back at once, and READY later than that may take, or too late for this client."""
    monkeypatch.setattr(connect_module, "PROOF_TIMEOUT", 0.5)
    with ExitStack() as stack:
        server = stack.enter_context(real_server(tmp_path, takeover_timeout=1.0))
        place = Place(server, stack.enter_context(Target(echo)))
        lines = stack.enter_context(Lines(place.port))
        former = stack.enter_context(client_at(place, tmp_path, url(lines.port)))
        assert answers(former)
        stack.callback(lines.cut)
        lines.fall_silent()
        patience = SECONDS if patient else 0.8
        client = stack.enter_context(client_at(place, tmp_path, url(lines.port), handshake_timeout=patience))
        assert answers(client)
        assert chosen(client) == "websocket"
        assert "does not work here" not in caplog.text
        assert "hold back" not in caplog.text
        late = said(caplog, "the server has not answered in time")
        assert not late if patient else late[0].endswith("its log says more)"), late
        assert "websocket" in (tmp_path / "ways").read_text()


def test_one_line_says_of_each_way_that_failed_what_was_sent_what_came_back_and_what_that_means(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = Rules(upgrade=False, extended_connect=False, grpc=False)
    with (
        Relay(("127.0.0.1", place.port), rules) as relay,
        client_at(place, tmp_path, url(relay.port)) as client,
    ):
        assert answers(client)
    told = [record.message for record in caplog.records if "does not work here" in record.message]
    (websocket,) = [line for line in told if "over websocket does" in line]
    for part in ("sent a GET with Upgrade: websocket", "came back: 400", "meaning: ", "proxy_set_header Upgrade"):
        assert part in websocket


# --- it is remembered ---------------------------------------------------------------------------------


def test_what_worked_is_started_first_the_next_time_and_for_each_network(
    place: Place, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    networks = ["gateway:192.0.2.1"]
    monkeypatch.setattr(remembered_ways, "name_network", lambda: networks[-1])
    with trouble("no-upgrade").start(place.port, tmp_path / "path") as path:
        with client_at(place, tmp_path, path.url) as client:
            assert answers(client)
            found = chosen(client)
        assert found != "websocket"
        assert "over websocket does not work here" in caplog.text
        for network, failed in (("gateway:192.0.2.1", False), ("gateway:198.51.100.1", True)):
            networks.append(network)
            caplog.clear()
            reached = counted.connections
            with client_at(place, tmp_path, path.url) as client:
                assert answers(client)
                assert chosen(client) == found
            assert ("over websocket does not work here" in caplog.text) is failed
            if not failed:
                assert counted.connections == reached + 1
    lines = (tmp_path / "ways").read_text().splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["gateway:192.0.2.1", "gateway:198.51.100.1"]


def test_what_is_remembered_and_no_longer_works_costs_a_moment(place: Place, tmp_path: Path) -> None:
    with Relay(("127.0.0.1", place.port), Rules(upgrade=False, extended_connect=False)) as relay:
        port = relay.port
        with client_at(place, tmp_path, url(port)) as client:
            assert answers(client)
    with (
        Relay(("127.0.0.1", place.port), Rules(http2=False), port=port),
        client_at(place, tmp_path, url(port)) as client,
    ):
        assert answers(client)
        assert chosen(client) == "websocket"


# --- what is blocked in every way ---------------------------------------------------------------------


def test_no_more_than_three_of_one_try_reach_the_server_though_nobody_hears_of_it(
    place: Place, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A path that opens everything, and carries nothing after that."""
    monkeypatch.setattr(connect_module, "PATIENCE", 0.5)
    with Deaf(place.port) as deaf, client_at(place, tmp_path, url(deaf.port)):
        wait_until(lambda: bool(said(caplog, "cannot connect")), "it gives up")
        assert counted.connections <= race.MAX_HANDSHAKES * (1 + len(said(caplog, "cannot connect")))
    assert counted.private == 0


# --- it moves -----------------------------------------------------------------------------------------


def test_a_better_way_that_works_again_takes_over_and_open_streams_notice_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ways, "LOOK_AFTER", 0.2)
    monkeypatch.setattr(ways, "LONGEST", 0.2)
    with ExitStack() as stack:
        relay = stack.enter_context(Fickle(place.port, Rules(upgrade=False, extended_connect=False)))
        client = stack.enter_context(client_at(place, tmp_path, url(relay.port)))
        sock = stack.enter_context(connection(client.local_ports[0]))
        talk = Conversation(sock)
        assert talk.flowing.wait(SECONDS)
        assert chosen(client) == "http2"
        relay.become(Rules())
        wait_for_log(caplog, f"{MOVED} ws://127.0.0.1:{relay.port}/tunnel over websocket")
        assert chosen(client) == "websocket"
        talk.flowing.clear()
        assert talk.flowing.wait(SECONDS), talk.ending
        sock.shutdown(socket.SHUT_WR)
        talk.join(SECONDS)
    assert "was lost" not in caplog.text


def test_a_way_that_keeps_losing_its_connections_is_left_and_returned_to_without_losing_a_byte(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ways, "AVOIDED_FOR", 3.0)
    monkeypatch.setattr(ways, "LOOK_AFTER", 0.2)
    with ExitStack() as stack:
        relay = stack.enter_context(Fickle(place.port, Rules(extended_connect=False)))
        client = stack.enter_context(client_at(place, tmp_path, url(relay.port)))
        sock = stack.enter_context(connection(client.local_ports[0]))
        talk = Conversation(sock)
        assert talk.flowing.wait(SECONDS)
        assert chosen(client) == "websocket"
        for lost in range(1, ways.LOSSES + 1):
            relay.cut()
            wait_until(lambda: len(said(caplog, "was lost after")) >= lost, "the cut is seen")  # noqa: B023
            wait_until(lambda: len(said(caplog, "resumed by")) >= lost, "it has resumed")  # noqa: B023
        assert chosen(client) == "http2"
        assert said(caplog, "3 connections in a row did not last")
        wait_for_log(caplog, f"{MOVED} ws://127.0.0.1:{relay.port}/tunnel over websocket")
        assert chosen(client) == "websocket"
        talk.flowing.clear()
        assert talk.flowing.wait(SECONDS), talk.ending
        sock.shutdown(socket.SHUT_WR)
        talk.join(SECONDS)


def test_further_lanes_follow_to_the_better_way(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ways, "LOOK_AFTER", 0.2)
    monkeypatch.setattr(ways, "LONGEST", 0.2)
    with ExitStack() as stack:
        relay = stack.enter_context(Fickle(place.port, Rules(upgrade=False, extended_connect=False)))
        client = stack.enter_context(client_at(place, tmp_path, url(relay.port), lanes=2))
        assert answers(client)
        wait_for_log(caplog, "joined by")
        relay.become(Rules())
        wait_until(lambda: len(said(caplog, MOVED)) >= 2, "both lanes have moved")
        assert all("over websocket, since" in line for line in said(caplog, MOVED))
        assert answers(client)


# --- addresses and URLs -------------------------------------------------------------------------------


def test_a_dead_url_does_not_hold_up_another_one(place: Place, tmp_path: Path) -> None:
    with ExitStack() as stack:
        dead, alive = silent_address(stack)[1], place.port
        client = stack.enter_context(client_at(place, tmp_path, url(dead), url(alive)))
        began = time.monotonic()
        assert answers(client)
        assert time.monotonic() - began < SECONDS / 2, "the first URL's connect_timeout"


def test_an_address_that_takes_connections_and_says_nothing_leaves_its_place_to_the_next_of_its_name(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_module, "PATIENCE", 0.3)
    with ExitStack() as stack:
        mute = stack.enter_context(socket.create_server(("127.0.0.2", place.port)))
        known = [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, place.port))
            for host in ("127.0.0.2", "127.0.0.1")
        ]
        real = socket.getaddrinfo

        def look_up(host: Any, *more: Any, **named: Any) -> Any:
            return known if host == "twohomed.example" else real(host, *more, **named)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        client = stack.enter_context(client_at(place, tmp_path, f"ws://twohomed.example:{place.port}/tunnel"))
        assert answers(client)
        assert mute.fileno() >= 0


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """The lines that have been logged with this in them."""
    return [record.message for record in caplog.records if text in record.message]


class Fickle(Relay):
    """A relay that changes its mind."""

    def __init__(self, port: int, rules: Rules) -> None:
        super().__init__(("127.0.0.1", port), rules)

    def become(self, rules: Rules) -> None:
        """Treat what comes from now on by other rules."""
        self.rules = self._front._rules = rules


class Deaf:
    """A path on which all reaches the server, and nothing comes back."""

    def __init__(self, to: int) -> None:
        self._to = ("127.0.0.1", to)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept_loop, name="deaf")]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._sockets):
            close_socket(sock)
        for thread in self._threads:
            thread.join(SECONDS)

    def _accept_loop(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._to, SECONDS)
            server.settimeout(None)
            self._sockets += [client, server]
            for loop in (lambda c=client, s=server: _pass_on(c, s), lambda s=server: _pass_on(s, None)):
                self._threads.append(threading.Thread(target=loop, name="deaf"))
                self._threads[-1].start()


def _pass_on(source: socket.socket, target: socket.socket | None) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            if target is not None:
                target.sendall(data)
    if target is not None:
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
