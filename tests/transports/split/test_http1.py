"""Promises of the reader of HTTP/1.1 bodies: the same bytes, however they are delimited, wherever they are cut."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import ProtocolError, TransportError
from qanat.transports.pipe import Wire
from qanat.transports.split.http1 import BodyReader, ByteSource, NothingCame, read_answer_head
from qanat.transports.wire.tcp import TcpWire

T = TypeVar("T")
HEAD = b"HTTP/1.1 200 OK\r\nX: y\r\n"


class Pieces(Wire):
    """A wire that brings these pieces, and between them nothing for who does not wait."""

    peer = "pieces"

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.asked = 0

    def recv_into(self, buffer: memoryview) -> int:
        if not self.pieces:
            return 0
        piece = self.pieces.pop(0)
        if len(piece) > len(buffer):
            self.pieces.insert(0, piece[len(buffer) :])
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        return count

    def recv_within(self, buffer: memoryview, seconds: float) -> int | None:
        self.asked += 1
        return None if self.asked % 2 and self.pieces else self.recv_into(buffer)

    def send_all(self, data: bytes | bytearray | memoryview) -> None: ...

    def set_read_timeout(self, seconds: float | None) -> None: ...

    def set_write_timeout(self, seconds: float | None) -> None: ...

    def set_wakeup(self, wakeup: Callable[[], None]) -> None: ...

    def flush(self) -> None: ...

    def close(self, final: bytes = b"") -> None: ...


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges) if begin < end]


def chunks(body: bytes, places: list[int]) -> bytes:
    parts = b"".join(b"%X;x=y\r\n%b\r\n" % (len(part), part) for part in cut(body, places))
    return parts + b"0\r\nTrailer: x\r\n\r\n"


def again(step: Callable[[], T]) -> T:
    """Do it until something has come."""
    while True:
        with contextlib.suppress(NothingCame):
            return step()


def read(source: ByteSource, *, waits: bool) -> bytes:
    """Return the body of the next answer."""
    source.within = None if waits else 0

    _, headers, _ = again(lambda: read_answer_head(source))
    body, found = BodyReader(source, headers, of_answer=True), b""
    while (piece := again(body.next)) is not None:
        assert piece
        found += piece
    return found


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.booleans()), min_size=1, max_size=3),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.booleans(),
)
def test_bodies_that_follow_each_other_are_told_apart_wherever_the_path_cuts(
    bodies: list[tuple[bytes, bool]], places: list[int], waits: bool
) -> None:
    sent = b""
    for body, chunked in bodies:
        if chunked:
            sent += HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(body, places)
        else:
            sent += HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    source = ByteSource(Pieces(cut(sent, places)))
    assert [read(source, waits=waits) for _ in bodies] == [body for body, _ in bodies]
    assert not source.rest


@pytest.mark.parametrize("waits", [True, False])
def test_a_body_without_a_length_goes_on_to_the_end_of_the_connection(waits: bool) -> None:
    body = bytes(range(256)) * 1000
    assert read(ByteSource(Pieces([HEAD + b"\r\n", body[:100], body[100:]])), waits=waits) == body


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        b"Content-Length: 10\r\n\r\n123456789",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n123",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\n123\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\n123\r\n0\r\n",
    ],
)
def test_a_body_that_is_cut_has_not_come(answer: bytes, waits: bool) -> None:
    with pytest.raises(TransportError):
        read(ByteSource(Pieces([HEAD + answer])), waits=waits)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        b"Content-Length: -1\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\n1234\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 300,
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 100,
    ],
)
def test_what_is_no_body_is_an_error_and_not_waited_for(answer: bytes, waits: bool) -> None:
    with pytest.raises(ProtocolError):
        read(ByteSource(Pieces([HEAD + answer, b"more"])), waits=waits)


def test_a_small_piece_does_not_keep_the_room_for_a_large_one() -> None:
    source = ByteSource(Pieces([b"x", b"y" * 100]))
    piece = source.some(1 << 20)
    assert piece == b"x"
    assert isinstance(piece.obj, bytearray)
    assert len(piece.obj) == 1


def test_a_source_that_has_waited_long_enough_says_so() -> None:
    class Silent(Pieces):
        def recv_within(self, buffer: memoryview, seconds: float) -> int | None:
            self.asked += 1
            return None

    wire = Silent([])
    source = ByteSource(wire)
    source.within, source.patience = 0.1, 0.25
    with pytest.raises(TransportError, match="nothing received"):
        source.take(5)
    assert wire.asked == 3


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux says when it acknowledges")
def test_a_sender_that_holds_its_last_bytes_back_is_not_waited_for() -> None:
    """One without TCP_NODELAY, as a proxy may be, sends the end of a body once what came before is acknowledged."""
    with ExitStack() as stack:
        sender, receiver = tcp_pair(stack)
        source = ByteSource(TcpWire(receiver))
        for _ in range(5):  # both carry questions and answers: acknowledgments wait for these
            sender.sendall(b"q")
            source.take(1)
            receiver.sendall(b"a")
            sender.recv(1)
        began = time.monotonic()
        for _ in range(20):
            sender.sendall(b"x" * 10)
            sender.sendall(b"y" * 10)
            assert source.take(20) == b"x" * 10 + b"y" * 10
            receiver.sendall(b"a")
            sender.recv(1)
        assert time.monotonic() - began < 20 * 0.04 / 2


def tcp_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection; the first joins what is small (RFC 896)."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    sender = stack.enter_context(socket.create_connection(listener.getsockname()))
    return sender, stack.enter_context(listener.accept()[0])
