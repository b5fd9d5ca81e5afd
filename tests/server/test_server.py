"""Promises of the server to its clients, tested with clients that pass the handshake and then do as they like."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import PipeEnded, RefusedError, StreamReset
from qanat.config.server_settings import ClientAccount, ServerLimits, ServerSettings
from qanat.handshake.hello import Answer, Close, CloseReason, Hello, Intent, Ready, RecordKind
from qanat.mux.frames import Reason
from qanat.server.server import Server
from qanat.session.messages import (
    Connect,
    ControlMessage,
    Listen,
    ListenFailed,
    Listening,
    Through,
    Unlisten,
    decode_control,
    decode_request,
)
from tests.support.background import wait_until
from tests.support.identities import place_identity
from tests.support.machine.ports import silent_address
from tests.support.server.raw_peers import PARAMETERS, SECONDS, Carried, RawClient
from tests.support.sockets import can_bind

TOKEN, OTHER_TOKEN = os.urandom(32), os.urandom(32)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    account = {"allow_connect": ("127.0.0.1:*",), "allow_listen": ("127.0.0.1:0", "127.0.0.1:1-65535")}
    settings = ServerSettings(
        clients=(ClientAccount("a", (TOKEN, OTHER_TOKEN), **account), ClientAccount("b", (TOKEN,))),
        listen=(("127.0.0.1", 0),),
        identity=place_identity(tmp_path / "server.key"),
        node="the-server",
        drain=0.2,
        takeover_timeout=1.5,
        limits=ServerLimits(sessions=2, forwards=2),
    )
    server = Server(settings)
    server.start()
    yield server
    server.stop()


def control(carried: Carried) -> ControlMessage:
    return decode_control(carried.control.get(timeout=SECONDS))


def ask_to_listen(carried: Carried, forward: int, port: int = 0, host: str = "127.0.0.1") -> ControlMessage:
    carried.lane.send_control(Listen(forward, TcpAddress(host, port)).encode())
    return control(carried)


def failure_of(carried: Carried, request: bytes) -> StreamReset:
    """How a stream with this request is refused."""
    stream = carried.lane.open_stream(request)
    with pytest.raises(StreamReset) as caught:
        stream.receive()
    stream.release()
    return caught.value


# --- HELLO ------------------------------------------------------------------------------------------


def test_a_client_with_either_of_its_tokens_is_welcome(server: Server) -> None:
    for token in (TOKEN, OTHER_TOKEN):
        with RawClient(server, "a", token) as client:
            kind, content = client.greet()
            assert kind is RecordKind.READY
            ready = Ready.decode(content)
            assert (ready.answer, ready.node) == (Answer.NEW, "the-server")


def test_a_wrong_token_and_an_unknown_name_are_refused(server: Server) -> None:
    for name, token in (("a", os.urandom(32)), ("b", OTHER_TOKEN), ("nobody", TOKEN)):
        with pytest.raises(RefusedError):
            RawClient(server, name, token)


def test_a_session_that_is_not_known_has_expired(server: Server) -> None:
    """Joining and resuming are answered from the start, so that later clients can ask."""
    with RawClient(server, "a", TOKEN) as client:
        hello = Hello(client.instance, PARAMETERS, intent=Intent.RESUME, session=b"s" * 16, proof=b"p" * 32)
        client.say(RecordKind.HELLO, hello.encode())
        kind, content = client.hear()
        assert (kind, Ready.decode(content).answer) == (RecordKind.READY, Answer.EXPIRED)


def test_nothing_but_hello_begins_a_session(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        client.say(RecordKind.HELLO, b"not a HELLO")
        with pytest.raises(PipeEnded):
            client.hear()
    with RawClient(server, "a", TOKEN) as client:
        client.say(RecordKind.CLOSE, Close(CloseReason.SHUTDOWN, "").encode())
        with pytest.raises(PipeEnded):
            client.hear()


def test_a_client_that_has_not_said_hello_takes_nothing_over(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as first:
        carried = first.join()
        with RawClient(server, "a", TOKEN):
            assert carried.lane.ping(SECONDS)
            assert not carried.endings


# --- names ------------------------------------------------------------------------------------------


def test_the_same_process_takes_its_name_and_its_ports_over_at_once(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as first:
        before = first.join()
        listening = ask_to_listen(before, 0)
        assert isinstance(listening, Listening)
        with RawClient(server, "a", TOKEN) as second:
            after = second.join()
            assert ask_to_listen(after, 0, listening.port) == listening
            before.end()


def test_another_process_is_told_who_holds_the_name(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as first:
        carried = first.join()
        with RawClient(server, "a", TOKEN, instance=b"j" * 16) as second:
            kind, content = second.greet()
            close = Close.decode(content)
            assert (kind, close.reason) == (RecordKind.CLOSE, CloseReason.NAME_IN_USE)
            assert "a is connected from 127.0.0.1:" in close.text
        assert carried.lane.ping(SECONDS)


def test_another_process_takes_over_from_one_that_does_not_answer(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as first:
        kind, _ = first.greet()  # and then reads nothing, so that no PING is answered
        assert kind is RecordKind.READY
        with RawClient(server, "a", TOKEN, instance=b"j" * 16) as second:
            assert second.join().lane.ping(SECONDS)


def test_many_connections_of_one_process_at_once_leave_one_session(server: Server) -> None:
    """Each of them replaces those before; nobody waits for a deadline, and the last one lives, whoever speaks last."""
    clients = [RawClient(server, "a", TOKEN) for _ in range(8)]
    answers: list[RecordKind | None] = [None] * len(clients)

    def greet(number: int) -> None:
        try:
            answers[number] = clients[number].greet()[0]
        except PipeEnded:
            answers[number] = None  # replaced before READY was read

    threads = [threading.Thread(target=greet, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert set(answers) <= {RecordKind.READY, RecordKind.CLOSE, None}
    assert answers[-1] is RecordKind.READY
    with RawClient(server, "a", TOKEN) as last:
        assert last.join().lane.ping(SECONDS)
    for client in clients:
        client.sealed.close("the test is over")


def test_a_session_too_many_is_told_to_come_later(tmp_path: Path, server: Server) -> None:
    server.registry._limit = 1
    with RawClient(server, "a", TOKEN) as first:
        first.join()
        with RawClient(server, "b", TOKEN) as second:
            kind, content = second.greet()
            assert (kind, Close.decode(content).reason) == (RecordKind.CLOSE, CloseReason.BUSY)
        # The room is free again as soon as the first has closed its session.
        first.end(CloseReason.SHUTDOWN)
    with RawClient(server, "b", TOKEN) as third:
        assert third.join().lane.ping(SECONDS)


def test_a_client_that_was_cut_keeps_its_room_and_its_name(server: Server) -> None:
    server.registry._limit = 1
    with RawClient(server, "a", TOKEN) as first:
        first.join()
    with RawClient(server, "b", TOKEN) as second:
        kind, content = second.greet()
        assert (kind, Close.decode(content).reason) == (RecordKind.CLOSE, CloseReason.BUSY)
    with RawClient(server, "a", TOKEN) as third:
        assert third.join().lane.ping(SECONDS)


# --- streams ----------------------------------------------------------------------------------------


def test_a_target_outside_the_rules_is_refused_without_detail(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        failure = failure_of(client.join(), Connect(TcpAddress("127.0.0.2", 80)).encode())
        assert failure.code == Reason.NOT_ALLOWED


def test_a_client_without_rules_reaches_nothing(server: Server) -> None:
    with RawClient(server, "b", TOKEN) as client:
        carried = client.join()
        for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1"):
            assert failure_of(carried, Connect(TcpAddress(host, 80)).encode()).code == Reason.NOT_ALLOWED
        refused = ask_to_listen(carried, 0)
        assert isinstance(refused, ListenFailed)
        assert refused.reason == Reason.NOT_ALLOWED


def test_a_server_has_no_forwards_that_a_client_could_name(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        assert failure_of(client.join(), Through(0).encode()).code == Reason.NOT_ALLOWED


def lp16(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big") + text


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (b"\xff", "unknown stream request 255"),
        (b"", "too short"),
        (b"\x01\x00\x50" + lp16(b"localhost"), "too short"),
        (Connect(TcpAddress("localhost", 80)).encode() + b"\0", "1 bytes too many"),
        (b"\x01\x00\x50" + lp16(b"h" * 256) + lp16(b""), "256 bytes where 255 are allowed"),
        (b"\x01\x00\x50" + lp16(b"localhost") + lp16(b"o" * 256), "256 bytes where 255 are allowed"),
        (b"\x01\x00\x50" + lp16(b"localhost") + lp16(b"o" * 512), "512 bytes where 255 are allowed"),
        (b"\x01\x00\x50" + lp16(b"\xff") + lp16(b""), "not UTF-8"),
    ],
    ids=["junk", "nothing", "cut", "too much", "a long host", "a long origin", "a longer origin", "no UTF-8"],
)
def test_a_request_that_cannot_be_understood_costs_its_stream_alone(
    server: Server, request_bytes: bytes, words: str
) -> None:
    with RawClient(server, "a", TOKEN) as client:
        carried = client.join()
        refused = failure_of(carried, request_bytes)
        assert refused.code == Reason.NOT_ALLOWED
        assert words in refused.message
        assert carried.lane.ping(SECONDS)
        assert failure_of(carried, Through(0).encode()).code == Reason.NOT_ALLOWED


def connecting() -> int:
    """How many targets are being connected to: each has a thread."""
    return sum(thread.name.endswith("-connect") for thread in threading.enumerate())


def test_a_client_that_comes_again_and_again_does_not_multiply_what_it_is_still_connecting_to(tmp_path: Path) -> None:
    """Targets that do not answer are given up with their session, and those of the next one are as many at most."""
    account = ClientAccount("a", (TOKEN,), allow_connect=("127.0.0.1:*",))
    settings = ServerSettings(
        clients=(account,),
        listen=(("127.0.0.1", 0),),
        identity=place_identity(tmp_path / "server.key"),
        limits=ServerLimits(streams=20),
        connect_timeout=10 * SECONDS,
    )
    server = Server(settings)
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        request = Connect(TcpAddress(*silent_address(stack))).encode()
        for _ in range(3):
            session = stack.enter_context(RawClient(server, "a", TOKEN)).join()
            wait_until(lambda: connecting() == 0, "those of the last session are given up")
            for _ in range(20):
                session.lane.open_stream(request)
            wait_until(lambda: connecting() == 20, "all of them are being connected to")


# --- listening --------------------------------------------------------------------------------------


def test_a_connection_to_a_remote_forward_names_the_forward_and_who_it_was(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        carried = client.join()
        listening = ask_to_listen(carried, 7)
        assert isinstance(listening, Listening)
        with socket.create_connection(("127.0.0.1", listening.port), timeout=SECONDS) as sock:
            stream = carried.opened.get(timeout=SECONDS)
            host, port = sock.getsockname()
            assert decode_request(stream.request) == Through(7, f"{host}:{port}")
            stream.reset(Reason.REFUSED, "nobody there")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


def test_a_port_is_free_once_it_is_given_back(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        carried = client.join()
        listening = ask_to_listen(carried, 0)
        assert isinstance(listening, Listening)
        carried.lane.send_control(Unlisten(0).encode())
        assert ask_to_listen(carried, 1, listening.port) == Listening(1, listening.port)


def test_ports_are_free_once_the_session_is_over(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        listening = ask_to_listen(client.join(), 0)
        assert isinstance(listening, Listening)
        client.end(CloseReason.SHUTDOWN)
        wait_until(lambda: can_bind(listening.port), "its port is free")


def test_a_forward_too_many_is_refused(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        carried = client.join()
        assert isinstance(ask_to_listen(carried, 0), Listening)
        assert isinstance(ask_to_listen(carried, 1), Listening)
        refused = ask_to_listen(carried, 2)
        assert isinstance(refused, ListenFailed)
        assert refused.reason == Reason.LIMIT


@pytest.mark.parametrize(
    "message",
    [b"", b"\xff", Listening(0, 80).encode(), ListenFailed(0, 1, "").encode()],
    ids=["nothing", "junk", "LISTENING", "LISTEN_FAILED"],
)
def test_a_control_message_that_no_client_may_send_ends_the_session(server: Server, message: bytes) -> None:
    with RawClient(server, "a", TOKEN) as client:
        carried = client.join()
        carried.lane.send_control(message)
        carried.end()


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (b"", "too short"),
        (b"\x00\x50" + lp16(b"h" * 256), "256 bytes where 255 are allowed"),
        (b"\x00\x50" + lp16(b"\xff"), "not UTF-8"),
        (b"\x00\x50" + lp16(b"127.0.0.1") + b"more", "4 bytes too many"),
    ],
    ids=["no port", "a long address", "no UTF-8", "too much"],
)
def test_a_listen_that_cannot_be_understood_costs_its_forward_alone(server: Server, rest: bytes, words: str) -> None:
    with RawClient(server, "a", TOKEN) as client:
        carried = client.join()
        carried.lane.send_control(b"\x01" + (7).to_bytes(4, "big") + rest)
        refused = decode_control(carried.control.get(timeout=SECONDS))
        assert isinstance(refused, ListenFailed)
        assert (refused.forward, refused.reason) == (7, Reason.NOT_ALLOWED)
        assert words in refused.text
        assert isinstance(ask_to_listen(carried, 7), Listening)


def test_asking_twice_for_one_forward_is_refused_and_leaves_the_first_in_place(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        carried = client.join()
        listening = ask_to_listen(carried, 0)
        assert isinstance(listening, Listening)
        assert ask_to_listen(carried, 0) == ListenFailed(0, Reason.LIMIT, "forward 0 listens already")
        with socket.create_connection(("127.0.0.1", listening.port), timeout=SECONDS):
            stream = carried.opened.get(timeout=SECONDS)
            assert isinstance(decode_request(stream.request), Through)
            stream.release()


# --- the end ----------------------------------------------------------------------------------------


def test_a_server_that_stops_says_so_to_every_client(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as one, RawClient(server, "b", TOKEN) as other:
        carried = one.join(), other.join()
        for each in carried:
            assert each.lane.ping(SECONDS)
        server.stop()
        for each in carried:
            ending = each.end()
            assert ending.close == Close(CloseReason.SHUTDOWN, "the-server is shutting down")


def test_a_server_that_drains_takes_no_new_stream_of_any_client(server: Server) -> None:
    """The drain of one client must not leave the others a way in."""
    with RawClient(server, "a", TOKEN) as one, socket.create_server(("127.0.0.1", 0)) as target:
        carried = one.join()
        request = Connect(TcpAddress("127.0.0.1", target.getsockname()[1])).encode()
        open_stream = carried.lane.open_stream(request)
        accepted, _ = target.accept()
        with accepted:
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            server.registry.close()
            while failure_of(carried, Connect(TcpAddress("127.0.0.2", 1)).encode()).code == Reason.NOT_ALLOWED:
                pass  # until the server has begun to drain
            assert failure_of(carried, request).code == Reason.SESSION_ENDED
            open_stream.release()
            stopping.join(SECONDS)
            assert not stopping.is_alive()


def test_a_session_claimed_after_the_end_began_is_turned_away(server: Server) -> None:
    client = RawClient(server, "a", TOKEN)
    with client:
        server.registry.close()
        kind, content = client.greet()
        assert (kind, Close.decode(content)) == (
            RecordKind.CLOSE,
            Close(CloseReason.BUSY, "this server is shutting down"),
        )
