"""The blocking drivers over real sockets: deadlines that hold, ends that are told from cuts, records that flow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import (
    HandshakeError,
    LocalError,
    PipeEnded,
    ProtocolError,
    QanatError,
    RefusedError,
    TransportError,
)
from qanat.handshake.exchange import SealedPipe, client_handshake, closed_at, server_handshake
from qanat.handshake.hello import Close, CloseReason, RecordKind
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.sealed import MAX_PLAINTEXT, Opener, Sealer
from qanat.transports.pipe import Pipe
from tests.support.handshake.pipes import SocketPipe, send, socket_pipes
from tests.support.handshake.scenario import OTHER_TOKEN, FakeClock, make_client, make_server, seal
from tests.support.transports.memory import memory_pair

LIMIT = 20.0
SHORT = 0.3
HELLO, READY, FRAMES, KEY_UPDATE, CLOSE, PROBE = (bytes([kind]) for kind in RecordKind)


@dataclass
class Background:
    """One call on a thread of its own, with what came of it."""

    work: Callable[[], object]
    result: object = None
    error: QanatError | None = None
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self.work()
        except QanatError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


def shake(
    client_pipe: Pipe, server_pipe: Pipe, identity: ServerIdentity, key: ClientKey
) -> tuple[SealedPipe, SealedPipe]:
    serving = Background(lambda: server_handshake(server_pipe, make_server(identity), Deadline(LIMIT)))
    client = client_handshake(client_pipe, make_client(key), Deadline(LIMIT))
    serving.join()
    assert isinstance(serving.result, SealedPipe)
    return client, serving.result


@pytest.fixture(params=[memory_pair, socket_pipes], ids=["memory", "socket"])
def sealed(
    request: pytest.FixtureRequest, identity: ServerIdentity, client_key: ClientKey
) -> Iterator[tuple[SealedPipe, SealedPipe]]:
    client_pipe, server_pipe = request.param()
    yield shake(client_pipe, server_pipe, identity, client_key)
    for pipe in (client_pipe, server_pipe):
        pipe.close("the test is over")


def receive(end: SealedPipe) -> tuple[RecordKind, bytes]:
    kind, content = end.recv_record()
    return kind, bytes(content)


def send_all(end: SealedPipe, contents: list[bytes]) -> None:
    for content in contents:
        end.send_record(FRAMES + content)


def say_hello(client: SealedPipe, server: SealedPipe) -> None:
    client.send_record(HELLO)
    assert receive(server) == (RecordKind.HELLO, b"")
    server.send_record(READY)
    assert receive(client) == (RecordKind.READY, b"")


def test_records_flow_both_ways_whole_and_in_order(sealed: tuple[SealedPipe, SealedPipe]) -> None:
    client, server = sealed
    assert client.result == server.result
    say_hello(client, server)
    contents = [b"", b"x", bytes(1000), b"y" * (MAX_PLAINTEXT - 1), b"last"]
    for sender, receiver in ((client, server), (server, client)):
        sending = Background(partial(send_all, sender, contents))
        assert [receive(receiver)[1] for _ in contents] == contents
        sending.join()
        assert sending.error is None


def test_a_received_content_may_be_kept_and_the_sent_buffer_is_left_as_it_was(
    sealed: tuple[SealedPipe, SealedPipe],
) -> None:
    client, server = sealed
    say_hello(client, server)
    buffer = bytearray(FRAMES + b"first")
    client.send_record(memoryview(buffer))
    assert buffer == FRAMES + b"first"
    _, kept = server.recv_record()
    buffer[1:] = b"other"
    client.send_record(memoryview(buffer))
    assert receive(server)[1] == b"other"
    assert bytes(kept) == b"first"


class TestTheEnd:
    def test_close_is_the_last_record_and_is_seen_as_an_orderly_end(
        self, sealed: tuple[SealedPipe, SealedPipe]
    ) -> None:
        client, server = sealed
        say_hello(client, server)
        close = Close(CloseReason.SHUTDOWN, "going home")
        client.send_record(CLOSE + close.encode())
        with pytest.raises(LocalError):
            client.send_record(FRAMES)
        kind, content = server.recv_record()
        assert (kind, Close.decode(content)) == (RecordKind.CLOSE, close)
        client.close("done")
        with pytest.raises(PipeEnded):
            server.recv_record()

    def test_an_end_without_close_is_a_cut(self, sealed: tuple[SealedPipe, SealedPipe]) -> None:
        client, server = sealed
        say_hello(client, server)
        client.send_record(FRAMES + b"the last that came")
        client.close("cut")
        assert receive(server)[1] == b"the last that came"
        with pytest.raises(PipeEnded):
            server.recv_record()

    def test_one_on_the_path_cannot_end_it_in_an_orderly_way(self, sealed: tuple[SealedPipe, SealedPipe]) -> None:
        client, server = sealed
        say_hello(client, server)
        send(client.pipe, CLOSE + Close(CloseReason.SHUTDOWN).encode() + bytes(16))
        with pytest.raises(ProtocolError, match="changed on the way"):
            server.recv_record()
        assert server.cause is not None

    def test_a_record_after_close_ends_the_pipe_as_a_fault_of_the_peer(
        self, sealed: tuple[SealedPipe, SealedPipe]
    ) -> None:
        client, server = sealed
        say_hello(client, server)
        client.send_record(CLOSE + Close(CloseReason.LEAVING).encode())
        server.recv_record()
        send(client.pipe, bytes(40))
        with pytest.raises(ProtocolError, match="after CLOSE"):
            server.recv_record()
        assert server.cause is not None

    def test_closing_from_another_thread_wakes_a_blocked_receiver(self, sealed: tuple[SealedPipe, SealedPipe]) -> None:
        _, server = sealed
        receiving = Background(server.recv_record)
        server.close("enough")
        receiving.join()
        assert isinstance(receiving.error, PipeEnded)
        assert server.cause == "enough"


class TestTheFirstRecords:
    """The room above says HELLO and READY; that nothing else can come in their place is known here."""

    @pytest.mark.parametrize("first", [FRAMES, READY, KEY_UPDATE])
    def test_a_client_cannot_begin_with_anything_but_hello(
        self, sealed: tuple[SealedPipe, SealedPipe], first: bytes
    ) -> None:
        client, server = sealed
        with pytest.raises(LocalError):
            client.send_record(first)
        peer = Sealer(client.result.c2s, FakeClock(), opening=RecordKind.READY)
        send(client.pipe, seal(peer, READY))  # a peer of another mind
        with pytest.raises(ProtocolError):
            server.recv_record()

    def test_hello_comes_once(self, sealed: tuple[SealedPipe, SealedPipe]) -> None:
        client, server = sealed
        say_hello(client, server)
        for end, word in ((client, HELLO), (server, READY)):
            with pytest.raises(LocalError):
                end.send_record(word)

    def test_the_last_handshake_message_said_twice_is_no_record(
        self, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        client_pipe, server_pipe = socket_pipes()

        def serve_twice() -> None:
            machine = make_server(identity)
            send(server_pipe, machine.start())
            machine.receive(server_pipe.recv())
            (m4,) = machine.receive(server_pipe.recv())
            send(server_pipe, m4)
            send(server_pipe, m4)

        serving = Background(serve_twice)
        client = client_handshake(client_pipe, make_client(client_key), Deadline(LIMIT))
        with pytest.raises(ProtocolError):
            client.recv_record()
        serving.join()
        server_pipe.close("the test is over")


def test_rekeying_happens_by_itself_and_shows_to_nobody(identity: ServerIdentity, client_key: ClientKey) -> None:
    client_pipe, server_pipe = socket_pipes()
    result = shake(client_pipe, server_pipe, identity, client_key)[0].result
    clock = FakeClock()
    sealer = Sealer(result.c2s, clock, opening=RecordKind.HELLO, max_records=3)
    client = SealedPipe(client_pipe, result, sealer, Opener(result.s2c, opening=RecordKind.READY))
    server = SealedPipe(
        server_pipe,
        result,
        Sealer(result.s2c, clock, opening=RecordKind.READY),
        Opener(result.c2s, opening=RecordKind.HELLO, max_records=3),
    )
    say_hello(client, server)
    secrets = set()
    for number in range(20):
        client.send_record(FRAMES + bytes([number]))
        assert receive(server) == (RecordKind.FRAMES, bytes([number]))
        secrets.add(sealer._secret)
    client.send_record(CLOSE + Close(CloseReason.LEAVING).encode())
    assert server.recv_record()[0] is RecordKind.CLOSE
    assert len(secrets) >= 10
    for pipe in (client_pipe, server_pipe):
        pipe.close("the test is over")


class TestTheDeadline:
    """Whatever the peer does or does not do, the handshake is over when its time is up."""

    def run_against(self, peer: Callable[[SocketPipe], None], work: Callable[[Pipe], object]) -> float:
        """Seconds that `work` took to give up on what `peer` did."""
        ours, theirs = socket_pipes()
        acting = Background(lambda: peer(theirs))
        before = time.monotonic()
        try:
            with pytest.raises(TransportError, match="in time") as caught:
                work(ours)
        finally:
            theirs.close("the test is over")
        assert caught.value.hint
        took = time.monotonic() - before
        assert ours.cause is not None
        acting.join()
        return took

    @pytest.fixture
    def working(
        self, request: pytest.FixtureRequest, identity: ServerIdentity, client_key: ClientKey
    ) -> Callable[[Pipe], object]:
        if request.param == "client":
            return lambda pipe: client_handshake(pipe, make_client(client_key), Deadline(SHORT))
        return lambda pipe: server_handshake(pipe, make_server(identity), Deadline(SHORT))

    @pytest.mark.parametrize("working", ["client", "server"], indirect=True)
    def test_a_silent_peer_is_left(self, working: Callable[[Pipe], object]) -> None:
        assert SHORT <= self.run_against(lambda peer: None, working) < LIMIT

    @pytest.mark.parametrize("working", ["client", "server"], indirect=True)
    def test_a_peer_that_trickles_bytes_is_left_though_it_is_never_silent(
        self, working: Callable[[Pipe], object]
    ) -> None:
        def trickle(peer: SocketPipe) -> None:
            pause = threading.Event()
            try:
                peer.sock.sendall((1000).to_bytes(4, "big"))
                while not pause.wait(0.02):
                    peer.sock.sendall(b"\x01")
            except OSError:
                return

        assert SHORT <= self.run_against(trickle, working) < LIMIT

    def test_a_peer_that_stops_after_its_first_message_is_left(
        self, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        def only_m1(peer: SocketPipe) -> None:
            send(peer, make_server(identity).start())

        self.run_against(only_m1, lambda pipe: client_handshake(pipe, make_client(client_key), Deadline(SHORT)))

        def only_m2(peer: SocketPipe) -> None:
            send(peer, make_client(client_key).receive(bytes(peer.recv()))[0])

        self.run_against(only_m2, lambda pipe: server_handshake(pipe, make_server(identity), Deadline(SHORT)))

    def test_a_peer_that_does_not_read_is_left_too(self) -> None:
        """The same guard serves HELLO and READY, and sending as well as receiving."""
        ours, theirs = socket_pipes()
        ours.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def send_for_ever() -> None:
            with closed_at(Deadline(SHORT), ours):
                while True:
                    send(ours, bytes(65536))

        sending = Background(send_for_ever)
        sending.join()
        theirs.close("the test is over")
        assert isinstance(sending.error, TransportError)
        assert "in time" in sending.error.message

    def test_a_guarded_block_that_ends_in_time_leaves_the_pipe_alone(self) -> None:
        ours, theirs = socket_pipes()
        with closed_at(Deadline(SHORT), ours):
            send(theirs, b"hello")
            assert bytes(ours.recv()) == b"hello"
        assert ours.cause is None
        for pipe in (ours, theirs):
            pipe.close("the test is over")

    def test_a_deadline_that_has_passed_already_is_kept_too(self, client_key: ClientKey) -> None:
        ours, theirs = socket_pipes()
        with pytest.raises(TransportError):
            client_handshake(ours, make_client(client_key), Deadline(0))
        theirs.close("the test is over")


class TestFailures:
    """After any failure the pipe is closed and the error says whose fault it was."""

    @pytest.mark.parametrize(
        "first",
        [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(1025), bytes(262_208)],
        ids=["empty", "text", "too long", "largest"],
    )
    def test_a_peer_that_speaks_something_else_gets_no_answer(
        self, first: bytes, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        for role in ("client", "server"):
            ours, theirs = socket_pipes()

            def work(role: str = role, ours: SocketPipe = ours) -> SealedPipe:
                if role == "client":
                    return client_handshake(ours, make_client(client_key), Deadline(LIMIT))
                return server_handshake(ours, make_server(identity), Deadline(LIMIT))

            working = Background(work)
            send(theirs, first)
            working.join()
            assert isinstance(working.error, HandshakeError)
            assert ours.cause == "the handshake failed"
            if role == "server":
                theirs.recv()  # M1, which anyone gets
            with pytest.raises(PipeEnded):
                theirs.recv()
            theirs.close("the test is over")

    def test_a_peer_that_goes_away_is_the_path_s_fault(self, identity: ServerIdentity, client_key: ClientKey) -> None:
        ours, theirs = socket_pipes()
        theirs.close("gone")
        with pytest.raises(TransportError):
            client_handshake(ours, make_client(client_key), Deadline(LIMIT))

        ours, theirs = socket_pipes()
        theirs.close("gone")
        with pytest.raises(TransportError):
            server_handshake(ours, make_server(identity), Deadline(LIMIT))

    def test_a_wrong_token_is_refused_at_both_ends_and_final_at_the_client(
        self, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        ours, theirs = socket_pipes()
        serving = Background(lambda: server_handshake(theirs, make_server(identity), Deadline(LIMIT)))
        with pytest.raises(RefusedError) as caught:
            client_handshake(ours, make_client(client_key, token=OTHER_TOKEN), Deadline(LIMIT))
        serving.join()
        assert caught.value.final
        assert isinstance(serving.error, RefusedError)
        assert "wrong token" in serving.error.message
        assert "wrong token" not in str(caught.value)

    def test_a_refusal_waits_no_longer_than_the_whole_handshake_may(
        self, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        ours, theirs = socket_pipes()
        serving = Background(lambda: server_handshake(theirs, make_server(identity, tokens=()), Deadline(0.05)))
        with pytest.raises(QanatError):
            client_handshake(ours, make_client(client_key), Deadline(LIMIT))
        serving.join()
        assert isinstance(serving.error, TransportError | RefusedError)

    def test_a_fault_of_our_own_closes_the_pipe_as_well(self, identity: ServerIdentity, client_key: ClientKey) -> None:
        ours, theirs = socket_pipes()
        send(theirs, make_server(identity).start())

        def broken(spki: bytes) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            client_handshake(ours, make_client(client_key, check=broken), Deadline(LIMIT))
        assert ours.cause == "the handshake failed"
        theirs.close("the test is over")

    def test_no_thread_of_the_handshake_outlives_it(self, identity: ServerIdentity, client_key: ClientKey) -> None:
        pipes = socket_pipes()
        shake(*pipes, identity, client_key)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("handshake")]
        for pipe in pipes:
            pipe.close("the test is over")
