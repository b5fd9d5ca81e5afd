"""UDP at both ends of a lane: who sent gets the replies, from where it asked, and nobody else pays for it."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from qanat.base.addresses import listen_addresses
from qanat.base.errors import EndpointError, WouldBlock
from qanat.base.watcher import Watcher
from qanat.endpoints.rate_limit import RateLimit
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.endpoints.udp import MAX_PAYLOAD, UdpFlow, UdpTarget, connect
from qanat.endpoints.udp_listener import IN_USE, UdpListener
from qanat.mux.frames import Reason
from tests.support.background import DEADLINE, wait_until
from tests.support.mux.rig import Pair

LARGEST = 65_507
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says to which address a datagram came")


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


def bound(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(DEADLINE)
    return sock


class Ends:
    """A listener at the client's end of a lane, with flows to one target at the server's."""

    def __init__(self, pair: Pair, watcher: Watcher, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.pair = pair
        self.watcher = watcher
        self.target = target
        self.opened = 0
        self.over: list[tuple[int, str]] = []
        self.refuses: Exception | None = None
        self.listeners: list[UdpListener] = []
        self.host = host

    def listen(self, *, idle: float = 60.0, max_flows: int = 1024) -> UdpListener:
        listener = UdpListener(
            listen_addresses(self.host, 0), self.open, "test", self.watcher, idle=idle, max_flows=max_flows
        )
        listener.start()
        self.listeners.append(listener)
        return listener

    def open(self, origin: str, on_datagram: object, on_over: object) -> UdpFlow:
        if self.refuses is not None:
            raise self.refuses
        self.opened += 1
        assert callable(on_datagram)
        assert callable(on_over)

        def over(reason: int, text: str) -> None:
            self.over.append((reason, text))
            on_over(reason, text)

        return UdpFlow(self.pair.client.lane.open_stream(origin.encode(), flush=False), on_datagram, over)

    def join(self) -> UdpTarget:
        """The socket for the next flow that comes to the server's end."""
        family = socket.AF_INET6 if ":" in self.target[0] else socket.AF_INET
        stream = self.pair.server.next_stream()
        target = UdpTarget(stream, connect([(family, self.target)]), self.watcher)
        target.start()
        return target


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with bound() as sock:
        yield sock


@pytest.fixture
def ends(pair: Pair, watcher: Watcher, target: socket.socket) -> Iterator[Ends]:
    ends = Ends(pair, watcher, target.getsockname())
    yield ends
    for listener in ends.listeners:
        listener.close()
    wait_until(lambda: pair.server.lane.open_streams == 0, "the flows are over at the other end, too")


def client_of(listener: UdpListener, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(DEADLINE)
    sock.connect((host, listener.port))
    return sock


@pytest.mark.parametrize("size", [0, 1, 1472, 9000, LARGEST])
def test_a_datagram_of_any_size_goes_there_and_back(ends: Ends, target: socket.socket, size: int) -> None:
    listener = ends.listen()
    with client_of(listener) as client:
        client.send(bytes(size))
        ends.join()
        payload, flow = target.recvfrom(MAX_PAYLOAD)
        assert payload == bytes(size)
        target.sendto(payload[::-1], flow)
        assert client.recv(MAX_PAYLOAD) == bytes(size)


def test_a_flow_keeps_its_port_and_others_have_their_own(ends: Ends, target: socket.socket) -> None:
    listener = ends.listen()
    with client_of(listener) as one, client_of(listener) as other:
        seen = []
        for client in (one, other):
            client.send(b"first")
            ends.join()
            seen.append(target.recvfrom(100)[1])
            client.send(b"second")
            assert target.recvfrom(100)[1] == seen[-1]
        assert seen[0] != seen[1]
        target.sendto(b"to other", seen[1])
        target.sendto(b"to one", seen[0])
        assert one.recv(100) == b"to one"
        assert other.recv(100) == b"to other"
        assert len(listener) == ends.opened == 2


def test_the_order_of_a_flow_is_kept(ends: Ends, target: socket.socket) -> None:
    listener = ends.listen()
    with client_of(listener) as client:
        for at in range(50):
            client.send(at.to_bytes(2))
        ends.join()
        target.settimeout(0.5)
        came: list[int] = []
        while not came or came[-1] != 49:
            try:
                came.append(int.from_bytes(target.recv(100)))
            except TimeoutError:  # on a busy machine: what waits for long is dropped
                client.send((49).to_bytes(2))
        assert came == sorted(set(came))


def test_an_idle_flow_ends_at_both_ends(ends: Ends, target: socket.socket, pair: Pair) -> None:
    listener = ends.listen(idle=0.2)
    with client_of(listener) as client:
        client.send(b"once")
        ends.join()
        target.recv(100)
        wait_until(lambda: len(listener) == 0, "the flow was idle for long enough")
        wait_until(lambda: pair.server.lane.open_streams == 0, "the other end knows")
        client.send(b"again")
        ends.join()
        assert target.recv(100) == b"again"
        assert ends.opened == 2


def test_of_too_many_flows_the_one_idle_longest_gives_way(ends: Ends, target: socket.socket) -> None:
    listener = ends.listen(max_flows=3)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(listener)) for _ in range(4)]
        for client in clients[:3]:
            client.send(b"hello")
            ends.join()
        flows = [target.recvfrom(100)[1] for _ in range(3)]
        clients[3].send(b"none gives way: all were in use just now")
        target.settimeout(0.2)
        deadline = time.monotonic() + IN_USE + 0.1
        while time.monotonic() < deadline:
            clients[0].send(b"busy")
            with contextlib.suppress(TimeoutError):  # on a busy machine: what waits for long is dropped
                target.recv(100)
            time.sleep(0.05)
        assert ends.opened == 3
        target.settimeout(DEADLINE)
        clients[3].send(b"now one does")
        ends.join()
        payload, flow = target.recvfrom(100)
        while payload == b"busy":
            payload, flow = target.recvfrom(100)
        assert payload == b"now one does"
        assert flow not in flows
        assert len(listener) == 3
        target.sendto(b"still there", flows[0])
        assert clients[0].recv(100) == b"still there"


def test_a_datagram_for_which_there_is_no_flow_is_dropped(ends: Ends, target: socket.socket) -> None:
    ends.refuses = WouldBlock()
    listener = ends.listen()
    with client_of(listener) as client:
        client.send(b"lost")
        wait_until(lambda: len(listener) == 1, "the datagram was read")
        ends.refuses = None
        client.send(b"comes")
        ends.join()
        assert target.recv(100) == b"comes"


def test_who_is_refused_waits_before_another_flow_is_opened(ends: Ends, pair: Pair) -> None:
    listener = ends.listen()
    with client_of(listener) as client:
        client.send(b"hello")
        stream = pair.server.next_stream()
        stream.reset(Reason.NOT_ALLOWED, "no rule")
        stream.release()
        wait_until(lambda: bool(ends.over), "the refusal came")
        assert ends.over == [(Reason.NOT_ALLOWED, "no rule")]
        for _ in range(20):
            client.send(b"hello")
        time.sleep(0.05)
        assert ends.opened == 1


def test_a_session_s_end_is_followed_by_a_new_flow_at_once(ends: Ends, pair: Pair, target: socket.socket) -> None:
    listener = ends.listen()
    with client_of(listener) as client:
        client.send(b"hello")
        stream = pair.server.next_stream()
        stream.reset(Reason.SESSION_ENDED, "over")
        stream.release()
        wait_until(lambda: bool(ends.over), "the end came")
        client.send(b"again")
        ends.join()
        assert target.recv(100) == b"again"


def test_nobody_there_is_said_as_for_tcp(ends: Ends, target: socket.socket) -> None:
    listener = ends.listen()
    target.close()
    with client_of(listener) as client:
        client.send(b"anybody?")
        ends.join()
        wait_until(lambda: bool(ends.over), "ICMP said that nobody is there")
        assert ends.over[0][0] == Reason.REFUSED
        assert "refused" in ends.over[0][1]


def test_a_target_that_restarts_keeps_its_flow(ends: Ends, target: socket.socket) -> None:
    listener = ends.listen()
    address = target.getsockname()
    with client_of(listener) as client:
        client.send(b"hello")
        ends.join()
        _, flow = target.recvfrom(100)
        target.sendto(b"answer", flow)
        assert client.recv(100) == b"answer"
        target.close()
        for _ in range(5):
            client.send(b"lost")
            time.sleep(0.02)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(address)
            again.settimeout(DEADLINE)
            client.send(b"are you back?")
            payload, sender = again.recvfrom(100)
            while payload == b"lost":  # it was still on its way
                payload, sender = again.recvfrom(100)
            assert payload == b"are you back?"
            assert sender == flow
        assert not ends.over


def test_a_strangers_datagram_does_not_reach_who_asked(ends: Ends, target: socket.socket) -> None:
    """A flow's socket is connected: the kernel takes what its target sends, and nothing else."""
    listener = ends.listen()
    with client_of(listener) as client, bound() as stranger:
        client.send(b"hello")
        ends.join()
        _, flow = target.recvfrom(100)
        stranger.sendto(b"forged", flow)
        target.sendto(b"genuine", flow)
        assert client.recv(100) == b"genuine"


def test_localhost_is_both_families(pair: Pair, watcher: Watcher, target: socket.socket) -> None:
    ends = Ends(pair, watcher, target.getsockname(), "localhost")
    listener = ends.listen()
    assert listener.address.endswith("/udp")
    for host in ("127.0.0.1", "::1"):
        with client_of(listener, host) as client:
            client.send(host.encode())
            ends.join()
            payload, flow = target.recvfrom(100)
            assert payload == host.encode()
            target.sendto(b"answer", flow)
            assert client.recv(100) == b"answer"
    listener.close()


@linux
@pytest.mark.parametrize(("host", "asked"), [("0.0.0.0", "127.0.0.5"), ("*", "127.0.0.5"), ("*", "::1")])
def test_replies_leave_from_the_address_that_was_asked(
    pair: Pair, watcher: Watcher, target: socket.socket, host: str, asked: str
) -> None:
    ends = Ends(pair, watcher, target.getsockname(), host)
    listener = ends.listen()
    with bound("::1" if ":" in asked else "127.0.0.1") as client:
        client.sendto(b"hello", (asked, listener.port))
        ends.join()
        _, flow = target.recvfrom(100)
        target.sendto(b"answer", flow)
        payload, sender = client.recvfrom(100)
        assert payload == b"answer"
        assert sender[:2] == (asked, listener.port)
        if asked == "127.0.0.5":  # another address of ours is another flow
            client.sendto(b"hello", ("127.0.0.6", listener.port))
            ends.join()
            _, flow = target.recvfrom(100)
            target.sendto(b"answer", flow)
            assert client.recvfrom(100)[1] == ("127.0.0.6", listener.port)
    listener.close()


def test_a_port_that_another_has_is_refused_with_what_to_do(ends: Ends) -> None:
    with bound() as other:
        host, port = other.getsockname()
        with pytest.raises(EndpointError, match="/udp: Address already in use") as caught:
            UdpListener(listen_addresses(host, port), ends.open, "test", ends.watcher)
        assert caught.value.code == Reason.LIMIT
        assert f"ss -lunp 'sport = :{port}'" in str(caught.value)


def test_two_listeners_cannot_share_a_port(ends: Ends) -> None:
    listener = ends.listen()
    with pytest.raises(EndpointError):
        UdpListener(listen_addresses("127.0.0.1", listener.port), ends.open, "test", ends.watcher)


def test_a_closed_listener_frees_its_port_and_ends_its_flows(ends: Ends, pair: Pair, target: socket.socket) -> None:
    listener = ends.listen()
    with client_of(listener) as client:
        client.send(b"hello")
        ends.join()
        target.recv(100)
        listener.close()
        listener.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", listener.port))
        wait_until(lambda: pair.client.lane.open_streams == 0, "the flow has ended")


def test_a_flood_costs_bounded_memory_and_others_go_on(ends: Ends, pair: Pair, target: socket.socket) -> None:
    listener = ends.listen()
    with client_of(listener) as flood, client_of(listener) as quiet:
        quiet.send(b"hello")
        ends.join()
        _, flow = target.recvfrom(100)
        flood.send(b"hello")
        ends.join()
        target.recv(100)
        for _ in range(5000):
            with contextlib.suppress(BlockingIOError):
                flood.send(bytes(8000))
        quiet.send(b"query")
        deadline = time.monotonic() + DEADLINE
        while target.recvfrom(MAX_PAYLOAD) != (b"query", flow):
            assert time.monotonic() < deadline
            quiet.send(b"query")
        with pair.client.lane.lock:
            pair.client.lane.core.check_invariants()


def test_no_route_is_unreachable() -> None:
    with pytest.raises(EndpointError) as caught:
        connect([(socket.AF_INET, ("255.255.255.255", 9))])
    assert caught.value.code in (Reason.NOT_ALLOWED, Reason.UNREACHABLE)
    with pytest.raises(EndpointError) as caught:
        connect([])
    assert caught.value.code == Reason.UNREACHABLE


def test_a_datagram_that_the_target_s_network_does_not_take_is_dropped(
    ends: Ends, target: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = ends.listen()
    with client_of(listener) as client:
        client.send(b"hello")
        joined = ends.join()
        _, flow = target.recvfrom(100)
        target.sendto(b"answer", flow)
        assert client.recv(100) == b"answer"
        real = joined._socket.send

        def too_large(payload: bytes) -> None:
            if len(payload) > 1000:
                raise OSError(errno.EMSGSIZE, "Message too long")
            real(payload)

        monkeypatch.setattr(joined._socket, "send", too_large)
        client.send(bytes(2000))
        client.send(b"small")
        assert target.recv(MAX_PAYLOAD) == b"small"
        assert not ends.over


def test_what_is_beyond_a_rate_is_dropped(pair: Pair, watcher: Watcher) -> None:
    """Either way: a datagram that would wait for its turn is worth nothing then."""
    limits = TrafficLimits(RateLimit(64 * 1024, watcher), RateLimit(64 * 1024, watcher))
    came: list[bytes] = []
    ours, theirs = pair.open()
    flow = UdpFlow(ours, came.append, lambda reason, text: None, limits=limits)
    there: list[bytes] = []
    theirs.datagrams_to(there.append)
    for _ in range(200):
        flow.send(bytes(1000))
        theirs.queue_datagram(bytes(1000))
        theirs.lane.flush()
    wait_until(lambda: bool(there) and bool(came), "some have come")
    assert len(there) < 200
    assert len(came) < 200
    flow.close()
    theirs.release()


def test_the_end_of_a_flow_is_told_once_whoever_ends_it(pair: Pair) -> None:
    ends: list[str] = []
    ours, theirs = pair.open()
    flow = UdpFlow(
        ours, lambda payload: None, lambda reason, text: ends.append("over"), done=lambda: ends.append("done")
    )
    theirs.reset(Reason.CANCELED, "")
    theirs.release()
    wait_until(lambda: len(ends) == 2, "both were called")
    flow.close()
    assert sorted(ends) == ["done", "over"]
    ends.clear()
    ours, theirs = pair.open()
    flow = UdpFlow(
        ours, lambda payload: None, lambda reason, text: ends.append("over"), done=lambda: ends.append("done")
    )
    flow.close()
    flow.close()
    wait_until(lambda: theirs.failure is not None, "the other end knows")
    theirs.release()
    assert ends == ["done"]
