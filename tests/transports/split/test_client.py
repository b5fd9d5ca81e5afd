"""Promises of the client's end of a split pipe that a watcher reads: no thread while little moves, all bytes once."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from qanat.base.errors import PipeEnded, QanatError
from qanat.base.watcher import Watcher
from qanat.base.workers import WORKERS, Task
from qanat.transports.pipe import Pipe
from qanat.transports.split import shared_stream, stream_form
from qanat.transports.wire import tcp
from tests.support.background import Background, wait_until
from tests.support.chaos import ChaosRelay
from tests.support.transports.split_loopback import split_pair

LARGE = 200 * 1024


class End:
    """One end of a pipe, read by the watcher."""

    def __init__(self, pipe: Pipe, watcher: Watcher) -> None:
        readiness = pipe.readiness(watcher)
        assert readiness is not None
        self.pipe = pipe
        self.readiness = readiness
        self.messages: list[bytes] = []
        self.ended: QanatError | None = None
        self.echoes = False

    def watch(self) -> None:
        self.readiness.add(self._ready)

    def _ready(self) -> None:
        try:
            while (message := self.pipe.recv_within(0)) is not None:
                self.messages.append(bytes(message))
                if self.echoes:
                    self.say(bytes(message))
        except QanatError as error:
            self.ended = error
            self.readiness.remove()

    def wait(self, count: int) -> None:
        wait_until(lambda: len(self.messages) >= count, f"{count} messages have come")

    def say(self, message: bytes) -> None:
        self.pipe.send_now(memoryview(bytearray(self.pipe.headroom) + message))


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


def ends(
    stack: ExitStack, watcher: Watcher, *, streams: bool, relay: list[ChaosRelay] | None = None
) -> tuple[End, End]:
    """Client's and server's, the latter watched; through a relay if there is a list to put it into."""

    def port_of(port: int) -> int:
        if relay is None:
            return port
        relay.append(stack.enter_context(ChaosRelay(port, calm=True)))
        return relay[0].port

    client, server = split_pair(stack, streams=streams, port_of=port_of)
    near, far = End(client, watcher), End(server, watcher)
    far.watch()
    return near, far


class Started:
    """The threads that were started for a client's pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        start = WORKERS.start

        def noted(name: str, target: Callable[[], object], *, reserved: bool = False) -> Task:
            if name.startswith("split-"):
                self.names.append(name.split()[0])
            return start(name, target, reserved=reserved)

        monkeypatch.setattr(WORKERS, "start", noted)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


@pytest.mark.parametrize("streams", [True, False])
def test_an_exchange_crosses_no_thread_and_an_idle_pipe_has_none(
    watcher: Watcher, started: Started, streams: bool
) -> None:
    with ExitStack() as stack:
        near, far = ends(stack, watcher, streams=streams)
        near.watch()
        far.echoes = True
        for number in range(10):  # connections are made meanwhile, and streamed answers tried
            near.say(b"%d" % number)
            near.wait(number + 1)
        named = f"split-.* {re.escape(near.pipe.peer)}"
        wait_until(lambda: not any(re.match(named, thread.name) for thread in threading.enumerate()), "none is left")
        started.names.clear()
        for number in range(10, 110):
            near.say(b"%d" % number)
            near.wait(number + 1)
        assert near.messages == [b"%d" % number for number in range(110)]
        assert len(started.names) < 20, "now and then a connection is made, since the last one's answer is late"


@pytest.mark.parametrize("streams", [True, False])
def test_bulk_that_a_connection_does_not_take_at_once_comes_in_order(
    watcher: Watcher, started: Started, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    set_no_delay = tcp.set_no_delay

    def with_little_room(sock: socket.socket) -> None:
        set_no_delay(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    monkeypatch.setattr(tcp, "set_no_delay", with_little_room)
    with ExitStack() as stack:
        near, far = ends(stack, watcher, streams=streams)
        near.watch()
        sent: list[bytes] = []
        while "split-flush" not in started.names:  # a thread may be quicker than its record, once in a while
            messages = [len(sent).to_bytes(4) * (LARGE // 4)] * 20

            def send(messages: list[bytes] = messages) -> None:
                for message in messages:
                    near.pipe.send(memoryview(bytearray(near.pipe.headroom) + message))

            sending = Background(send)
            sent += messages
            far.wait(len(sent))
            sending.result()
        assert far.messages == sent


@pytest.mark.parametrize("streams", [True, False])
def test_a_thread_reads_what_comes_in_bulk_and_the_watcher_what_follows(watcher: Watcher, streams: bool) -> None:
    with ExitStack() as stack:
        near, far = ends(stack, watcher, streams=streams)
        for _ in range(3):
            messages = [bytes([number]) * LARGE for number in range(60)]

            def send(messages: list[bytes] = messages) -> None:
                for message in messages:
                    far.pipe.send(memoryview(bytearray(far.pipe.headroom) + message))

            sending = Background(send)
            receiving = Background(lambda messages=messages: [bytes(near.pipe.recv()) for _ in messages])  # type: ignore[misc]
            assert receiving.result() == messages
            sending.result()
            near.messages.clear()
            near.watch()
            far.say(b"small")
            wait_until(lambda: near.messages == [b"small"], "what is small has come")
            near.readiness.remove()


@pytest.mark.parametrize("reads", ["watcher", "thread"])
def test_bulk_goes_on_when_one_streamed_answer_takes_the_place_of_another(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    monkeypatch.setattr(stream_form, "FIRST_LIFE", 0.05)
    started = Started(monkeypatch)
    with ExitStack() as stack:
        near, far = ends(stack, watcher, streams=True)
        if reads == "watcher":
            near.watch()
        messages = [number.to_bytes(4) * (LARGE // 4) for number in range(400)]

        def send() -> None:
            for message in messages:
                far.pipe.send(memoryview(bytearray(far.pipe.headroom) + message))

        sending = Background(send)
        if reads == "thread":
            near.messages = Background(lambda: [bytes(near.pipe.recv()) for _ in messages]).result()
        near.wait(len(messages))
        sending.result()
        assert near.messages == messages
        assert started.names.count("split-stream") > 1


@pytest.mark.parametrize("streams", [True, False])
def test_a_thread_that_waits_is_woken_at_once_when_the_pipe_is_closed_here(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    monkeypatch.setattr(shared_stream, "LOOK", 60.0)
    with ExitStack() as stack:
        near, far = ends(stack, watcher, streams=streams)
        far.pipe.send(memoryview(bytearray(far.pipe.headroom) + b"x"))
        assert near.pipe.recv() == b"x"
        waiting = Background(near.pipe.recv)
        assert not waiting.wait(0.3)
        began = time.monotonic()
        near.pipe.close("enough")
        assert isinstance(waiting.error(), PipeEnded)
        assert time.monotonic() - began < 10.0
        wait_until(lambda: far.ended is not None, "the other end has heard of it")


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("reads", ["watcher", "thread"])
def test_what_is_said_comes_once_and_in_order_though_all_connections_are_cut(
    watcher: Watcher, streams: bool, reads: str
) -> None:
    with ExitStack() as stack:
        relays: list[ChaosRelay] = []
        near, far = ends(stack, watcher, streams=streams, relay=relays)
        if reads == "watcher":
            near.watch()
        far.echoes = True
        sent = [b"%d" % number * (1 + number % 3 * 20_000) for number in range(40)]
        for number, message in enumerate(sent):
            near.say(message)
            if number % 5 == 4:
                relays[0].cut()
            if reads == "thread":
                near.messages.append(bytes(Background(near.pipe.recv).result()))
            elif number % 2:
                near.wait(number + 1)
        near.wait(len(sent))
        assert far.messages == sent
        assert near.messages == sent
        assert near.pipe.cause is None
