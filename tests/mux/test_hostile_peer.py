"""What a peer may not do, and what it cannot make us hold, whatever it does."""

from __future__ import annotations

import sys

import pytest

from qanat.base.errors import LocalError, ProtocolError
from qanat.mux import frames as wire
from qanat.mux.parameters import ControlReceived, LaneParameters, Opened
from qanat.mux.stream_state import StreamState
from qanat.mux.stream_table import CLOSED_GRACE
from tests.support.mux.cores import KIB, Peer


def data(stream: int, payload: bytes) -> bytes:
    return wire.data_header(stream, len(payload)) + payload


@pytest.fixture
def server() -> Peer:
    """A server's core with a pipe, to which the test is the client."""
    peer = Peer(LaneParameters(client=False, initial_window=1000, max_streams=4, outbox=64 * KIB))
    peer.core.attach(0.0)
    peer.all_frames()
    return peer


@pytest.fixture
def stream(server: Peer) -> StreamState:
    """StreamState 1, opened by the client."""
    server.feed(wire.Open(1, b"").encode())
    return server.opened[0]


def refused(server: Peer, *frames: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        server.feed(*frames)
    server.core.check_invariants()
    return caught.value.message


# --- stream numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_client_opens_odd_streams_only(server: Peer, number: int) -> None:
    refused(server, wire.Open(number, b"").encode())


def test_a_server_opens_even_streams_only() -> None:
    client = Peer(LaneParameters(client=True))
    client.core.attach(0.0)
    refused(client, wire.Open(3, b"").encode())
    client.feed(wire.Open(2, b"").encode())


def test_stream_numbers_rise(server: Peer) -> None:
    server.feed(wire.Open(5, b"").encode())
    refused(server, wire.Open(3, b"").encode())


def test_a_stream_number_is_not_used_again(server: Peer, stream: StreamState) -> None:
    server.feed(wire.Reset(1, 1, "").encode())
    refused(server, wire.Open(1, b"").encode())


@pytest.mark.parametrize("number", [0, 2, 3, 7, 2**32 - 1])
@pytest.mark.parametrize("kind", ["data", "fin", "reset", "accept", "credit"])
def test_frames_for_a_stream_that_never_was_are_refused(
    server: Peer, stream: StreamState, kind: str, number: int
) -> None:
    frame = {
        "data": data(number, b"x"),
        "fin": wire.Fin(number, 0).encode(),
        "reset": wire.Reset(number, 1, "").encode(),
        "accept": wire.Accept(number, "").encode(),
        "credit": wire.Credit(number, 5000).encode(),
    }[kind]
    refused(server, frame)


def test_frames_that_crossed_our_reset_are_ignored(server: Peer, stream: StreamState) -> None:
    server.core.reset(stream, wire.Reason.REFUSED, "")
    server.feed(data(1, b"x"), wire.Credit(1, 9999).encode(), wire.Fin(1, 1).encode(), wire.Reset(1, 1, "").encode())
    server.core.check_invariants()


# --- states -----------------------------------------------------------------------------------------


def test_data_after_fin_is_refused(server: Peer, stream: StreamState) -> None:
    refused(server, data(1, b"ab"), wire.Fin(1, 2).encode(), data(1, b"c"))


def test_a_second_fin_is_refused(server: Peer, stream: StreamState) -> None:
    refused(server, wire.Fin(1, 0).encode(), wire.Fin(1, 0).encode())


@pytest.mark.parametrize("offset", [0, 1, 3, 2**64 - 1])
def test_a_fin_must_name_the_bytes_that_came(server: Peer, stream: StreamState, offset: int) -> None:
    assert "2 came" in refused(server, data(1, b"ab"), wire.Fin(1, offset).encode())
    assert not stream.fin_received


def test_accept_from_the_side_that_opened_is_refused(server: Peer, stream: StreamState) -> None:
    refused(server, wire.Accept(1, "").encode())


def test_a_second_accept_is_refused(server: Peer) -> None:
    server.core.open_stream(b"", 0.0)
    server.feed(wire.Accept(2, "there").encode())
    refused(server, wire.Accept(2, "there").encode())


def test_our_own_faults_are_told_apart_and_lose_no_buffer(server: Peer, stream: StreamState) -> None:
    server.core.sender.finish(stream)
    buffer = server.core.sender.buffers.take()
    assert buffer is not None
    buffer.length = 5
    with pytest.raises(LocalError):
        server.core.sender.send(stream, buffer)
    with pytest.raises(LocalError):
        server.core.sender.send(stream, b"late")
    assert server.core.sender.buffers.lent == 0
    server.core.check_invariants()


@pytest.mark.parametrize("size", [0, 2000, 70 * KIB])
def test_we_never_send_nothing_too_much_or_beyond_credit(server: Peer, size: int) -> None:
    peer = Peer(LaneParameters(client=False, peer_initial_window=1000 if size == 2000 else 200 * KIB))
    peer.feed(wire.Open(1, b"").encode())
    with pytest.raises(LocalError):
        peer.core.sender.send(peer.opened[0], bytes(size))


def test_a_request_that_is_too_long_opens_nothing(server: Peer) -> None:
    with pytest.raises(LocalError):
        server.core.open_stream(bytes(1025), 0.0)
    server.core.check_invariants()
    assert not server.core.streams
    assert server.core.open_stream(b"", 0.0).id == 2


# --- credit and acknowledgment ---------------------------------------------------------------------


def test_credit_may_be_used_to_the_last_byte_and_not_beyond(server: Peer, stream: StreamState) -> None:
    server.feed(data(1, bytes(1000)))
    assert "beyond its credit" in refused(server, data(1, b"x"))


def test_a_lower_credit_than_before_is_ignored(server: Peer, stream: StreamState) -> None:
    server.feed(wire.Credit(1, 200_000).encode(), wire.Credit(1, 5).encode())
    assert server.core.sender.sendable(stream) == 200_000


def test_an_ack_beyond_what_was_sent_is_refused(server: Peer, stream: StreamState) -> None:
    server.core.accept(stream, "there")
    refused(server, wire.Ack(1).encode())
    server.all_frames()
    server.feed(wire.Ack(1).encode())
    refused(server, wire.Ack(2).encode())


def test_an_ack_below_an_earlier_one_is_ignored(server: Peer, stream: StreamState) -> None:
    server.core.accept(stream, "there")
    server.all_frames()
    server.feed(wire.Ack(1).encode(), wire.Ack(0).encode())
    server.core.check_invariants()


def test_a_resume_outside_what_is_kept_is_refused_and_changes_nothing(server: Peer, stream: StreamState) -> None:
    server.core.accept(stream, "there")
    server.all_frames()
    server.feed(wire.Ack(1).encode())
    server.core.detach()
    for expects in (0, 2):
        with pytest.raises(ProtocolError):
            server.core.attach(0.0, peer_expects=expects)
    with pytest.raises(ProtocolError, match="goes on at frame 2"):
        server.core.attach(0.0, peer_expects=1, receive_from=2)
    assert not server.core.sender.attached
    server.core.attach(0.0, peer_expects=1, receive_from=0)
    server.core.check_invariants()


def test_frames_before_a_fault_have_taken_effect_and_those_after_have_not(server: Peer) -> None:
    refused(server, wire.Open(1, b"").encode(), wire.Open(1, b"").encode(), wire.Open(3, b"").encode())
    assert [stream.id for stream in server.core.streams] == [1]


# --- what cannot be made to grow --------------------------------------------------------------------


def test_streams_above_the_limit_are_reset_and_say_so(server: Peer) -> None:
    server.feed(*(wire.Open(n, b"").encode() + data(n, b"early") for n in (1, 3, 5, 7, 9, 11)))
    assert [stream.id for stream in server.opened] == [1, 3, 5, 7]
    resets = [frame for frame in server.all_frames() if isinstance(frame, wire.Reset)]
    assert [(frame.stream, frame.reason) for frame in resets] == [(9, wire.Reason.LIMIT), (11, wire.Reason.LIMIT)]
    assert "4 streams" in resets[0].text
    server.feed(wire.Reset(1, 1, "").encode(), wire.Open(13, b"").encode())
    assert len(server.opened) == 5


def _charge_bound(server: Peer) -> int:
    return server.core.parameters.outbox + 1024 * KIB + 2 * KIB * server.core.parameters.max_streams + 2 * KIB


def test_an_open_flood_by_a_peer_that_never_reads_is_bounded(server: Peer) -> None:
    def flood() -> None:
        for number in range(1, 2**20, 2):
            server.feed(wire.Open(number, b"").encode())

    with pytest.raises(ProtocolError, match="without acknowledging"):
        flood()
    assert server.core.sender.retransmit_buffer.charged <= _charge_bound(server)
    assert len(server.core.streams) == 4


def test_a_flood_of_questions_by_a_peer_that_never_reads_is_bounded(server: Peer) -> None:
    def flood() -> None:
        for _ in range(2**20):
            for event in server.feed(wire.Control(b"may I?").encode()):
                assert isinstance(event, ControlReceived)
                server.core.send_control(b"no" * 100)

    with pytest.raises(ProtocolError, match="without acknowledging"):
        flood()
    assert server.core.sender.retransmit_buffer.charged <= _charge_bound(server)


def test_a_peer_that_reads_may_open_and_be_refused_for_ever(server: Peer) -> None:
    for number in range(1, 20_001, 2):
        server.feed(wire.Open(number, b"").encode())
        server.all_frames()
        server.feed(wire.Ack(server.core.sender.retransmit_buffer.next_number).encode())
    assert server.core.sender.retransmit_buffer.charged == 0


def test_an_innocent_open_is_taken_while_many_small_frames_wait_for_their_ack() -> None:
    peer = Peer(LaneParameters(client=False, max_streams=1, outbox=8 * 1024 * KIB))
    peer.core.attach(0.0)
    stream = peer.core.open_stream(b"", 0.0)
    for _ in range(40_000):
        peer.core.sender.send(stream, b"k")
        peer.send_all()
        peer.wire.clear()
    assert len(peer.core.sender.retransmit_buffer) > 40_000
    peer.feed(wire.Open(1, b"").encode())
    assert peer.opened


def test_rapid_reset_is_bounded_by_what_still_drains(server: Peer) -> None:
    number = 1
    for _ in range(CLOSED_GRACE + 100):
        server.feed(wire.Open(number, b"").encode(), wire.Reset(number, 1, "").encode())
        number += 2
    opened = len(server.opened)
    assert opened <= CLOSED_GRACE + server.core.parameters.max_streams
    for stream in server.opened:
        server.core.streams.release(stream)
    assert server.core.streams.draining == 0
    server.feed(wire.Open(number, b"").encode())
    assert len(server.opened) == opened + 1


@pytest.mark.parametrize(
    "flood",
    [
        wire.Ping(7).encode(),
        wire.Ack(0).encode(),
        wire.Credit(1, 9).encode(),
        wire.Pong(3).encode(),
        wire.Datagram(1, b"x" * 100).encode(),
        wire.Datagram(99, b"").encode(),
    ],
)
def test_a_flood_without_numbers_takes_no_memory(server: Peer, stream: StreamState, flood: bytes) -> None:
    for _ in range(50):
        server.feed(*[flood] * 200)
    core = server.core
    assert len(core.pending.streams_with_credit) <= 1
    assert not core.sender.idle or core.sender.retransmit_buffer.charged == 0
    assert len(server.all_frames()) <= 3
    core.check_invariants()


def test_of_many_pings_only_the_last_is_answered(server: Peer) -> None:
    server.core.wakeups.work = False
    server.feed(*(wire.Ping(value).encode() for value in range(100)))
    assert server.core.wakeups.work
    assert [f for f in server.all_frames() if isinstance(f, wire.Pong)] == [wire.Pong(99)]


def test_datagrams_are_dropped_and_never_counted(server: Peer, stream: StreamState) -> None:
    before = server.core.receiver.expected
    server.feed(wire.Datagram(1, b"lost").encode(), wire.Datagram(5, b"lost").encode())
    assert server.core.receiver.expected == before
    assert server.core.receiver.take(stream) is None


@pytest.mark.parametrize("size", [1, 9, 100])
def test_bytes_sent_singly_take_about_the_memory_that_their_credit_stands_for(size: int) -> None:
    peer = Peer(LaneParameters(client=False))
    peer.feed(wire.Open(1, b"").encode())
    credit = peer.core.parameters.initial_window
    for at in range(0, credit - size, size):
        peer.feed(data(1, bytes((at % 251,)) * size))
    inbox = peer.opened[0].inbox
    assert sum(map(sys.getsizeof, inbox)) <= 1.5 * credit
    content = peer.read(peer.opened[0])
    assert content == b"".join(bytes((at % 251,)) * size for at in range(0, credit - size, size))


def test_a_small_payload_does_not_keep_its_record(server: Peer, stream: StreamState) -> None:
    server.feed(data(1, b"x" * 10), *[wire.Ping(1).encode()] * 25_000)
    payload = server.core.receiver.take(stream)
    assert payload is not None
    assert sys.getsizeof(payload.obj) < 1000


def test_bytes_that_an_application_writes_singly_are_joined_while_they_wait() -> None:
    peer = Peer(LaneParameters(client=True))
    stream = peer.core.open_stream(b"", 0.0)
    for at in range(100_000):
        peer.core.sender.send(stream, bytes((at % 251,)))
    assert len(stream.queue) <= 10
    peer.core.attach(0.0)
    sent = b"".join(bytes(f.payload) for f in peer.all_frames() if isinstance(f, wire.Data))
    assert sent == bytes(at % 251 for at in range(100_000))
    peer.core.check_invariants()


def test_a_reset_with_a_text_that_is_not_utf_8_concerns_its_stream_alone(server: Peer, stream: StreamState) -> None:
    text = b"caf\xe9"
    server.feed(wire.Open(3, b"").encode())
    server.feed(b"\x04" + (1).to_bytes(4, "big") + (2).to_bytes(2, "big") + len(text).to_bytes(2, "big") + text)
    assert stream.failure == (wire.Reason.REFUSED, "caf\N{REPLACEMENT CHARACTER}")
    server.feed(data(3, b"goes on"))
    assert server.read(server.opened[1]) == b"goes on"


def test_nothing_is_received_after_the_end(server: Peer) -> None:
    server.core.end(wire.Reason.SESSION_ENDED, "over")
    assert server.feed(wire.Open(1, b"").encode()) == []
    assert not server.core.streams
    assert not any(isinstance(event, Opened) for event in server.events)
