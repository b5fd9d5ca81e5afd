"""Sending inline against sending by a thread of its own: the peer gets the same bytes, whatever happens in between."""

from __future__ import annotations

import os
import struct
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.base.errors import PipeEnded, ProtocolError, TransportError
from qanat.base.watcher import Watcher
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.frames import PREFACE, FrameType
from qanat.transports.http2.limits import STREAM_UPDATES, WINDOW
from qanat.transports.http2.pipe import Http2Pipe
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.pipe import Pipe, Wire
from tests.support.background import Background, wait_until
from tests.support.transports.http2_loopback import (
    DIALECTS,
    RawHttp2,
    TestServer,
    frame,
    framed,
    http2_pair,
    raw_client,
)
from tests.support.transports.loopback import send_bytes

STREAMS = (1, 3)
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/tunnel"), (":authority", "localhost")]


class StagedWire(Wire):
    """A wire whose kernel takes as much without blocking as the test says, and that breaks when the test says."""

    peer = "stage:1"

    def __init__(self) -> None:
        self.taken = bytearray()  # by the kernel, in order
        self.room = 0  # bytes that it takes at once
        self.breaks_after: int | None = None  # bytes
        self.incoming: deque[bytes] = deque()
        self.when_starved: Callable[[], bytes] = bytes
        """What the peer sends to an engine that waits for something."""
        self._left = b""

    @property
    def can_send_now(self) -> bool:
        return not self._left

    def send_now(self, data: bytes | bytearray | memoryview) -> bool:
        assert self.can_send_now
        data = bytes(data)
        self._take(data[: self.room])
        self._left = data[self.room :]
        self.room = max(0, self.room - len(data))
        return not self._left

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        left, self._left = self._left, b""
        self._take(left + bytes(data))

    def flush(self) -> None:
        self.send_all(b"")

    def _take(self, data: bytes) -> None:
        room = len(data) if self.breaks_after is None else max(0, self.breaks_after - len(self.taken))
        self.taken += data[:room]
        if len(data) > room:
            raise TransportError("the path broke")

    def recv_into(self, buffer: memoryview) -> int:
        data = self.incoming.popleft() if self.incoming else self.when_starved()
        buffer[: len(data)] = data
        return len(data)

    def set_read_timeout(self, seconds: float | None) -> None: ...

    def set_write_timeout(self, seconds: float | None) -> None: ...

    def set_wakeup(self, wakeup: Callable[[], None]) -> None: ...

    def close(self, final: bytes = b"") -> None: ...


@dataclass
class Peer:
    """What an HTTP/2 peer makes of what the kernel took; it holds us to its windows and to its largest frame."""

    initial: int = 65535
    granted: Counter[int] = field(default_factory=Counter)
    largest: int = 16384
    content: dict[int, bytes] = field(default_factory=dict)
    pongs: list[bytes] = field(default_factory=list)

    def read(self, taken: bytes, *, whole: bool) -> None:
        """Read all that was sent; with `whole` it must end where a frame does."""
        assert taken.startswith(PREFACE[: len(taken)])
        at = len(PREFACE)
        self.content = dict.fromkeys(STREAMS, b"")
        self.pongs = []
        while at + 9 <= len(taken):
            length = int.from_bytes(taken[at : at + 3], "big")
            kind, stream_id = taken[at + 3], int.from_bytes(taken[at + 5 : at + 9], "big")
            payload = bytes(taken[at + 9 : at + 9 + length])
            if kind == FrameType.DATA:
                assert length <= self.largest
                self.content[stream_id] += payload
            elif kind == FrameType.PING:
                self.pongs.append(payload)
            else:
                assert kind in (FrameType.HEADERS, FrameType.SETTINGS, FrameType.WINDOW_UPDATE), (
                    "a frame out of nothing"
                )
            at += 9 + length
        assert at == len(taken) or not whole, "the last frame is cut"
        for stream_id, content in self.content.items():
            assert len(content) <= self.initial + self.granted[stream_id], "more than the stream's window"
        assert sum(map(len, self.content.values())) <= 65535 + self.granted[0], "more than the connection's window"

    def window(self, stream_id: int, size: int) -> bytes:
        """WINDOW_UPDATE."""
        self.granted[stream_id] += size
        return frame(FrameType.WINDOW_UPDATE, 0, stream_id, size.to_bytes(4, "big"))


@dataclass(frozen=True)
class Send:
    stream: int  # its index
    size: int
    room: int  # what the kernel takes at once
    busy: bool  # another thread is sending


@dataclass(frozen=True)
class Window:
    stream: int  # its index; 2 is the connection
    size: int


@dataclass(frozen=True)
class Flush:
    stream: int


@dataclass(frozen=True)
class Ping:
    pass


@dataclass(frozen=True)
class LargerFrames:
    size: int


Step = Send | Window | Flush | Ping | LargerFrames

SIZES = st.one_of(st.integers(1, 300), st.integers(1, 40_000))
STEPS = st.one_of(
    st.builds(Send, st.integers(0, 1), SIZES, st.one_of(st.integers(0, 30), st.integers(0, 50_000)), st.booleans()),
    st.builds(Send, st.integers(0, 1), SIZES, st.just(10**6), st.just(False)),
    st.builds(Window, st.integers(0, 2), st.integers(1, 60_000)),
    st.builds(Flush, st.integers(0, 1)),
    st.builds(Ping),
    st.builds(LargerFrames, st.integers(16384, 300_000)),
)


class Run:
    """One engine, as a client with two streams, driven by one thread: whatever blocks, reads what the peer grants."""

    def __init__(self, initial: int) -> None:
        self.wire = StagedWire()
        self.peer = Peer(initial)
        self.engine = Http2Engine(self.wire, window=WINDOW)
        with self.engine.lock:
            self.streams = [self.engine.core.request(REQUEST, DIALECTS["http2"]) for _ in STREAMS]
        self.pipes = [Http2Pipe(self.engine, stream, self.engine.end, alone=False) for stream in self.streams]
        self.wire.when_starved = self._grant
        self.pings = 0
        self.inline = 0
        self.engine.flush()
        self._settings(4, initial)

    def _grant(self) -> bytes:
        return b"".join(self.peer.window(i, 50_000) for i in (0, *STREAMS))

    def _settings(self, key: int, value: int) -> None:
        self.wire.incoming.append(frame(FrameType.SETTINGS, 0, 0, struct.pack("!HI", key, value)))
        self.read()

    def read(self) -> None:
        with self.engine.lock:
            while self.wire.incoming:
                self.engine.read_locked(None)

    def do(self, step: Step, *, inline: bool) -> None:
        if isinstance(step, Send):
            self.send(self.pipes[step.stream], self.streams[step.stream], step, inline)
        elif isinstance(step, Flush):
            self.pipes[step.stream].flush()
        elif isinstance(step, Window):
            self.wire.incoming.append(self.peer.window((*STREAMS, 0)[step.stream], step.size))
            self.read()
        elif isinstance(step, LargerFrames):
            self.peer.largest = max(self.peer.largest, step.size)
            self._settings(5, step.size)
        else:
            self.pings += 1
            self.wire.incoming.append(frame(FrameType.PING, 0, 0, self.pings.to_bytes(8, "big")))
            self.read()

    def send(self, pipe: Pipe, stream: Http2Stream, step: Send, inline: bool) -> None:
        buffer = memoryview(bytearray(pipe.headroom) + message(step))
        if not inline or not pipe.can_send_now:
            pipe.send(buffer)
            return
        self.inline += 1
        self.wire.room = step.room
        before = stream.sent
        if step.busy:
            with self.engine._write_lock:
                taken = pipe.send_now(buffer)
            assert not taken
            assert stream.sent == before, "nothing can leave while another is sending"
        else:
            taken = pipe.send_now(buffer)
        assert pipe.can_send_now or not taken, "what is taken leaves nothing behind"
        buffer[:] = bytes(len(buffer))  # it is the caller's again


def message(step: Send) -> bytes:
    return bytes((step.size + i) & 0xFF for i in range(min(step.size, 64))).ljust(step.size, b"m")


def expected(steps: list[Step], upto: int | None = None) -> dict[int, bytes]:
    sends = [step for step in steps[:upto] if isinstance(step, Send)]
    return {
        stream_id: b"".join(framed(DIALECTS["http2"], message(step)) for step in sends if step.stream == index)
        for index, stream_id in enumerate(STREAMS)
    }


@given(st.lists(STEPS, max_size=25), st.integers(0, 100_000))
@settings(deadline=None, max_examples=150)
def test_what_is_sent_inline_arrives_as_if_it_had_been_queued(steps: list[Step], initial: int) -> None:
    contents = []
    for inline in (True, False):
        run = Run(initial)
        for step in steps:
            run.do(step, inline=inline)
            run.peer.read(run.wire.taken, whole=False)
        for pipe in run.pipes:
            pipe.flush()
        run.peer.read(run.wire.taken, whole=True)
        assert run.peer.pongs == [number.to_bytes(8, "big") for number in range(1, run.pings + 1)]
        contents.append(run.peer.content)
    assert contents[0] == contents[1] == expected(steps)


@given(st.lists(STEPS, min_size=1, max_size=20), st.integers(0, 100_000), st.integers(0, 60_000))
@settings(deadline=None, max_examples=150)
def test_a_cut_leaves_the_beginning_of_what_was_sent_and_ends_the_sender(
    steps: list[Step], initial: int, breaks_after: int
) -> None:
    for inline in (True, False):
        run = Run(initial)
        run.wire.breaks_after = len(run.wire.taken) + breaks_after
        done = 0
        try:
            for step in steps:
                done += 1
                run.do(step, inline=inline)
            for pipe in run.pipes:
                pipe.flush()
            assert len(run.wire.taken) <= run.wire.breaks_after
        except PipeEnded:
            assert len(run.wire.taken) == run.wire.breaks_after
            for pipe in run.pipes:  # no later message follows one that was cut
                with pytest.raises(PipeEnded):
                    send_bytes(pipe, b"more")
            assert len(run.wire.taken) == run.wire.breaks_after
        run.peer.read(run.wire.taken, whole=False)
        for stream_id, content in expected(steps, done).items():
            assert content.startswith(run.peer.content[stream_id])


def test_the_queue_is_not_needed_for_what_windows_and_kernel_take() -> None:
    run = Run(65535)
    steps: list[Step] = [Send(i % 2, 100, 10**6, False) for i in range(50)]
    for step in steps:
        run.do(step, inline=True)
    run.peer.read(run.wire.taken, whole=True)
    assert run.inline == len(steps)
    assert run.peer.content == expected(steps)


@pytest.mark.parametrize("room", [10**6, 5, 0])
def test_the_reader_answers_and_a_writer_flushes_what_is_left(room: int) -> None:
    run = Run(65535)
    run.pipes[0].flush()
    announced: list[bool] = []
    run.engine.on_pending_control(lambda: announced.append(True))
    run.engine._watcher = Watcher()  # as `watch_by`, where the wire has a descriptor
    run.wire.room = room
    run.do(Ping(), inline=True)
    assert bool(announced) == (room < 17)
    run.peer.read(run.wire.taken, whole=room >= 17)
    assert len(run.peer.pongs) == (room >= 17)
    run.pipes[0].flush()
    run.peer.read(run.wire.taken, whole=True)
    assert run.peer.pongs == [(1).to_bytes(8, "big")]


def test_the_connection_s_window_is_opened_with_a_stream_s() -> None:
    run = Run(65535)
    run.pipes[0].flush()
    before = len(run.wire.taken)
    data = frame(FrameType.DATA, 0, STREAMS[0], framed(DIALECTS["http2"], bytes(16000)))
    while len(run.wire.taken) == before:
        run.wire.incoming.append(data)
        run.read()
        message = run.pipes[0].recv_within(0)
        assert message is not None
        assert len(message) == 16000
        run.pipes[0].flush()
    updates = bytes(run.wire.taken[before:])
    opened = dict(struct.iter_unpack("!5xII", updates))
    assert opened.keys() == {STREAMS[0], 0}, "one of each, in one go"
    least = WINDOW // STREAM_UPDATES
    assert all(least <= increment < least + 20_000 for increment in opened.values())


# --- the pipe of a connection's only stream reads it itself


@pytest.fixture
def server(stack: ExitStack) -> TestServer:
    return TestServer(stack)


class EchoingStream:
    """A tunnel stream of a raw client, whose pipe at the server echoes in a thread of its own."""

    def __init__(self, peer: RawHttp2, server: TestServer) -> None:
        self.peer = peer
        self.id = peer.request(content_type="application/octet-stream")
        self.pipe = server.pipe()
        peer.expect(ResponseReceived)
        self.reading = Background(self._echo_loop)

    def _echo_loop(self) -> None:
        while True:
            send_bytes(self.pipe, bytes(self.pipe.recv()))

    def say(self, message: bytes) -> None:
        """Send a message, and get it back."""
        content = framed(DIALECTS["http2"], message)
        self.peer.h2.send_data(self.id, content)
        self.peer.flush()
        came = b""
        while len(came) < len(content):
            event = self.peer.read_until(lambda event: isinstance(event, DataReceived) and event.stream_id == self.id)
            assert isinstance(event, DataReceived)
            came += event.data
        assert came == content


def wait_until_lone(server: TestServer, stream: EchoingStream) -> None:
    """Echo until the stream's pipe reads the connection: the server's own thread is done with its last read by then."""
    engine = server.connections[0]._engine
    stream.say(b"hello")
    wait_until(lambda: engine._lone is not None and engine._lone.id == stream.id and engine._reading, "it is lent")


def test_other_requests_are_served_while_a_lone_pipe_reads(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream = EchoingStream(peer, server)
    for _ in range(3):
        wait_until_lone(server, stream)
        peer.request("/healthz", "GET")
        peer.expect(ResponseReceived)
    stream.say(b"still here")


def test_pipes_that_share_a_connection_do_not_wait_for_each_other(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    first = EchoingStream(peer, server)
    wait_until_lone(server, first)
    others = [EchoingStream(peer, server) for _ in range(3)]
    for _ in range(3):
        for stream in (first, *others):
            stream.say(b"from %d" % stream.id)
    assert server.connections[0]._engine._lone is None
    for stream in (first, *others[:2]):
        peer.h2.reset_stream(stream.id)
        peer.flush()
        assert isinstance(stream.reading.error(), PipeEnded)
    wait_until_lone(server, others[2])


def test_an_end_by_the_peer_leaves_the_connection_to_others(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    for end in (peer.h2.end_stream, peer.h2.reset_stream):
        stream = EchoingStream(peer, server)
        wait_until_lone(server, stream)
        end(stream.id)
        peer.flush()
        assert isinstance(stream.reading.error(), PipeEnded)
    EchoingStream(peer, server).say(b"as ever")


def test_an_end_by_the_reading_thread_leaves_the_connection_to_others(stack: ExitStack, server: TestServer) -> None:
    peer = raw_client(stack, server)
    stream = EchoingStream(peer, server)
    wait_until_lone(server, stream)
    peer.h2.send_data(stream.id, b"\xff\xff\xff\xff too long by far")
    peer.flush()
    assert isinstance(stream.reading.error(), ProtocolError)
    EchoingStream(peer, server).say(b"as ever")


def test_an_end_by_another_thread_wakes_the_reader_and_ends_the_connection(
    stack: ExitStack, server: TestServer
) -> None:
    peer = raw_client(stack, server)
    stream = EchoingStream(peer, server)
    wait_until_lone(server, stream)
    stream.pipe.close("enough")
    error = stream.reading.error()
    assert isinstance(error, PipeEnded)
    assert error.message == "enough"
    peer.read_until(lambda event: isinstance(event, StreamEnded) and event.stream_id == stream.id)
    peer.expect(ConnectionTerminated)


def test_a_message_in_use_survives_what_is_read_meanwhile(stack: ExitStack) -> None:
    """A writer that waits for a window reads the connection while the reader is busy with a message."""
    client, server = http2_pair(stack, DIALECTS["http2"])
    message = os.urandom(100_000)
    send_bytes(server, message)
    in_use = client.recv()
    answering = Background(lambda: [send_bytes(server, bytes(100_000)) for _ in range(5)])
    filling = Background(lambda: [send_bytes(client, bytes(200_000)) for _ in range(200)])
    receiving = Background(lambda: [len(server.recv()) for _ in range(200)])
    for thread in (answering, filling, receiving):
        thread.result()
    assert in_use == message
    for _ in range(5):
        assert len(client.recv()) == 100_000
