"""Connections that rest: while all pipes are left to a watcher it reads them, and they have no thread."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

import pytest
from h2.events import ConnectionTerminated, DataReceived, PingAckReceived, ResponseReceived, StreamEnded
from hyperframe.frame import GoAwayFrame, PingFrame

from qanat.base.errors import QanatError
from qanat.base.watcher import Watcher
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.limits import MAX_PENDING_CONTROL
from qanat.transports.http2.server import Http2Server
from qanat.transports.pipe import Pipe
from tests.support.background import Background, wait_until
from tests.support.transports.http2_loopback import TestServer, client_pipe, framed, raw_client
from tests.support.transports.loopback import send_bytes

TUNNEL = {"content_type": "application/octet-stream"}


class Quiet:
    """A pipe that is left to the watcher, as a lane leaves it: what came, and how it ended."""

    def __init__(self, watcher: Watcher, pipe: Pipe) -> None:
        readiness = pipe.readiness(watcher)
        assert readiness is not None
        self.pipe = pipe
        self.readiness = readiness
        self.got: list[bytes] = []
        self.ended: list[str] = []
        self.threads: set[str] = set()
        pipe.set_unauthenticated(False)
        readiness.add(self._ready)

    def _ready(self) -> None:
        self.threads.add(threading.current_thread().name)
        try:
            while (message := self.pipe.recv_within(0)) is not None:
                self.got.append(bytes(message))
        except QanatError as error:
            self.ended.append(str(error))
            self.readiness.remove()


@pytest.fixture
def watcher(stack: ExitStack) -> Watcher:
    """It outlives what the test opens."""
    watcher = Watcher()
    stack.callback(watcher.close)
    watcher.start()
    return watcher


class Resting:
    """A server whose connection rests, and the raw client of its streams."""

    def __init__(self, stack: ExitStack, watcher: Watcher, streams: int = 1) -> None:
        self.server = TestServer(stack)
        self.peer = raw_client(stack, self.server)
        self.ids: list[int] = []
        self.pipes: list[Quiet] = []
        for _ in range(streams):
            self.ids.append(self.peer.request(**TUNNEL))
            self.pipes.append(Quiet(watcher, self.server.pipe()))
            stack.callback(self.pipes[-1].readiness.close)
        for _ in self.ids:
            self.peer.expect(ResponseReceived)
        self.wait()

    @property
    def connection(self) -> Http2Server:
        return self.server.connections[0]

    @property
    def rests(self) -> bool:
        return self.connection._engine.resting

    def wait(self) -> None:
        wait_until(lambda: self.rests, "the connection rests")
        wait_until(lambda: not reading(), "it has no thread")

    def send(self, stream_id: int, message: bytes) -> None:
        self.peer.h2.send_data(stream_id, framed(http2.DIALECT, message))
        self.peer.flush()


def reading() -> list[str]:
    """The threads of connections, by name."""
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name == "test connection" or name.startswith(("h2-writer", "front "))]


def test_what_comes_is_read_by_the_watcher_and_answered_without_a_thread(stack: ExitStack, watcher: Watcher) -> None:
    resting = Resting(stack, watcher, streams=3)
    for number, (stream_id, pipe) in enumerate(zip(resting.ids, resting.pipes, strict=True)):
        resting.send(stream_id, b"to %d" % number)
        wait_until(lambda pipe=pipe: bool(pipe.got), "it has come")
        assert pipe.got == [b"to %d" % number]
        assert pipe.threads == {"watcher"}
        send_bytes(pipe.pipe, b"back")
        data = resting.peer.read_until(
            lambda event, stream_id=stream_id: isinstance(event, DataReceived) and event.stream_id == stream_id
        )
        assert isinstance(data, DataReceived)
        assert data.data == framed(http2.DIALECT, b"back")
    resting.peer.h2.ping(b"12345678")
    resting.peer.flush()
    resting.peer.expect(PingAckReceived)
    assert resting.rests
    assert not reading()


def test_a_message_in_pieces_counts_as_a_sign_of_life_and_arrives_whole(stack: ExitStack, watcher: Watcher) -> None:
    resting = Resting(stack, watcher)
    (pipe,), (stream_id,) = resting.pipes, resting.ids
    data = framed(http2.DIALECT, b"in two pieces")
    for piece in (data[:6], data[6:]):
        before = len(pipe.threads)
        resting.peer.h2.send_data(stream_id, piece)
        resting.peer.flush()
        wait_until(lambda before=before: len(pipe.threads) > 0 or before > 0, "the pipe heard of it")
    wait_until(lambda: bool(pipe.got), "it is whole")
    assert pipe.got == [b"in two pieces"]


def test_a_request_that_comes_is_answered_and_then_it_rests_again(stack: ExitStack, watcher: Watcher) -> None:
    resting = Resting(stack, watcher)
    resting.peer.request("/healthz", "GET")
    answer = resting.peer.expect(ResponseReceived)
    assert isinstance(answer, ResponseReceived)
    assert dict(answer.headers)[":status"] == "200"
    resting.wait()
    another = resting.peer.request(**TUNNEL)
    resting.peer.expect(ResponseReceived)
    pipe = Quiet(watcher, resting.server.pipe())
    stack.callback(pipe.readiness.close)
    resting.wait()
    resting.send(another, b"hello")
    wait_until(lambda: pipe.got == [b"hello"], "the second stream works")


def test_a_flood_of_pings_is_left_to_a_thread_and_ends_the_connection(stack: ExitStack, watcher: Watcher) -> None:
    resting = Resting(stack, watcher)
    flood = PingFrame(0, opaque_data=bytes(8)).serialize() * 20_000
    sending = Background(lambda: resting.peer.sock.sendall(flood))
    wait_until(lambda: bool(resting.pipes[0].ended), "the pipe hears of the end")
    assert "too many control frames" in resting.pipes[0].ended[0] or "does not read" in resting.pipes[0].ended[0]
    sending.wait(1)
    assert len(resting.connection._engine.core.pending_control) <= 2 * MAX_PENDING_CONTROL


def test_bulk_brings_the_threads_back_and_every_byte_arrives(stack: ExitStack, watcher: Watcher) -> None:
    resting = Resting(stack, watcher)
    (pipe,), (stream_id,) = resting.pipes, resting.ids
    messages = [os.urandom(30_000) for _ in range(40)]
    for message in messages:
        data = framed(http2.DIALECT, message)
        while resting.peer.h2.local_flow_control_window(stream_id) < len(data):
            resting.peer.read()
        for at in range(0, len(data), 16_000):
            resting.peer.h2.send_data(stream_id, data[at : at + 16_000])
            resting.peer.flush()
    wait_until(lambda: len(pipe.got) == len(messages), "all has come")
    assert pipe.got == messages
    resting.wait()


@pytest.mark.parametrize("how", ["stream", "reset", "connection"])
def test_the_end_reaches_a_pipe_at_rest(stack: ExitStack, watcher: Watcher, how: str) -> None:
    resting = Resting(stack, watcher, streams=2)
    if how == "stream":
        resting.peer.h2.end_stream(resting.ids[0])
    elif how == "reset":
        resting.peer.h2.reset_stream(resting.ids[0])
    resting.peer.flush()
    if how == "connection":
        resting.peer.sock.close()
    wait_until(lambda: bool(resting.pipes[0].ended), "it ends")
    if how == "connection":
        wait_until(lambda: bool(resting.pipes[1].ended), "both end")
    else:
        resting.send(resting.ids[1], b"the other goes on")
        wait_until(lambda: resting.pipes[1].got == [b"the other goes on"], "it goes on")


def test_closing_a_pipe_at_rest_ends_its_stream_and_no_other(stack: ExitStack, watcher: Watcher) -> None:
    resting = Resting(stack, watcher, streams=2)
    resting.pipes[0].pipe.close("enough")
    resting.peer.expect(StreamEnded)
    resting.send(resting.ids[1], b"still here")
    wait_until(lambda: resting.pipes[1].got == [b"still here"], "the other goes on")


def test_what_breaks_http2_at_rest_is_said_in_goaway(stack: ExitStack, watcher: Watcher) -> None:
    resting = Resting(stack, watcher)
    resting.peer.sock.sendall(b"\x00\x00\x01\x06\x00\x00\x00\x00\x00x")  # a PING of one byte
    wait_until(lambda: bool(resting.pipes[0].ended), "the pipe hears of it")
    assert "broke HTTP/2" in resting.pipes[0].ended[0]
    resting.peer.expect(ConnectionTerminated)


def test_the_end_of_all_is_waited_for_by_nobody_at_rest(stack: ExitStack, watcher: Watcher) -> None:
    resting = Resting(stack, watcher)
    resting.connection.leave()
    assert resting.rests, "GOAWAY needs no thread"
    resting.send(resting.ids[0], b"what runs goes on")
    wait_until(lambda: resting.pipes[0].got == [b"what runs goes on"], "it does")
    resting.peer.expect(ConnectionTerminated)
    resting.server.release()
    wait_until(lambda: bool(resting.pipes[0].ended), "it ends with its handler")


# --- clients ----------------------------------------------------------------------------------------


def test_a_client_at_rest_is_read_by_the_watcher(stack: ExitStack, watcher: Watcher) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    quiet = Quiet(watcher, pipe)
    stack.callback(quiet.readiness.close)
    for number in range(3):
        peer.h2.send_data(stream_id, framed(http2.DIALECT, b"message %d" % number))
        peer.flush()
        wait_until(lambda number=number: len(quiet.got) == number + 1, "it has come")
    assert quiet.got == [b"message %d" % number for number in range(3)]
    assert quiet.threads == {"watcher"}


def test_a_client_at_rest_that_sends_waits_for_its_window_and_still_hears(stack: ExitStack, watcher: Watcher) -> None:
    """The thread that waits for a window reads meanwhile, and the watcher again after that."""
    pipe, peer, stream_id = client_pipe(stack)
    quiet = Quiet(watcher, pipe)
    stack.callback(quiet.readiness.close)
    message = os.urandom(150_000)
    sending = Background(lambda: send_bytes(pipe, message))
    content = b""
    while len(content) < 65_535:
        data = peer.expect(DataReceived)
        assert isinstance(data, DataReceived)
        content += data.data
    assert not sending.wait(0.1)
    peer.h2.send_data(stream_id, framed(http2.DIALECT, b"meanwhile"))
    peer.flush()
    wait_until(lambda: quiet.got == [b"meanwhile"], "it is heard")
    assert quiet.threads == {"watcher"}
    while len(content) < len(message) + 4:
        peer.h2.increment_flow_control_window(20_000)
        peer.h2.increment_flow_control_window(20_000, stream_id)
        peer.flush()
        data = peer.expect(DataReceived)
        assert isinstance(data, DataReceived)
        content += data.data
    sending.result()
    assert content == framed(http2.DIALECT, message)
    peer.h2.send_data(stream_id, framed(http2.DIALECT, b"after"))
    peer.flush()
    wait_until(lambda: quiet.got == [b"meanwhile", b"after"], "the watcher reads again")


def test_a_client_at_rest_hears_that_it_has_to_leave(stack: ExitStack, watcher: Watcher) -> None:
    pipe, peer, stream_id = client_pipe(stack)
    told = threading.Event()
    pipe.set_on_leaving(told.set)
    quiet = Quiet(watcher, pipe)
    stack.callback(quiet.readiness.close)
    peer.flush(GoAwayFrame(0, last_stream_id=stream_id).serialize())
    assert told.wait(20)
    peer.h2.send_data(stream_id, framed(http2.DIALECT, b"to the end"))
    peer.flush()
    wait_until(lambda: quiet.got == [b"to the end"], "the stream goes on")


def test_a_client_at_rest_hears_of_the_end(stack: ExitStack, watcher: Watcher) -> None:
    pipe, peer, _ = client_pipe(stack)
    quiet = Quiet(watcher, pipe)
    stack.callback(quiet.readiness.close)
    peer.sock.close()
    wait_until(lambda: bool(quiet.ended), "it ends")
    assert pipe.cause is not None


def test_a_client_at_rest_may_be_closed_by_anybody(stack: ExitStack, watcher: Watcher) -> None:
    pipe, peer, _ = client_pipe(stack)
    quiet = Quiet(watcher, pipe)
    stack.callback(quiet.readiness.close)
    pipe.close("enough")
    wait_until(lambda: quiet.ended == ["enough"], "it ends")
    peer.expect(StreamEnded)
