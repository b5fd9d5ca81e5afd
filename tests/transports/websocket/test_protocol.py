"""What a WebSocket peer may do, and what it may not (RFC 6455)."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.base.errors import PipeEnded, ProtocolError
from qanat.transports.pipe import MAX_MESSAGE, MAX_UNAUTHENTICATED, Pipe
from qanat.transports.websocket.frames import MAX_FRAGMENTS, Opcode
from qanat.transports.websocket.pipe import MAX_UNUSUAL_UNAUTHENTICATED, UNUSUAL_AT_ONCE
from tests.support.background import DEADLINE, Background
from tests.support.transports.loopback import (
    PipeMaker,
    client_pipe,
    encode_frame,
    send_bytes,
    server_pipe,
)

BOTH_ENDS = pytest.mark.parametrize("make", [server_pipe, client_pipe], ids=["server", "client"])


def receive_for_ever(pipe: Pipe) -> None:
    while True:
        pipe.recv()


@BOTH_ENDS
def test_a_fragmented_message_arrives_whole(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.send_frame(Opcode.BINARY, b"one ", fin=False)
    peer.send_frame(Opcode.CONTINUATION, b"two ", fin=False)
    peer.send_frame(Opcode.CONTINUATION, b"", fin=False)
    peer.send_frame(Opcode.CONTINUATION, b"three")
    peer.send_frame(Opcode.BINARY, b"whole")
    message = pipe.recv()
    assert message == b"one two three"
    message[:3] = b"ONE"
    assert pipe.recv() == b"whole"


@BOTH_ENDS
def test_control_frames_may_come_between_fragments(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.send_frame(Opcode.BINARY, b"one ", fin=False)
    peer.send_frame(Opcode.PING, b"hello")
    peer.send_frame(Opcode.PONG, b"unasked")
    peer.send_frame(Opcode.CONTINUATION, b"two")
    assert pipe.recv() == b"one two"
    pipe.flush()
    assert peer.read_frame() == (0x8A, b"hello")


@BOTH_ENDS
def test_a_message_of_the_largest_size_may_come_in_fragments(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    message = os.urandom(MAX_MESSAGE)
    receiving = Background(lambda: bytes(pipe.recv()))
    peer.send_frame(Opcode.BINARY, message[:100_000], fin=False)
    peer.send_frame(Opcode.CONTINUATION, message[100_000:])
    assert receiving.result() == message


@BOTH_ENDS
def test_a_message_above_the_limit_is_refused_before_its_body_comes(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.sock.sendall(struct.pack("!BBQ", 0x82, 127 | (0x80 if peer.masks else 0), MAX_MESSAGE + 1))
    with pytest.raises(ProtocolError, match=f"more than {MAX_MESSAGE} bytes"):
        pipe.recv()
    assert peer.read_close() == 1009


@BOTH_ENDS
def test_fragments_above_the_limit_together_are_refused(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    receiving = Background(pipe.recv)
    peer.send_frame(Opcode.BINARY, bytes(MAX_MESSAGE), fin=False)
    peer.send_frame(Opcode.CONTINUATION, b"x")
    assert isinstance(receiving.error(), ProtocolError)
    assert peer.read_close() == 1009


@BOTH_ENDS
def test_a_message_in_endless_fragments_is_refused(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    receiving = Background(pipe.recv)
    mask = bytes(4) if peer.masks else None
    peer.sock.sendall(encode_frame(Opcode.BINARY, b"x", fin=False, mask=mask))
    peer.sock.sendall(encode_frame(Opcode.CONTINUATION, b"x", fin=False, mask=mask) * MAX_FRAGMENTS)
    assert isinstance(receiving.error(), ProtocolError)
    assert peer.read_close() == 1009


@BOTH_ENDS
@pytest.mark.parametrize(
    ("opcode", "payload", "fin", "code"),
    [
        (Opcode.TEXT, b"text", True, 1003),
        (Opcode.TEXT, b"te", False, 1003),
        (Opcode.CONTINUATION, b"of nothing", True, 1002),
        (0x5, b"unknown data opcode", True, 1002),
        (0xB, b"unknown control opcode", True, 1002),
        (0x20 | Opcode.BINARY, b"RSV2", True, 1002),
        (0x40 | Opcode.PING, b"RSV1 on a control frame", True, 1002),
        (Opcode.PING, b"fragmented", False, 1002),
        (Opcode.PING, bytes(126), True, 1002),
        (Opcode.CLOSE, b"\x03", True, 1002),
        (Opcode.CLOSE, struct.pack("!H", 1005), True, 1002),
        (Opcode.CLOSE, struct.pack("!H", 999), True, 1002),
    ],
)
def test_what_the_protocol_forbids_ends_the_pipe(
    make: PipeMaker, stack: ExitStack, opcode: int, payload: bytes, fin: bool, code: int
) -> None:
    pipe, peer = make(stack)
    peer.send_frame(opcode, payload, fin=fin)
    with pytest.raises(ProtocolError):
        pipe.recv()
    assert peer.read_close() == code
    with pytest.raises(PipeEnded):
        pipe.recv()


@BOTH_ENDS
def test_a_new_message_inside_a_fragmented_one_is_refused(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.send_frame(Opcode.BINARY, b"begun", fin=False)
    peer.send_frame(Opcode.BINARY, b"another")
    with pytest.raises(ProtocolError):
        pipe.recv()
    assert peer.read_close() == 1002


@BOTH_ENDS
def test_a_length_not_in_its_shortest_form_is_refused(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.sock.sendall(struct.pack("!BBH", 0x82, 126 | (0x80 if peer.masks else 0), 125))
    with pytest.raises(ProtocolError, match="shortest"):
        pipe.recv()


@BOTH_ENDS
def test_a_frame_masked_the_wrong_way_is_refused_by_its_second_byte(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.sock.sendall(bytes([0x82, 5 | (0 if peer.masks else 0x80)]))
    with pytest.raises(ProtocolError, match="masked"):
        pipe.recv()
    assert peer.read_close() == 1002


@BOTH_ENDS
def test_a_close_frame_ends_the_pipe_with_its_code_and_reason(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.send_frame(Opcode.CLOSE, struct.pack("!H", 1012) + "neu gestartet \x1b[31m é".encode())
    with pytest.raises(PipeEnded, match="1012 neu gestartet") as caught:
        pipe.recv()
    assert "\x1b" not in str(caught.value), "a stranger's text must not reach a terminal"
    assert peer.read_frame()[0] == 0x88, "answered (RFC 6455 §5.5.1)"
    with pytest.raises(PipeEnded, match="1012"):
        send_bytes(pipe, b"too late")


@BOTH_ENDS
def test_a_close_frame_without_a_status_is_a_close_too(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.send_frame(Opcode.CLOSE)
    with pytest.raises(PipeEnded, match="without giving a status"):
        pipe.recv()
    assert peer.read_frame()[0] == 0x88


@BOTH_ENDS
def test_an_end_without_close_frame_is_told_apart(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(PipeEnded, match=r"closed by the other end or the path$"):
        pipe.recv()


@BOTH_ENDS
def test_an_end_in_the_middle_of_a_message_says_so(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.sock.sendall(encode_frame(Opcode.BINARY, b"half of it", mask=bytes(4) if peer.masks else None)[:-4])
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(PipeEnded, match="in the middle of a message"):
        pipe.recv()


@BOTH_ENDS
def test_our_close_sends_a_close_frame_when_nothing_stands_in_its_way(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    pipe.close("secret reasons of our own")
    first, payload = peer.read_frame()
    assert (first, payload) == (0x88, struct.pack("!H", 1000))
    assert peer.sock.recv(1) == b""


@BOTH_ENDS
def test_bytes_that_come_one_at_a_time_are_put_together(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    messages = [os.urandom(n) for n in (1, 125, 126, 300)]
    stream = b"".join(encode_frame(Opcode.BINARY, m, mask=os.urandom(4) if peer.masks else None) for m in messages)

    def drip() -> None:
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in stream:
            peer.sock.sendall(bytes([byte]))

    dripping = Background(drip)
    assert [bytes(pipe.recv()) for _ in messages] == messages
    dripping.result()


@BOTH_ENDS
def test_frames_that_came_with_the_http_head_are_not_lost(make: PipeMaker, stack: ExitStack) -> None:
    masked = make is server_pipe
    extra = b"".join(encode_frame(Opcode.BINARY, text, mask=bytes(4) if masked else None) for text in (b"a", b"b"))
    pipe, peer = make(stack, extra=extra + extra[:3])
    assert [bytes(pipe.recv()) for _ in range(2)] == [b"a", b"b"]
    peer.sock.sendall(extra[3:])
    assert [bytes(pipe.recv()) for _ in range(2)] == [b"a", b"b"]


@BOTH_ENDS
@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 200 OK\r\n\r\n<html>", b"\x16\x03\x01\x02\x00\x01", bytes(64), b"\xff" * 64]
)
def test_garbage_after_the_upgrade_is_refused(make: PipeMaker, stack: ExitStack, garbage: bytes) -> None:
    pipe, peer = make(stack, extra=garbage)
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises((ProtocolError, PipeEnded)):
        pipe.recv()
    assert pipe.cause is not None


@BOTH_ENDS
def test_the_pong_goes_in_front_of_the_next_message(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.send_frame(Opcode.PING, b"first")
    peer.send_frame(Opcode.PING, b"second")
    peer.send_frame(Opcode.BINARY, b"x")
    pipe.recv()
    send_bytes(pipe, b"message")
    assert peer.read_frame() == (0x8A, b"second")
    assert peer.read_frame() == (0x82, b"message")


@BOTH_ENDS
def test_whoever_asks_to_be_woken_late_is_woken_for_what_is_owed_already(make: PipeMaker, stack: ExitStack) -> None:
    pipe, peer = make(stack)
    peer.send_frame(Opcode.PING, b"early")
    peer.send_frame(Opcode.BINARY, b"x")
    pipe.recv()
    calls: list[str] = []
    pipe.set_wakeup(lambda: calls.append("woken"))
    assert calls == ["woken"]
    peer.send_frame(Opcode.PING, b"later")
    peer.send_frame(Opcode.BINARY, b"x")
    pipe.recv()
    assert calls == ["woken", "woken"]


def test_each_frame_of_a_client_has_a_mask_of_its_own(stack: ExitStack) -> None:
    pipe, peer = client_pipe(stack)
    for _ in range(50):
        send_bytes(pipe, b"")
    masks = {peer._read(6)[2:] for _ in range(50)}
    assert len(masks) == 50


@pytest.mark.parametrize("make", [server_pipe, client_pipe], ids=["server", "client"])
@settings(max_examples=60)
@given(data=st.binary(max_size=400), first=st.sampled_from([b"", b"\x82\x85", b"\x02\x81", b"\x88\x82", b"\x89\x05"]))
def test_no_bytes_whatsoever_do_more_than_end_the_pipe(make: PipeMaker, data: bytes, first: bytes) -> None:
    with ExitStack() as stack:
        pipe, peer = make(stack)
        peer.sock.sendall(first + data)
        peer.sock.shutdown(socket.SHUT_WR)
        with pytest.raises((ProtocolError, PipeEnded)):
            receive_for_ever(pipe)
        assert pipe.cause is not None


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.BINARY], ids=["pings", "pongs", "fragments"])
def test_a_stranger_cannot_keep_a_guarded_pipe_busy(opcode: Opcode, stack: ExitStack) -> None:
    pipe, peer = server_pipe(stack)
    pipe.set_unauthenticated(True)
    fin = opcode != Opcode.BINARY
    peer.send_frame(opcode, b"x", fin=fin)
    for _ in range(MAX_UNUSUAL_UNAUTHENTICATED):
        peer.send_frame(opcode if fin else Opcode.CONTINUATION, b"x", fin=fin)
    with pytest.raises(ProtocolError, match="pings or fragments"):
        pipe.recv()


def test_a_guarded_pipe_waits_for_no_more_than_a_handshake_message(stack: ExitStack) -> None:
    pipe, peer = server_pipe(stack)
    pipe.set_unauthenticated(True)
    peer.send_frame(Opcode.BINARY, bytes(MAX_UNAUTHENTICATED))
    assert len(pipe.recv()) == MAX_UNAUTHENTICATED
    peer.sock.sendall(encode_frame(Opcode.BINARY, bytes(MAX_UNAUTHENTICATED + 1), mask=b"mask")[:8])  # the header alone
    with pytest.raises(ProtocolError, match="more than 1024 bytes"):
        pipe.recv()


def test_a_pipe_that_is_guarded_no_more_takes_all_that_a_pipe_must(stack: ExitStack) -> None:
    pipe, peer = server_pipe(stack)
    pipe.set_unauthenticated(True)
    pipe.set_unauthenticated(False)
    for _ in range(2 * MAX_UNUSUAL_UNAUTHENTICATED):
        peer.send_frame(Opcode.PONG, b"")
    sending = Background(lambda: peer.send_frame(Opcode.BINARY, bytes(MAX_MESSAGE)))
    assert len(pipe.recv()) == MAX_MESSAGE
    sending.result()


@BOTH_ENDS
def test_who_must_not_block_is_not_kept_by_pings_without_end(make: PipeMaker, stack: ExitStack) -> None:
    """One thread reads for many pipes."""
    pipe, peer = make(stack)
    fd = pipe.watch()
    assert fd is not None
    stack.callback(pipe.unwatch)
    mask = os.urandom(4) if peer.masks else None
    pings = b"".join(encode_frame(Opcode.PING, b"", mask=mask) for _ in range(UNUSUAL_AT_ONCE))
    peer.sock.sendall(pings + encode_frame(Opcode.BINARY, b"message", mask=mask))  # in one segment
    assert select.select([fd], [], [], DEADLINE)[0]
    assert pipe.recv_within(0) is None
    assert pipe.flooded
    assert pipe.recv_within(0) == b"message"
    assert not pipe.flooded
