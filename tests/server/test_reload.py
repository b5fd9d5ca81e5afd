"""A server that gets other settings while it runs: only what changed is touched, and what that did is said."""

from __future__ import annotations

import contextlib
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest

from qanat.base.addresses import ListenAddress
from qanat.base.endpoint_addresses import Anywhere, TcpAddress, UdpAddress
from qanat.base.errors import BindError, TransportError, UsageError
from qanat.client.client import Client
from qanat.config.client_settings import ClientSettings, Reconnect, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.server_settings import ClientAccount, ServerSettings, ServerTls
from qanat.config.settings import MonitorSettings
from qanat.handshake.hello import Close, CloseReason, Features
from qanat.server.server import Server
from qanat.server.session import ServerSession, _keeping_port
from qanat.session import limits
from qanat.session.messages import Listen, ListenOption
from tests.support.applications import END, RESET, Target, connection, echo, ending_at, exchange
from tests.support.background import DEADLINE, wait_until
from tests.support.datagrams import UdpEcho, ask, udp_client
from tests.support.harness import Relay
from tests.support.identities import place_identity
from tests.support.machine.ports import unused_port

OLD, NEW = b"o" * 32, b"n" * 32
A = ClientAccount("a", (OLD,), allow_connect=("127.0.0.1:*", "127.0.0.1:*/udp"), allow_listen=("127.0.0.1:*",))
B = ClientAccount("b", (b"b" * 32,), allow_connect=("127.0.0.1:*",))
ANY = TcpAddress("127.0.0.1", 0)


class Site:
    """A server with the clients a and b, an echo to reach, and b's connection to that, which must never notice."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.target = stack.enter_context(Target(echo))
        identity = place_identity(directory / "server.key")
        self.settings = ServerSettings((A, B), (("127.0.0.1", 0),), identity=identity, drain=0.1, state_dir=directory)
        self.server = Server(self.settings)
        self.server.start()
        stack.callback(self.server.stop)
        self.port = self.server.addresses[0][1]
        self.bystander = stack.enter_context(self.client(B, self.local))
        self._witness = stack.enter_context(connection(self.bystander.local_ports[0]))
        assert exchange(self._witness, b"first") == b"first"

    @property
    def to(self) -> TcpAddress:
        return TcpAddress("127.0.0.1", self.target.port)

    @property
    def local(self) -> Forward:
        return Forward("local", ANY, self.to)

    @contextlib.contextmanager
    def client(self, account: ClientAccount, *forwards: Forward, port: int = 0, lanes: int = 1) -> Iterator[Client]:
        url = f"ws://127.0.0.1:{port or self.port}/tunnel"
        server = RemoteServer((url,), account.tokens[0], self.server.identity.fingerprint)
        quick = Reconnect(first=0.01, min=0.01, max=0.05)
        settings = ClientSettings(
            account.name,
            (server,),
            forwards,
            transports=("websocket",),
            reconnect=quick,
            drain=0.1,
            lanes=lanes,
            state_dir=self.directory,
        )
        client = Client(settings)
        client.start()
        try:
            yield client
        finally:
            client.stop()

    def apply(self, *accounts: ClientAccount, **changes: object) -> list[str]:
        """Have the server go by the settings of the beginning, with these accounts and changes."""
        return self.server.apply(replace(self.settings, clients=accounts or (A, B), **changes))  # type: ignore[arg-type]

    def session_of(self, name: str) -> bytes | None:
        """The id of the client's session, None while there is none."""
        return next((one.id for one in self.server.registry.sessions if one.name == name and one.attached), None)


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("site"), stack)


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    """The site as it was at first; afterwards its bystander has noticed nothing."""
    before = whole_site.session_of("b")
    yield whole_site
    whole_site.apply()
    assert exchange(whole_site._witness, b"still there?") == b"still there?"
    assert whole_site.session_of("b") == before


def session_of_a(site: Site) -> ServerSession:
    """Wait until the client a is connected."""
    wait_until(lambda: site.session_of("a") is not None, "it is connected")
    return next(one for one in site.server.registry.sessions if one.name == "a")


def is_reset(sock: socket.socket) -> bool:
    """Whether the connection ends by a reset, rather than in order."""
    sock.settimeout(DEADLINE)
    try:
        return sock.recv(1) is None
    except ConnectionResetError:
        return True


def test_the_same_settings_change_nothing(site: Site) -> None:
    assert site.apply() == []


def test_a_client_that_is_taken_out_loses_its_session_and_others_go_on(site: Site) -> None:
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"before") == b"before"
        lines = site.apply(B)
        assert "client a: removed" in lines
        assert any(line.startswith("client a: its session from 127.0.0.1") for line in lines)
        assert is_reset(sock)
        assert site.session_of("a") is None
        wait_until(lambda: client.servers[0].session is None, "the client has heard of it")
        assert site.apply() == ["client a: added"]
        wait_until(lambda: site.session_of("a") is not None, "it may come back")


def test_a_client_that_is_away_when_it_is_taken_out_cannot_come_back(site: Site) -> None:
    with site.client(A, site.local) as client:
        session = session_of_a(site)
        client.servers[0].stop_connecting()
        client.servers[0]._cancel_all.cancel()  # it does not come back
        session.lanes[0].cut("the network is gone")
        wait_until(lambda: not session.attached, "it is away")
        assert not session.ended.is_set()
        site.apply(B)
        assert session.ended.is_set()


@pytest.mark.parametrize("lanes", [1, 2], ids=["one lane", "two lanes"])
def test_a_client_that_comes_back_after_it_was_taken_out_resets_its_streams_at_once(site: Site, lanes: int) -> None:
    with Relay(site.port) as relay, site.client(A, site.local, port=relay.port, lanes=lanes) as client:
        with connection(client.local_ports[0]) as sock:
            assert exchange(sock, b"before") == b"before"
            wait_until(lambda: len(session_of_a(site).lanes) == lanes, "all lanes are there")
            relay.refusing = True
            relay.cut()
            wait_until(lambda: site.session_of("a") is None, "it is away")
            site.apply(B)
            assert client.servers[0].session is not None, "resume_for is five minutes"
            relay.refusing = False
            assert is_reset(sock)
        wait_until(lambda: client.servers[0].session is None, "the session is over")
        assert not client.over.is_set(), "it goes on trying"
        assert "does not accept this client's token any more" in str(client.servers[0].news.failure)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", b"\0garbage" * 99], ids=["403", "garbage"]
)
def test_what_anybody_on_the_path_can_say_ends_no_session(site: Site, answer: bytes) -> None:
    def say_so(sock: socket.socket, target: Target) -> str:
        del target
        sock.recv(4096)
        sock.sendall(answer)
        return END

    with ExitStack() as stack:
        relay, stranger = stack.enter_context(Relay(site.port)), stack.enter_context(Target(say_so))
        client = stack.enter_context(site.client(A, site.local, port=relay.port))
        sock = stack.enter_context(connection(client.local_ports[0]))
        assert exchange(sock, b"before") == b"before"
        session = site.session_of("a")
        before, relay._to = relay._to, ("127.0.0.1", stranger.port)
        relay.cut()
        wait_until(lambda: len(relay.accepted) >= 3, "it was turned away")
        relay._to = before
        assert exchange(sock, b"after") == b"after"
        assert site.session_of("a") == session


def test_a_refusal_of_another_token_ends_no_session(site: Site) -> None:
    """As in a rotation that begins at the wrong end: the server learns of the new token later, and nothing was lost."""
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"before") == b"before"
        session, connector = session_of_a(site), client.servers[0].connector
        connector._server = replace(connector._server, token=NEW)
        session.lanes[0].cut("the network is gone")
        wait_until(lambda: "does not accept" in str(client.servers[0].news.failure), "it was refused")
        site.apply(replace(A, tokens=(OLD, NEW)), B)
        assert exchange(sock, b"after") == b"after"
        assert site.session_of("a") == session.id


def test_a_token_that_is_taken_out_ends_what_came_with_it_and_nothing_else(site: Site) -> None:
    both = replace(A, tokens=(OLD, NEW))
    assert site.apply(both, B) == ["client a: token"]
    with site.client(replace(A, tokens=(NEW,)), site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"new") == b"new"
        assert site.apply(replace(A, tokens=(NEW,)), B) == ["client a: token"]
        assert exchange(sock, b"still") == b"still"
        assert any("its session" in line for line in site.apply(A, B))
        assert is_reset(sock)


def test_a_session_that_has_come_back_with_the_new_token_outlives_the_old_one(site: Site) -> None:
    site.apply(replace(A, tokens=(OLD, NEW)), B)
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"old") == b"old"
        session = session_of_a(site)
        client.servers[0].connector._server = replace(client.servers[0].connector._server, token=NEW)
        session.lanes[0].cut("the network is gone")
        wait_until(lambda: session.attached and len(set(session.tokens.values())) == 1, "it is back")
        assert exchange(sock, b"again") == b"again"
        site.apply(replace(A, tokens=(NEW,)), B)
        assert exchange(sock, b"still") == b"still"


def test_a_stream_that_the_rules_forbid_is_reset_with_that_reason_and_others_go_on(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with Target(echo) as other, ExitStack() as stack:
        to = TcpAddress("127.0.0.1", other.port)
        client = stack.enter_context(site.client(A, site.local, Forward("local", ANY, to)))
        kept, lost = (stack.enter_context(connection(port)) for port in client.local_ports)
        assert exchange(kept, b"one") == b"one"
        assert exchange(lost, b"two") == b"two"
        session = site.session_of("a")
        lines = site.apply(replace(A, allow_connect=(f"127.0.0.1:{site.target.port}",)), B)
        assert "client a: allow_connect" in lines
        assert any(f"to 127.0.0.1:{other.port} reset" in line for line in lines)
        assert is_reset(lost)
        assert exchange(kept, b"three") == b"three"
        assert site.session_of("a") == session
        wait_until(lambda: "not allowed any more: no rule allows" in caplog.text, "the client's log has the reason")
        assert ending_at(client.local_ports[1]) == RESET


def test_a_flow_that_the_rules_forbid_ends(site: Site) -> None:
    with ExitStack() as stack:
        echoing = stack.enter_context(UdpEcho())
        to = UdpAddress("127.0.0.1", int(echoing.address.rpartition(":")[2]))
        client = stack.enter_context(site.client(A, Forward("local", UdpAddress("127.0.0.1", 0), to)))
        session = session_of_a(site)
        sender = stack.enter_context(udp_client(client.local_ports[0]))
        assert ask(sender, b"ping") == b"ping", "the flow is no longer being made, which would be judged later"
        assert session.open_streams == 1
        lines = site.apply(replace(A, allow_connect=("127.0.0.1:*",)), B)
        assert any("/udp reset" in line for line in lines)
        wait_until(lambda: session.open_streams == 0, "the flow is over")


def test_a_remote_forward_that_the_rules_forbid_ends_with_its_streams(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = unused_port(), unused_port()
    forwards = [Forward("remote", TcpAddress("127.0.0.1", port), site.to) for port in (first, second)]
    with site.client(A, *forwards), ExitStack() as stack:
        session = session_of_a(site)
        wait_until(lambda: len(session._listeners) == 2, "both are listened for")
        kept, lost = (stack.enter_context(connection(port)) for port in (first, second))
        assert exchange(kept, b"one") == b"one"
        assert exchange(lost, b"two") == b"two"
        lines = site.apply(replace(A, allow_listen=(f"127.0.0.1:{first}",)), B)
        assert any(f"listens no more on 127.0.0.1:{second}" in line for line in lines)
        assert is_reset(lost)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", second))
        assert exchange(kept, b"three") == b"three"
        with connection(first) as more:
            assert exchange(more, b"four") == b"four"


def state_of(client: Client, port: int) -> tuple[str, str]:
    """What the client's status says of its remote forward on this port: a word, and why it failed."""
    session = client.servers[0].session
    found = [] if session is None else session.forward_states
    return next(((state, why) for where, _, state, why in found if where == f"127.0.0.1:{port}"), ("none", ""))


def test_a_client_hears_that_its_forward_is_forbidden_and_has_it_again_as_soon_as_the_rules_allow_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Without waiting for its next try, which comes a minute later."""
    first, second = unused_port(), unused_port()
    forwards = [Forward("remote", TcpAddress("127.0.0.1", port), site.to) for port in (first, second)]
    with site.client(A, *forwards) as client:
        wait_until(lambda: state_of(client, second) == ("listening", ""), "it is listened for")
        words = f"the server listens no more for remote 127.0.0.1:{second} .*is not allowed by any rule"
        for number in range(2):
            site.apply(replace(A, allow_listen=(f"127.0.0.1:{first}",)), B)
            wait_until(lambda: state_of(client, second)[0] == "failed", "the client knows")
            assert "is not allowed by any rule" in state_of(client, second)[1]
            assert state_of(client, first) == ("listening", "")
            site.apply()
            wait_until(lambda: state_of(client, second) == ("listening", ""), "it is listened for again")
            with connection(second) as sock:
                assert exchange(sock, b"again") == b"again"
            wait_until(lambda n=number: len(re.findall(words, caplog.text)) > n, "it is in the client's log")  # type: ignore[misc]


def test_a_forward_that_was_refused_is_had_as_soon_as_the_rules_allow_it(site: Site) -> None:
    port = unused_port()
    site.apply(replace(A, allow_listen=()), B)
    with site.client(A, Forward("remote", TcpAddress("127.0.0.1", port), site.to)) as client:
        wait_until(lambda: state_of(client, port)[0] == "failed", "it is refused")
        site.apply()
        wait_until(lambda: state_of(client, port) == ("listening", ""), "it is listened for")


def test_a_client_that_knows_nothing_of_other_rules_is_told_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that it does not know would end its session."""
    monkeypatch.setattr(limits, "FEATURES", Features.KINDS)
    port = unused_port()
    with site.client(A, Forward("remote", TcpAddress("127.0.0.1", port), site.to), site.local) as client:
        wait_until(lambda: state_of(client, port) == ("listening", ""), "it is listened for")
        session = site.session_of("a")
        site.apply(replace(A, allow_listen=()), B)
        site.apply()
        with connection(client.local_ports[0]) as sock:
            assert exchange(sock, b"after") == b"after"
        assert site.session_of("a") == session


def test_a_port_that_the_system_chose_is_had_again_where_it_is_free(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """By a rule for port 0 alone; who comes there knows the number."""
    free = replace(A, allow_listen=("127.0.0.1:0",))
    site.apply(free, B)
    with site.client(A, Forward("remote", ANY, site.to)) as client, ExitStack() as stack:

        def listening() -> str:
            session = client.servers[0].session
            ((place, _, state, failure),) = session.forward_states if session is not None else [("", "", "", "")]
            return f"{place} {failure}".strip() if state == "listening" else ""

        wait_until(lambda: bool(listening()), "it is listened for")
        place = listening()
        site.apply(A, B)
        wait_until(lambda: not listening(), "it is not allowed")
        site.apply(free, B)
        wait_until(lambda: listening() == place, "it is listened for there again, since the server invites")
        before = session_of_a(site)
        before.end("it was ended", Close(CloseReason.SHUTDOWN, "it was ended"))
        wait_until(lambda: site.session_of("a") not in (None, before.id), "there is another session")
        wait_until(lambda: bool(listening()), "it is listened for")
        assert listening() == place
        site.apply(A, B)
        wait_until(lambda: not listening(), "it is not allowed")
        port = int(place.rpartition(":")[2])
        stack.enter_context(socket.create_server(("127.0.0.1", port)))
        site.apply(free, B)
        wait_until(lambda: bool(listening()), "it is listened for elsewhere")
        assert listening().endswith(f" in place of port {port}, which could not be had again")
        wait_until(lambda: f"in place of port {port}, which could not be had again: tell those" in caplog.text, "a log")
        with connection(int(listening().split()[0].rpartition(":")[2])) as sock:
            assert exchange(sock, b"hello") == b"hello"


def test_a_port_that_the_system_chose_stays_when_it_is_bound_on_one_address_more(site: Site) -> None:
    free = replace(A, allow_listen=("127.0.0.1:0",))
    site.apply(free, B)
    with site.client(A, Forward("remote", TcpAddress("localhost", 0), site.to)):
        session = session_of_a(site)
        wait_until(lambda: len(session._listeners) == 1, "it is listened for")
        port = session._listeners[0].port
        for held in (False, True):
            with ExitStack() as stack:
                if held:  # on the address that is new: the client is asked to ask again
                    stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
                lines = site.apply(replace(free, allow_listen=("127.0.0.1:0", "[::1]:0")), B)
                assert any("listen anew" in line if held else "listens anew" in line for line in lines), lines
                wait_until(lambda: len(session._listeners) == 1, "it is listened for")
                assert (session._listeners[0].port == port) is not held
                if not held:
                    site.apply(free, B)
        assert site.session_of("a") == session.id


@pytest.mark.parametrize("port", [1, 22, 1023, 65_536, 1 << 31])
def test_a_port_that_the_system_never_chooses_is_not_had_by_asking_to_keep_it(port: int) -> None:
    asked = Listen(0, ANY, {ListenOption.KEEP_PORT: port})
    assert _keeping_port(asked, (ListenAddress("127.0.0.1", 0),), lambda where: where[0].port) == 0


def test_a_port_that_becomes_shared_is_bound_anew_and_its_connections_go_on(site: Site) -> None:
    port = unused_port()
    with site.client(A, Forward("remote", TcpAddress("127.0.0.1", port), site.to)), ExitStack() as stack:
        session = session_of_a(site)
        wait_until(lambda: len(session._listeners) == 1, "it is listened for")
        sock = stack.enter_context(connection(port))
        assert exchange(sock, b"one") == b"one"
        shared = replace(A, allow_listen=(), shared_listen=(f"127.0.0.1:{port}",))
        assert any("listens anew" in line for line in site.apply(shared, B))
        assert exchange(sock, b"two") == b"two"
        with connection(port) as more:
            assert exchange(more, b"three") == b"three"


def status_of(address: str) -> int:
    """What a scrape is answered."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE) as answer:
        answer.read()
        return int(answer.status)


def test_the_monitor_comes_moves_and_goes_and_keeps_what_it_knows(site: Site) -> None:
    assert site.apply(monitor=MonitorSettings("127.0.0.1:0")) == ["monitor"]
    monitor = site.server.monitor
    assert monitor is not None
    first, page = monitor.address, monitor._page
    assert status_of(first) == 200
    lines = site.apply(monitor=MonitorSettings(first, max_clients=3))
    assert "monitor.max_clients: 50 -> 3" in lines
    assert status_of(first) == 200
    second = f"127.0.0.1:{unused_port()}"
    assert site.apply(monitor=MonitorSettings(second)) == ["monitor.listen", "monitor.max_clients: 3 -> 50"]
    assert status_of(second) == 200
    with pytest.raises(URLError):
        status_of(first)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        elsewhere = MonitorSettings(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(BindError):
            site.apply(monitor=elsewhere)
        assert status_of(second) == 200, "a fault changes nothing"
        with pytest.raises(TransportError):
            site.apply(
                monitor=MonitorSettings(first), listen=((elsewhere.listen.split(":")[0], taken.getsockname()[1]),)
            )
        assert status_of(second) == 200
    assert site.server.monitor is monitor
    assert monitor._page is page
    assert site.apply() == ["monitor"]
    assert site.server.monitor is None
    with pytest.raises(URLError):
        status_of(second)


def test_a_dynamic_forward_outlives_a_reload_that_does_not_concern_it(site: Site) -> None:
    with site.client(A, Forward("local", ANY, Anywhere())) as client, connection(client.local_ports[0]) as sock:
        session_of_a(site)
        sock.sendall(f"CONNECT 127.0.0.1:{site.target.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        sock.settimeout(DEADLINE)
        answer = sock.recv(1000)
        assert b" 200 " in answer
        site.apply(replace(A, allow_connect=("127.0.0.1:1-65535",)), B, drain=0.2)
        assert exchange(sock, b"through") == b"through"


def test_a_rate_holds_at_once_for_streams_that_are_open_and_goes_again(site: Site) -> None:
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"one") == b"one"
        session = session_of_a(site)
        slow = replace(A, rate_up=100_000)
        assert site.apply(slow, B) == ["client a: rate_up: 0 -> 100000"]
        (pump,) = session.joined._pumps
        assert pump._down is not None
        assert pump._up is None
        assert exchange(sock, b"x" * 300_000) == b"x" * 300_000
        assert pump._limits.writing is not None
        assert site.apply(A, B) == ["client a: rate_up: 100000 -> 0"]
        assert pump._down is None
        assert exchange(sock, b"y" * 1_000_000) == b"y" * 1_000_000


def test_a_stream_that_waits_for_its_turn_goes_on_when_the_limit_is_gone(site: Site) -> None:
    site.apply(replace(A, rate_up=1_000), B)  # what follows would take a quarter of an hour
    with site.client(replace(A), site.local) as client, connection(client.local_ports[0]) as sock:
        session = session_of_a(site)
        sock.sendall(b"z" * 1_000_000)
        wait_until(lambda: any(p._down is not None and p._down.waits for p in session.joined._pumps), "it waits")
        site.apply(A, B)
        received = b""
        sock.settimeout(DEADLINE)
        while len(received) < 1_000_000:
            received += sock.recv(1 << 20)
        assert received == b"z" * 1_000_000


def test_an_address_is_added_and_removed_and_the_others_are_not_touched(site: Site) -> None:
    port = unused_port()
    both = (("127.0.0.1", 0), ("127.0.0.1", port))
    assert site.apply(listen=both) == [f"listen: 127.0.0.1:{port} added"]
    assert site.server.addresses == (("127.0.0.1", site.port), ("127.0.0.1", port))
    with site.client(A, site.local, port=port) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"one") == b"one"
        assert site.apply() == [f"listen: 127.0.0.1:{port} removed"]
        assert exchange(sock, b"two") == b"two"  # who came by it stays
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_one_address_makes_way_for_another_on_the_same_port(site: Site) -> None:
    port = unused_port()
    site.apply(listen=(("127.0.0.1", 0), ("127.0.0.1", port)))
    site.apply(listen=(("127.0.0.1", 0), ("0.0.0.0", port)))
    assert ("0.0.0.0", port) in site.server.addresses
    socket.create_connection(("127.0.0.1", port)).close()


def test_an_address_that_cannot_be_bound_changes_nothing(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match="cannot listen"):
            site.apply(B, listen=(("127.0.0.1", 0), ("127.0.0.1", port)), drain=0.9)
    assert site.server.settings.drain == 0.1
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"a is still here") == b"a is still here"


def test_a_certificate_that_cannot_be_used_changes_nothing(site: Site) -> None:
    broken = site.directory / "broken.pem"
    broken.write_text("nothing")
    with pytest.raises(UsageError):
        site.apply(B, tls=ServerTls(broken, broken))
    assert site.apply() == []


def test_what_needs_a_restart_is_said(site: Site) -> None:
    (line,) = site.apply(pid_file=site.directory / "pid")
    assert line.endswith("(takes effect with a restart)")


def test_what_counts_for_new_sessions_is_said(site: Site) -> None:
    lines = site.apply(keepalive=replace(site.settings.keepalive, interval=7.0))
    assert lines == ["keepalive.interval: 15 -> 7 (for sessions that begin from now on)"]


def test_fewer_sessions_than_there_are_keep_out_newcomers_alone(site: Site) -> None:
    site.apply(limits=replace(site.settings.limits, sessions=1))
    with site.client(A):
        wait_until(lambda: site.server.registry.sessions[0].name == "b", "b is there")
        site.apply()
        wait_until(lambda: site.session_of("a") is not None, "there is room again")
