"""The inline path and the pipeline are one: whatever is sent in which way, and wherever it is cut, all bytes come once.

Real WebSocket pipes over TCP with small buffers, so that a record is sometimes taken in part; a watcher reads while
little comes, threads while much does, and pipes are cut and replaced at any step.
"""

from __future__ import annotations

import errno
import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qanat.base.errors import NoThread
from qanat.base.watcher import Watcher
from qanat.base.workers import WORKERS
from qanat.handshake.exchange import SealedPipe
from qanat.mux.parameters import LaneParameters
from qanat.mux.pipe_runner import PipeRunner
from qanat.mux.stream import Idle, Stream
from qanat.transports.pipe import Pipe
from qanat.transports.websocket.frames import Opcode
from qanat.transports.websocket.machine import Outcome
from qanat.transports.websocket.pipe import WebSocketPipe
from qanat.transports.wire.tcp import TcpWire
from tests.support.background import DEADLINE, Background, wait_until
from tests.support.mux.resuming_rig import Lanes
from tests.support.mux.rig import pattern, read, read_all, waiting_in, write_all
from tests.support.transports.loopback import socket_pair

KIB = 1024


@dataclass(frozen=True)
class Step:
    """What one end does next, and whether the pipe is cut right behind it."""

    up: bool
    inline: bool
    size: int
    cut: bool


class NoLibrary:
    """What a library's machine says of the one frame that is no message here: the close."""

    def receive(self, frame: bytes) -> Outcome:
        assert frame[0] == 0x80 | Opcode.CLOSE
        return Outcome(closed="the other end closed the WebSocket")


class BusyPipe(WebSocketPipe):
    """A pipe that leaves all to threads."""

    @property
    def can_send_now(self) -> bool:
        return False

    def watch(self) -> None:
        return None


def steps() -> st.SearchStrategy[list[Step]]:
    small = st.builds(Step, st.booleans(), st.just(True), st.integers(1, 16 * KIB), st.booleans())
    bulk = st.builds(Step, st.booleans(), st.just(False), st.integers(1, 600 * KIB), st.booleans())
    return st.lists(st.one_of(small, small, small, bulk), min_size=1, max_size=12)


@contextmanager
def lanes_over_websocket(*, quiet: bool) -> Iterator[Lanes]:
    """Lanes that have the inline path and a watcher, or neither."""
    with ExitStack() as sockets, ExitStack() as stack:
        watcher = Watcher() if quiet else None
        if watcher is not None:
            stack.callback(watcher.close)

        def pipes() -> tuple[Pipe, Pipe]:
            client, server = socket_pair(sockets, small_buffers=True)
            kind = WebSocketPipe if quiet else BusyPipe
            return (
                kind(TcpWire(client), NoLibrary(), is_client=True),
                kind(TcpWire(server), NoLibrary(), is_client=False),
            )

        client, server = LaneParameters(client=True), LaneParameters(client=False)
        yield stack.enter_context(Lanes(client, server, pipes=pipes, watcher=watcher))


def send(stream: Stream, data: bytes, *, inline: bool) -> None:
    """Send as a quiet pump does, or as a busy one."""
    if not inline:
        write_all(stream, data)
        return
    while data:
        room = stream.wait_writable()
        if not stream.send_alone(data[:room]):
            stream.queue(data[:room])
            stream.lane.flush()
        data = data[room:]


class Collected:
    """A sink like a quiet pump's socket, which takes what comes, though not always all of it at once."""

    takes_bulk = False

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._data = bytearray()
        self._over = threading.Event()
        self._threads: list[Background[None]] = []
        self._stopped = False
        self._calls = 0
        stream.deliver_to(self)

    def deliver(self, payload: memoryview) -> int:
        self._calls += 1
        taken = len(payload) // 2 if self._calls % 5 == 0 else len(payload)
        self._data += payload[:taken]
        return taken

    def backlog(self) -> None:
        self._threads.append(Background(self._read))

    def _read(self) -> None:
        with suppress(Idle):
            while (payload := self._stream.receive_or_direct(0.01)) is not None:
                self._data += payload
                self._stream.consumed(len(payload))
            self._over.set()

    def ended(self) -> None:
        self._over.set()

    def stopped(self) -> None:
        self._stopped = True
        self._over.set()

    def result(self) -> bytes:
        assert self._over.wait(DEADLINE)
        for thread in self._threads:
            thread.result()
        assert not self._stopped, "nobody resets it"
        return bytes(self._data)


def run(script: list[Step], *, quiet: bool) -> tuple[bytes, bytes]:
    """Carry out `script`; return what came at the server and at the client."""
    with lanes_over_websocket(quiet=quiet) as lanes:
        ours, theirs = lanes.open()
        came = [
            Collected(each) if quiet else Background(lambda stream=each: read_all(stream)) for each in (theirs, ours)
        ]
        sent = {True: 0, False: 0}
        for step in script:
            data = pattern(sent[step.up] + step.size, int(step.up))[sent[step.up] :]
            sent[step.up] += step.size
            writing = Background(partial(send, ours if step.up else theirs, data, inline=step.inline))
            if step.cut:
                lanes.pipes[-1].cut()
                lanes.connect()
            writing.result()
        ours.finish()
        theirs.finish()
        up, down = came[0].result(), came[1].result()
        ours.release()
        theirs.release()
        assert up == pattern(sent[True], 1)
        assert down == pattern(sent[False], 0)
        return up, down


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps())
def test_all_comes_once_whatever_path_it_takes_and_wherever_it_is_cut(script: list[Step]) -> None:
    assert run(script, quiet=True) == run(script, quiet=False)


def test_who_joins_a_crowd_while_others_send_inline_is_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And something small comes at the same moment, so the inline sender sends once more and finds nothing left."""
    original, joined, pulled = SealedPipe.send_record_now, threading.Event(), threading.Event()
    with lanes_over_websocket(quiet=True) as lanes:
        bulk, _ = lanes.open()
        small, _ = lanes.open()
        runner = lanes.client.lane._runner
        assert runner is not None
        wait_until(lambda: not runner._writing, "the writer has given its thread back")

        def join_first(sealed: SealedPipe, record: memoryview) -> bool:
            if sealed is runner._sealed and not joined.is_set():
                joined.set()
                bulk.when_pulled(pulled.set)
                small.queue(b"x")
                small.lane.flush()
            return original(sealed, record)

        monkeypatch.setattr(SealedPipe, "send_record_now", join_first)
        small.queue(b"x")
        small.lane.flush()
        assert joined.is_set()
        assert runner._writing or pulled.is_set()
        assert pulled.wait(DEADLINE)


def test_a_writer_that_meets_an_inline_sender_gives_its_thread_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for work in just that moment; afterwards nothing happens that would wake it."""
    inside, go_on = threading.Event(), threading.Event()
    send_one_now = PipeRunner._send_one_now

    def slowly(runner: PipeRunner, record: memoryview) -> bool:
        if threading.current_thread().name == "slow" and not inside.is_set():
            inside.set()
            assert go_on.wait(DEADLINE)
        return send_one_now(runner, record)

    sent = []

    def send_slowly() -> None:
        threading.current_thread().name = "slow"
        while not inside.is_set():  # while the writer is at it, what is queued is left to it
            send(ours, b"inline", inline=True)
            sent.append(b"inline")
            time.sleep(0.01)

    with lanes_over_websocket(quiet=True) as lanes:
        ours, theirs = lanes.open()
        write_all(ours, pattern(100 * KIB))
        read(theirs, 100 * KIB)
        monkeypatch.setattr(PipeRunner, "_send_one_now", slowly)
        runner = lanes.client.lane._runner
        assert runner is not None
        sending = Background(send_slowly)
        assert inside.wait(DEADLINE)
        lanes.client.lane.pause_writer()  # for which it has a thread, perhaps a new one
        lanes.client.lane.resume_writer()
        wait_until(lambda: runner._waiting and waiting_in("_send_next", thread="client-writer")(), "the writer waits")
        go_on.set()
        sending.result()
        assert read(theirs, 6 * len(sent)) == b"".join(sent)
        wait_until(lambda: not runner._writing, "the writer's thread is given back")
        ours.release()
        theirs.release()


def test_without_a_thread_for_the_writer_the_watcher_tries_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PING is due, which cannot be sent inline."""
    with lanes_over_websocket(quiet=True) as lanes:
        ours, theirs = lanes.open()
        runner = lanes.client.lane._runner
        assert runner is not None
        wait_until(lambda: runner._reader._watched and not runner._writing, "the watcher alone is there")
        attempts = []

        def start(name: str, *rest: object, **more: object) -> None:
            attempts.append(name)
            raise NoThread

        with monkeypatch.context() as patch:
            patch.setattr(WORKERS, "start", start)
            patch.setattr(SealedPipe, "can_send_now", lambda sealed, size: False)
            number = lanes.client.lane.send_ping()
            time.sleep(0.5)
        assert 1 <= len(attempts) < 20, "it has tried again and again without a pause"
        assert lanes.client.lane.wait_pong(number, DEADLINE)
        ours.release()
        theirs.release()


def test_a_pipe_that_the_system_does_not_watch_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(watcher: Watcher, fd: int, ready: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Watcher, "add", add)
    with lanes_over_websocket(quiet=True) as lanes:
        ours, theirs = lanes.open()
        assert any("nothing can watch" in result.cause for result in lanes.pipes[-1].ends())
        ours.release()
        theirs.release()


def test_where_the_watcher_cannot_be_started_threads_carry_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(watcher: Watcher) -> None:
        raise NoThread

    monkeypatch.setattr(Watcher, "start", start)
    with lanes_over_websocket(quiet=True) as lanes:
        ours, theirs = lanes.open()
        send(ours, b"well", inline=True)
        assert read(theirs, 4) == b"well"
        ours.release()
        theirs.release()


def test_what_waits_to_be_read_is_no_silence() -> None:
    """The program was stopped for longer than the other end may be silent, and the timer's turn comes first."""
    inside, go_on = threading.Event(), threading.Event()
    one, other = socket.socketpair()
    with one, other, lanes_over_websocket(quiet=True) as lanes:
        ours, theirs = lanes.open()
        runner = lanes.client.lane._runner
        assert runner is not None
        wait_until(lambda: runner._reader._watched and not runner._writing, "the watcher alone is there")
        watcher, timer = runner._watcher, runner._timer
        assert watcher is not None
        assert timer is not None

        def stopped() -> None:
            watcher.remove(one.fileno())
            inside.set()
            assert go_on.wait(DEADLINE)

        watcher.add(one.fileno(), stopped)
        other.send(b"x")
        assert inside.wait(DEADLINE)
        send(theirs, b"waits", inline=True)
        runner._reader._heard_at -= 2 * DEADLINE
        timer.set(time.monotonic())
        go_on.set()
        assert read(ours, 5) == b"waits"
        assert lanes.client.lane.ping(DEADLINE)
        assert len(lanes.pipes) == 1
        ours.release()
        theirs.release()


def test_a_pipe_that_never_gets_the_lane_needs_no_collector() -> None:
    with lanes_over_websocket(quiet=True) as lanes:
        present = lanes.client.lane._runner
        assert present is not None
        gc.collect()
        gc.disable()
        try:
            refused = weakref.ref(PipeRunner(lanes.client.lane, present._sealed, present._watcher))
            assert refused() is None
        finally:
            gc.enable()
