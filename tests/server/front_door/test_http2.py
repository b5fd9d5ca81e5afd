"""HTTP/2 at the front door: on the same port and path, with the same limits, whoever carries it."""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from h2.events import ConnectionTerminated, DataReceived, Event, PingAckReceived, ResponseReceived, StreamReset
from h2.settings import SettingCodes

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.config.server_settings import ServerLimits
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door.address_budgets import CAPACITY, AddressBudgets
from qanat.server.front_door.front_door import FrontDoor
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import grpc
from qanat.transports.http2.frames import FrameType
from qanat.transports.pipe import Pipe
from qanat.transports.websocket import upgrade as websocket
from tests.support.background import DEADLINE, wait_until
from tests.support.machine.programs import require_program
from tests.support.server.front_door_rig import Certificate, connect, echo, exchange, front_door, request
from tests.support.transports.http2_loopback import CONNECT, DIALECTS, RawHttp2, frame, framed
from tests.support.transports.loopback import send_bytes

TUNNEL = {"content_type": "application/octet-stream"}
GRPC = {"content_type": "application/grpc+proto", "te": "trailers"}


def raw(stack: ExitStack, door: FrontDoor) -> RawHttp2:
    return RawHttp2(stack.enter_context(connect(door, DEADLINE)), client=True)


def status_of(peer: RawHttp2, stream_id: int) -> str:
    event = peer.read_until(lambda event: isinstance(event, ResponseReceived) and event.stream_id == stream_id)
    assert isinstance(event, ResponseReceived)
    return str(dict(event.headers)[":status"])


def echoed(peer: RawHttp2, stream_id: int, message: bytes) -> bytes:
    peer.h2.send_data(stream_id, framed(DIALECTS["http2"], message))
    peer.flush()
    event = peer.read_until(lambda event: isinstance(event, DataReceived) and event.stream_id == stream_id)
    assert isinstance(event, DataReceived)
    return bytes(event.data)[-len(message) :]


def url_of(door: FrontDoor, path: str = "/tunnel", scheme: str = "ws") -> TunnelUrl:
    host = "localhost" if scheme == "wss" else "127.0.0.1"
    return TunnelUrl.parse(f"{scheme}://{host}:{door.addresses[0][1]}{path}")


def test_every_transport_is_served_at_once_on_one_port_and_path() -> None:
    with front_door() as door:
        pipes = [connect_to(url_of(door), deadline=Deadline(DEADLINE)) for connect_to in CONNECT.values()]
        pipes.append(websocket.connect(url_of(door), deadline=Deadline(DEADLINE)))
        pipes.append(CONNECT["grpc"](url_of(door, grpc.METHOD_PATH), deadline=Deadline(DEADLINE)))
        for pipe in pipes:
            send_bytes(pipe, pipe.transport.encode())
        for pipe in pipes:
            assert pipe.recv() == pipe.transport.encode()
            pipe.close("done")


@pytest.mark.parametrize("name", DIALECTS)
def test_alpn_leads_to_http2_over_tls(certificate: Certificate, name: str) -> None:
    route = Route(ca_file=certificate.tls.certificate)
    with front_door(tls=certificate.tls) as door:
        pipe = CONNECT[name](url_of(door, scheme="wss"), route=route, deadline=Deadline(DEADLINE))
        send_bytes(pipe, b"over TLS")
        assert pipe.recv() == b"over TLS"
        pipe.close("done")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/elsewhere", TUNNEL),
        ("/elsewhere", GRPC),
        ("/tunnel", {}),
        ("/tunnel", {"content_type": "text/html"}),
        (grpc.METHOD_PATH, TUNNEL),
        ("/tunnel", {**TUNNEL, "content_length": "5"}),
    ],
)
def test_whatever_is_no_tunnel_gets_a_plain_404(stack: ExitStack, path: str, headers: dict[str, str]) -> None:
    with front_door() as door:
        peer = raw(stack, door)
        assert status_of(peer, peer.request(path, **headers)) == "404"
        peer.sock.close()


WEBSOCKET = {"sec_websocket_version": "13", "sec_websocket_protocol": "qanat.1"}


@pytest.mark.parametrize(
    ("path", "protocol", "headers", "status"),
    [
        ("/tunnel", "websocket", WEBSOCKET, "200"),
        ("/tunnel", "websocket", {"sec_websocket_version": "13"}, "200"),
        ("/tunnel?a=b", "WebSocket", WEBSOCKET, "200"),
        ("/elsewhere", "websocket", WEBSOCKET, "404"),
        (grpc.METHOD_PATH, "websocket", WEBSOCKET, "404"),
        ("/healthz", "websocket", WEBSOCKET, "404"),
        ("/tunnel", "connect-udp", WEBSOCKET, "404"),
        ("/tunnel", "websocket", {**WEBSOCKET, "sec_websocket_version": "8"}, "400"),
        ("/tunnel", "websocket", {"sec_websocket_protocol": "qanat.1"}, "400"),
        ("/tunnel", "websocket", {**WEBSOCKET, "sec_websocket_protocol": "chat"}, "400"),
        ("/tunnel", "websocket", {**WEBSOCKET, "x_long": "y" * 20_000}, "431"),
    ],
)
def test_extended_connect_is_answered_like_any_other_request(
    stack: ExitStack, path: str, protocol: str, headers: dict[str, str], status: str
) -> None:
    with front_door() as door:
        peer = raw(stack, door)
        assert status_of(peer, peer.extended_connect(path, protocol, **headers)) == status
        tunnel = peer.request(**TUNNEL)
        assert status_of(peer, tunnel) == "200"
        assert echoed(peer, tunnel, b"and the others go on") == b"and the others go on"
        peer.sock.close()


def test_a_plain_connect_opens_nothing(stack: ExitStack) -> None:
    """Nobody gets a forward proxy."""
    with front_door() as door:
        peer = raw(stack, door)
        stream_id = peer.h2.get_next_available_stream_id()
        peer.h2.send_headers(stream_id, [(":method", "CONNECT"), (":authority", "localhost:22")])
        peer.flush()
        assert status_of(peer, stream_id) == "404"
        peer.sock.close()


def test_a_request_with_too_many_headers_is_refused_alone(stack: ExitStack) -> None:
    """A proxy's connection carries others, too."""
    with front_door() as door:
        peer = raw(stack, door)
        tunnel = peer.request(**TUNNEL)
        assert status_of(peer, tunnel) == "200"
        assert status_of(peer, peer.request("/healthz", "GET", x_long="y" * 20_000)) == "431"
        peer.h2.send_data(tunnel, framed(DIALECTS["http2"], b"still here"))
        peer.flush()
        peer.sock.close()


def test_no_room_for_a_handshake_is_said_in_the_words_of_the_transport(stack: ExitStack) -> None:
    held = threading.Event()

    def hold(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        held.wait(DEADLINE)

    with front_door(hold, limits=ServerLimits(handshakes=1, handshake_rate=0.1)) as door:
        first = CONNECT["http2"](url_of(door), deadline=Deadline(DEADLINE))
        told = []
        for name, words in (("http2", "503"), ("grpc", "UNAVAILABLE"), ("websocket-h2", "503")):
            with pytest.raises(TransportError, match=words) as caught:
                CONNECT[name](url_of(door), deadline=Deadline(DEADLINE))
            told.append(caught.value.retry_after or 0)
        assert 8 <= told[0] <= 10  # one every ten seconds
        assert 8 <= told[1] - told[0] <= 10
        held.set()
        first.close("done")


def test_each_stream_is_on_the_account_of_the_client_that_the_proxy_names(stack: ExitStack) -> None:
    seen: queue.SimpleQueue[ClientAddress] = queue.SimpleQueue()

    def note(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        seen.put(address)

    with front_door(note, trusted_proxies=("127.0.0.0/8",)) as door:
        peer = raw(stack, door)
        for number in (7, 8):
            peer.request(**TUNNEL, x_forwarded_for=f"203.0.113.{number}")
            address = seen.get(timeout=DEADLINE)
            assert (address.client, address.via_proxy) == (f"203.0.113.{number}", True)
        peer.sock.close()


def test_streams_are_counted_like_connections_of_their_client(stack: ExitStack) -> None:
    """Otherwise one connection could start a handshake for every hundred bytes."""
    with front_door(limits=ServerLimits(per_address_rate=1, per_address_burst=2, header_timeout=2)) as door:
        peer = raw(stack, door)
        started = time.monotonic()
        for number in range(4):
            assert status_of(peer, peer.request(**TUNNEL)) == "200", number
        assert time.monotonic() - started > 0.5
        peer.sock.close()


def test_streams_that_wait_for_their_turn_are_few_for_each_address(stack: ExitStack) -> None:
    """Each of them has a thread, and all together they would take the room of everybody else."""
    limits = ServerLimits(per_address_rate=0.1, per_address_burst=1, header_timeout=20, handshakes=3, connections=8)
    with front_door(limits=limits) as door:
        greedy = raw(stack, door)
        for _ in range(40):
            greedy.request(**TUNNEL)
        statuses: dict[int, str] = {}

        def all_but_four(event: Event) -> bool:
            if isinstance(event, ResponseReceived):
                statuses[event.stream_id] = str(dict(event.headers)[":status"])
            return list(statuses.values()).count("503") == 40 - 4

        greedy.read_until(all_but_four)
        assert set(statuses.values()) <= {"200", "503"}  # one is served at once, three wait: whose thread is first
        greedy.sock.close()


def test_bodies_of_requests_that_are_refused_count_for_nothing(stack: ExitStack) -> None:
    """A proxy's connection carries strangers beside tunnels: what they send and reset must not end it."""
    with front_door() as door:
        peer = raw(stack, door)
        tunnel = peer.request(**TUNNEL)
        assert status_of(peer, tunnel) == "200"
        for _ in range(200):
            number = peer.request("/favicon.ico", "POST")
            peer.h2.send_data(number, b"a=b", end_stream=True)
            peer.flush()
            assert status_of(peer, number) == "404"
        for _ in range(300):
            number = peer.request("/favicon.ico", "POST")
            assert status_of(peer, number) == "404"
            peer.h2.reset_stream(number)
            peer.flush()
        assert echoed(peer, tunnel, b"still here") == b"still here"
        peer.sock.close()


def answer_of(peer: RawHttp2, stream_id: int) -> dict[str, str]:
    """The head of the answer; its `:status` is "" when the stream was reset before it had one."""
    event = peer.read_until(
        lambda event: isinstance(event, ResponseReceived | StreamReset) and event.stream_id == stream_id
    )
    return (
        {str(name): str(value) for name, value in event.headers}
        if isinstance(event, ResponseReceived)
        else {":status": ""}
    )


def post_and_reset(peer: RawHttp2, **headers: str) -> None:
    """As a client that the proxy carries: ask for a tunnel, and give it up at once."""
    number = peer.request(**TUNNEL, **headers)
    peer.h2.reset_stream(number)
    peer.flush()


def authenticate_one(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
    """Authenticate whoever comes from 203.0.113.7, and nobody else."""
    pipe.set_unauthenticated(address.client != "203.0.113.7")
    echo(pipe, address, slot)


@pytest.mark.parametrize("stranger", ["203.0.113.66", "2001:db8::66"])
def test_a_stranger_behind_a_shared_proxy_is_refused_and_cuts_nobody(stack: ExitStack, stranger: str) -> None:
    """Two clients on one connection, as nghttpx and Caddy put them: one has a tunnel, one posts and resets."""
    limits = ServerLimits(per_address_rate=1000, per_address_burst=1000)
    with front_door(authenticate_one, trusted_proxies=("127.0.0.0/8",), limits=limits) as door:
        proxy = raw(stack, door)
        honest = proxy.request(**TUNNEL, x_forwarded_for="203.0.113.7")
        assert status_of(proxy, honest) == "200"
        for turn in range(400):
            post_and_reset(proxy, x_forwarded_for=stranger)
            if turn % 20 == 0:
                assert echoed(proxy, honest, b"turn %d" % turn) == b"turn %d" % turn
        neighbor = "2001:db8::1:2" if ":" in stranger else stranger
        other = raw(stack, door)  # its budget is the same on every connection
        for peer in (proxy, other):
            answer = answer_of(peer, peer.request(**TUNNEL, x_forwarded_for=neighbor))
            assert answer[":status"] == "503"
            assert int(answer["retry-after"]) >= 1
        for address in ("203.0.113.7", "203.0.113.8", "2001:db8:0:1::1"):
            assert status_of(proxy, proxy.request(**TUNNEL, x_forwarded_for=address)) == "200"
        assert echoed(proxy, honest, b"still here") == b"still here"
        assert not [event for event in proxy.events if isinstance(event, ConnectionTerminated)]
        for peer in (proxy, other):
            peer.sock.close()


def test_streams_that_we_reset_for_a_stranger_behind_a_shared_proxy_cut_nobody(stack: ExitStack) -> None:
    limits = ServerLimits(per_address_rate=1000, per_address_burst=1000)
    with front_door(authenticate_one, trusted_proxies=("127.0.0.0/8",), limits=limits) as door:
        proxy = raw(stack, door)
        honest = proxy.request(**TUNNEL, x_forwarded_for="203.0.113.7")
        assert status_of(proxy, honest) == "200"
        answers = []
        for _ in range(100):
            number = proxy.request(**TUNNEL, x_forwarded_for="203.0.113.66")
            proxy.h2.send_data(number, b"\xff" * 5)
            proxy.flush()
            answers.append(answer_of(proxy, number)[":status"])
            if answers[-1] == "503":  # otherwise the server has reset it
                proxy.h2.reset_stream(number)
        assert answers[-1] == "503"
        assert len([answer for answer in answers if answer != "503"]) <= 60
        assert echoed(proxy, honest, b"still here") == b"still here"
        proxy.sock.close()


@pytest.mark.parametrize("trusted", [("127.0.0.0/8",), ()], ids=["by address", "by connection"])
def test_clients_that_get_in_and_leave_again_and_again_are_no_attack(
    stack: ExitStack, trusted: tuple[str, ...]
) -> None:
    """A proxy resets the stream of a client that is gone.  Each of these had a token, and did a handshake."""

    def authenticate(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        pipe.set_unauthenticated(True)
        pipe.set_unauthenticated(False)
        echo(pipe, address, slot)

    limits = ServerLimits(per_address_rate=10_000, per_address_burst=10_000, handshake_rate=10_000)
    with front_door(authenticate, trusted_proxies=trusted, limits=limits) as door:
        proxy = raw(stack, door)
        office = {**TUNNEL, "x_forwarded_for": "203.0.113.7"}
        staying = proxy.request(**office)
        assert status_of(proxy, staying) == "200"
        for _ in range(4):
            leaving = [proxy.request(**office) for _ in range(50)]
            for number in leaving:
                assert echoed(proxy, number, b"in") == b"in"
            for number in leaving:
                proxy.h2.reset_stream(number)
            proxy.flush()
        assert echoed(proxy, staying, b"still here") == b"still here"
        proxy.sock.close()
    used = door.used_most["control frames"]
    assert used.share < 0.5, used


@pytest.mark.parametrize(
    "field",
    [
        (b"x-a", b"v "),
        (b"x-a", b"\tv"),
        (b"te", b"gzip"),
        (b"keep-alive", b"5"),
        (b"proxy-connection", b"close"),
        (b"X-Upper", b"v"),
        (b"x-a", b"a\0b"),
        (b":path", b"/again"),
        (b":made-up", b"v"),
        (b"host", b"another"),
    ],
)
def test_a_malformed_request_is_refused_alone(
    stack: ExitStack, caplog: pytest.LogCaptureFixture, field: tuple[bytes, bytes]
) -> None:
    """Caddy and HAProxy hand on a value with a space at its end, and that request shares its connection with others."""
    caplog.set_level("INFO", "qanat")
    with front_door() as door:
        proxy = raw(stack, door)
        honest = proxy.request(**TUNNEL)
        assert status_of(proxy, honest) == "200"
        number = proxy.h2.get_next_available_stream_id()
        pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/tunnel"), (b":authority", b"localhost")]
        block = proxy.h2.encoder.encode([*pseudo, (b"content-type", b"application/octet-stream"), field])
        proxy.h2.send_headers(number, [(key.decode(), value.decode()) for key, value in pseudo])
        proxy.h2.clear_outbound_data_buffer()
        proxy.sock.sendall(frame(FrameType.HEADERS, 4, number, block))
        assert status_of(proxy, number) == "400"
        assert echoed(proxy, honest, b"still here") == b"still here"
        said = "which asked for /tunnel: the request is not well-formed HTTP"
        wait_until(lambda: said in caplog.text, "it is in the log")
        proxy.sock.close()


def test_a_stranger_in_an_office_keeps_no_colleague_out(stack: ExitStack) -> None:
    """They share an address, as behind a NAT, and the stranger posts and resets without end."""

    def authenticate_who_knows(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        pipe.set_unauthenticated(True)
        pipe.set_unauthenticated(bytes(pipe.recv()) != b"token")
        echo(pipe, address, slot)

    def come(turn: bytes) -> int | None:
        number = proxy.request(**TUNNEL, **office)
        if answer_of(proxy, number)[":status"] != "200":
            return None
        proxy.h2.send_data(number, framed(DIALECTS["http2"], b"token"))
        assert echoed(proxy, number, turn) == turn
        return number

    limits = ServerLimits(per_address_rate=10_000, per_address_burst=10_000, handshake_rate=10_000)
    office = {"x_forwarded_for": "203.0.113.7"}
    with front_door(authenticate_who_knows, trusted_proxies=("127.0.0.0/8",), limits=limits) as door:
        proxy = raw(stack, door)
        colleagues = [number for number in (come(b"one"), come(b"two")) if number]
        assert len(colleagues) == 2
        while door.used_most_by_address[0]["203.0.113.7"].share <= 1:
            post_and_reset(proxy, **office)
            proxy.h2.ping(b"has come")  # the door shall not be far behind: too much at once would end the connection
            proxy.flush()
            proxy.expect(PingAckReceived)
        wait_until(lambda: bool(come(b"three")), "a colleague has come, though the stranger goes on")
        for number in colleagues:
            assert echoed(proxy, number, b"still here") == b"still here"
        proxy.sock.close()


def test_who_waits_for_its_turn_and_gives_up_leaves_its_place(stack: ExitStack) -> None:
    def waiting() -> int:
        return sum(thread.name.startswith("h2 ") for thread in threading.enumerate())

    limits = ServerLimits(per_address_rate=0.01, per_address_burst=1, header_timeout=300)
    with front_door(limits=limits) as door:
        peer = raw(stack, door)
        numbers = [peer.request(**TUNNEL) for _ in range(6)]
        wait_until(lambda: waiting() == 6, "one is served, and the others wait")
        served = peer.expect(ResponseReceived)
        assert isinstance(served, ResponseReceived)
        numbers.remove(served.stream_id)
        for number in (served.stream_id, *numbers[:3]):
            peer.h2.reset_stream(number)
        peer.flush()
        wait_until(lambda: waiting() == 2, "those that gave up have gone")
    # The door has closed with two that would have waited for minutes, and its threads have ended.


def test_a_flood_that_is_nobodys_stream_ends_the_connection_of_a_trusted_proxy_too(stack: ExitStack) -> None:
    with front_door(trusted_proxies=("127.0.0.0/8",)) as door:
        proxy = raw(stack, door)
        with contextlib.suppress(ConnectionError):  # which is an end as well; a time-out is none
            proxy.sock.sendall(frame(FrameType.PING, 0, 0, bytes(8)) * 9000)
            while not proxy.ended:
                proxy.read()


def test_addresses_whose_budget_is_kept_are_few() -> None:
    budgets = AddressBudgets(lambda: 0.0)
    spent = budgets.of("192.0.2.1")
    while not spent.refused_for():
        spent.spend_request()
    assert budgets.of("192.0.2.1") is spent
    for number in range(CAPACITY + 10):
        budgets.of(f"10.0.{number // 256}.{number % 256}")
    assert len(budgets) == CAPACITY
    assert not budgets.of("192.0.2.1").refused_for()


def test_a_pipe_that_ends_on_a_slow_path_ends_no_other(stack: ExitStack) -> None:
    """Its writer waits for its turn, and so do all others; but what is sent does arrive."""
    ended: queue.Queue[str] = queue.Queue()

    def pour(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        slot.release()

        def write() -> None:
            with contextlib.suppress(TransportError):
                while True:
                    pipe.send(memoryview(bytearray(pipe.headroom + 131072)))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            while True:
                pipe.recv()
        except TransportError as error:
            ended.put(str(error))
            pipe.close("its reader has ended")
            writer.join()

    with front_door(pour) as door:
        sock = stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(door.addresses[0])
        peer = RawHttp2(sock, client=True)
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 30})
        peer.h2.increment_flow_control_window(1 << 29)
        peer.flush()
        for _ in range(20):
            peer.request(**TUNNEL)
        began, came, left = time.monotonic(), 0, False
        while (elapsed := time.monotonic() - began) < 5 or ended.qsize() < 4:
            assert elapsed < 2 * DEADLINE, "those who were reset do not end"
            data = sock.recv(65536)
            assert data, "the connection was ended for all"
            came += len(data)
            threading.Event().wait(max(0.0, came / 2e6 - elapsed))  # 2 MB/s, steadily
            if elapsed > 2.5 and not left:
                left = True
                for number in (1, 9, 17, 25):
                    peer.h2.reset_stream(number)
                peer.flush()
        assert ended.qsize() == 4
        sock.close()


def test_a_connection_without_a_request_is_cut_in_time() -> None:
    with front_door(limits=ServerLimits(header_timeout=1)) as door, ExitStack() as stack:
        raw(stack, door).expect(ConnectionTerminated)
        busy = raw(stack, door)
        assert status_of(busy, busy.request("/healthz", "GET")) == "200"
        again = threading.Event()
        assert not again.wait(1.2)  # longer than the time for a first request
        assert status_of(busy, busy.request("/healthz", "GET")) == "200"
        busy.sock.close()


def test_a_connection_without_a_pipe_gives_way_when_there_is_no_room(stack: ExitStack) -> None:
    with front_door(limits=ServerLimits(connections=2)) as door:
        piped, idle = raw(stack, door), raw(stack, door)
        assert status_of(piped, piped.request(**TUNNEL)) == "200"
        assert status_of(idle, idle.request("/healthz", "GET")) == "200"
        wait_until(lambda: len(door.admission.unfinished) == 1, "one of them counts as a pipe")
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")
        while not idle.ended:  # GOAWAY comes before that only if nothing was being sent at this moment
            idle.read()
        stream = piped.request("/healthz", "GET")
        assert status_of(piped, stream) == "200"
        piped.sock.close()


def test_streams_beyond_all_room_are_told_to_come_later(stack: ExitStack) -> None:
    with front_door(limits=ServerLimits(connections=2)) as door:
        peer = raw(stack, door)
        answers = [status_of(peer, peer.request(**TUNNEL)) for _ in range(6)]
        assert answers[0] == "200"
        assert answers[-1] == "503"
        peer.sock.close()


def test_closing_the_door_says_goaway_and_lets_pipes_finish(stack: ExitStack) -> None:
    with front_door() as door:
        peer, idle = raw(stack, door), raw(stack, door)
        stream = peer.request(**TUNNEL)
        assert status_of(peer, stream) == "200"
        assert status_of(idle, idle.request("/healthz", "GET")) == "200"
        peer.h2.send_data(stream, framed(DIALECTS["http2"], b"handed over"))
        peer.flush()
        data = b""
        while b"handed over" not in data:  # before that, closing the door ends the pipe, too
            data += peer.sock.recv(4096)
        door.close()
        idle.expect(ConnectionTerminated)
        data = b""
        while b"\x07\x00\x00\x00\x00\x00" not in data:
            data += peer.sock.recv(4096)
        peer.h2.send_data(stream, framed(DIALECTS["http2"], b"to the end"))
        peer.flush()
        data = b""
        while b"to the end" not in data:
            data += peer.sock.recv(4096)
        peer.h2.end_stream(stream)
        peer.flush()
        while peer.sock.recv(4096):
            pass


def test_a_thousand_plain_requests_are_enough_for_one_connection(stack: ExitStack) -> None:
    with front_door() as door:
        peer = raw(stack, door)
        for _ in range(1000):
            assert status_of(peer, peer.request("/healthz", "GET")) == "200"
        peer.expect(ConnectionTerminated)
        peer.sock.close()


def test_half_open_connections_cost_one_thread_and_little_memory_each() -> None:
    before = threading.active_count()
    with front_door() as door, ExitStack() as stack:
        peers = [raw(stack, door) for _ in range(30)]
        for peer in peers:
            peer.read()
        assert threading.active_count() - before <= 2 + 2 * len(peers)
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sock.close()
        wait_until(lambda: threading.active_count() - before <= 4, "their threads have ended")


# --- other people's programs


def run(door: FrontDoor, program: str, *options: str, path: str = "/healthz", scheme: str = "http") -> str:
    url = f"{scheme}://127.0.0.1:{door.addresses[0][1]}{path}"
    command = [str(require_program(program)), *options, url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_nghttp_is_served_in_clear_and_over_tls(certificate: Certificate) -> None:
    with front_door() as door:
        assert "ok\n" in run(door, "nghttp", "-v")
    with front_door(tls=certificate.tls) as door:
        output = run(door, "nghttp", "-v", "-m", "20", scheme="https")
        assert "The negotiated protocol: h2" in output
        assert output.count(":status: 200") == 20


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_h2load_gets_every_answer(certificate: Certificate, scheme: str) -> None:
    with front_door(tls=certificate.tls if scheme == "https" else None) as door:
        output = run(door, "h2load", "-n", "2000", "-c", "8", "-m", "20", scheme=scheme)
    assert re.search(r"2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed", output), output


def test_a_reset_request_ends_its_handler(stack: ExitStack) -> None:
    ended = threading.Event()

    def note(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        echo(pipe, address, slot)
        ended.set()

    with front_door(note) as door:
        peer = raw(stack, door)
        stream = peer.request(**TUNNEL)
        assert status_of(peer, stream) == "200"
        peer.h2.reset_stream(stream)
        peer.flush()
        assert ended.wait(DEADLINE)
        assert not [event for event in peer.events if isinstance(event, StreamReset)]
        peer.sock.close()
