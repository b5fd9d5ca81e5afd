"""Two lanes on a real pipe with real sealing, for tests of what threads promise.

The secrets are fixed: the handshake that would make them has its own tests.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import RecordKind
from qanat.handshake.machine import HandshakeResult
from qanat.handshake.sealed import Opener, Sealer
from qanat.mux.frames import Reason
from qanat.mux.lane import Lane
from qanat.mux.parameters import FIRST_PIPE, LaneParameters, ResumePoint
from qanat.mux.pipe_result import PipeResult
from qanat.mux.stream import Stream
from qanat.transports.pipe import Pipe
from tests.support.transports.memory import memory_pair

DEADLINE = 20.0
"""Seconds after which a test gives up; never waited for when all is well."""

_RESULT = HandshakeResult("office", 1, b"c" * 32, b"s" * 32, b"r" * 32, b"p" * 32, b"t" * 32, b"")


def sealed_pair(client_pipe: Pipe, server_pipe: Pipe) -> tuple[SealedPipe, SealedPipe]:
    """The client's and the server's end after HELLO and READY."""

    def seal(pipe: Pipe, ours: bytes, theirs: bytes, first: RecordKind, expected: RecordKind) -> SealedPipe:
        sealer = Sealer(ours, lambda: 0.0, opening=first)
        return SealedPipe(pipe, _RESULT, sealer, Opener(theirs, opening=expected))

    client = seal(client_pipe, _RESULT.c2s, _RESULT.s2c, RecordKind.HELLO, RecordKind.READY)
    server = seal(server_pipe, _RESULT.s2c, _RESULT.c2s, RecordKind.READY, RecordKind.HELLO)
    client.send_record(bytes((RecordKind.HELLO,)))
    server.send_record(bytes((RecordKind.READY,)))
    assert client.recv_record()[0] is RecordKind.READY
    assert server.recv_record()[0] is RecordKind.HELLO
    return client, server


def run_lane(
    lane: Lane,
    sealed: SealedPipe,
    resume: ResumePoint = FIRST_PIPE,
    *,
    silence: float = DEADLINE,
    on_attached: Callable[[], None] = lambda: None,
) -> PipeResult:
    """Carry `lane` on this pipe, and block until that has ended; return how."""
    results: queue.SimpleQueue[PipeResult] = queue.SimpleQueue()
    lane.start(sealed, results.put, resume, silence=silence, on_attached=on_attached)
    return results.get()


class End:
    """One lane with the thread that runs it."""

    def __init__(self, name: str, parameters: LaneParameters, sealed: SealedPipe, silence: float = DEADLINE) -> None:
        self.opened: queue.Queue[Stream] = queue.Queue()
        self.controls: queue.Queue[bytes] = queue.Queue()
        self.on_control: Callable[[bytes], None] = self.controls.put
        self.lane = Lane(name, parameters, on_open=self.opened.put, on_control=lambda m: self.on_control(m))
        self.sealed = sealed
        self.ending: PipeResult | None = None
        self._silence = silence
        self.thread = threading.Thread(target=self._run, name=f"{name}-reader", daemon=True)

    def _run(self) -> None:
        self.ending = run_lane(self.lane, self.sealed, silence=self._silence)
        self.lane.end(Reason.SESSION_ENDED, "the connection is gone")

    def next_stream(self) -> Stream:
        """The next stream that the peer opened."""
        return self.opened.get(timeout=DEADLINE)

    def join(self) -> PipeResult:
        """How the pipe ended."""
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive(), "the lane still runs"
        assert self.ending is not None
        return self.ending


class Pair:
    """A client's lane and a server's, joined.  A context manager that ends both and checks what is left."""

    def __init__(
        self,
        client: LaneParameters | None = None,
        server: LaneParameters | None = None,
        *,
        pipes: tuple[Pipe, Pipe] | None = None,
        silence: float = DEADLINE,
    ) -> None:
        client_pipe, server_pipe = pipes or memory_pair()
        ends = sealed_pair(client_pipe, server_pipe)
        self.client = End("client", client or LaneParameters(client=True), ends[0], silence)
        self.server = End("server", server or LaneParameters(client=False), ends[1], silence)

    def __enter__(self) -> Self:
        self.client.thread.start()
        self.server.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for end in (self.client, self.server):
            end.sealed.close("the test is over")
        for end in (self.client, self.server):
            end.join()
            with end.lane.lock:
                end.lane.core.check_invariants()
        if kind is None:
            self.check_nothing_is_held()

    def check_nothing_is_held(self) -> None:
        """Every buffer is back, and once every stream has been released, every byte of the budget."""
        for end in (self.client, self.server):
            with end.lane.lock:
                lent, streams = end.lane.core.sender.buffers.lent, end.lane.core.streams
                assert lent == 0, f"{end.lane.name}: {lent} buffers are missing"
                assert streams.draining or streams.budget.used == 0, f"{end.lane.name}: the budget is not back"

    def open(self, request: bytes = b"") -> tuple[Stream, Stream]:
        """A stream from the client and the server's end of it, accepted."""
        ours = self.client.lane.open_stream(request)
        theirs = self.server.next_stream()
        theirs.accept("there")
        return ours, theirs


def write_all(stream: Stream, data: bytes, *, buffers: bool = True) -> None:
    """Write all of `data`, in buffers or in small payloads; block for credit as a pump does."""
    view = memoryview(data)
    while view:
        room = stream.wait_writable()
        if buffers:
            buffer = stream.take_buffer()
            size = buffer.length = min(room, len(buffer.payload), len(view))
            buffer.payload[:size] = view[:size]
            stream.write_buffer(buffer)
        else:
            size = min(room, 16 * 1024, len(view))
            stream.write(bytes(view[:size]))
        view = view[size:]


def read_all(stream: Stream) -> bytes:
    """Everything until the stream's orderly end, consumed as it comes."""
    parts: list[bytes] = []
    while (payload := stream.receive()) is not None:
        parts.append(bytes(payload))
        stream.consumed(len(payload))
    return b"".join(parts)


def read(stream: Stream, size: int) -> bytes:
    """At least `size` bytes, consumed as they come."""
    parts: list[bytes] = []
    while size > 0:
        payload = stream.receive()
        assert payload is not None, "the stream ended early"
        parts.append(bytes(payload))
        stream.consumed(len(payload))
        size -= len(payload)
    return b"".join(parts)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which a shift by anything but 256 KiB shows."""
    unit = bytes((at * 31 + (at >> 8) + seed) % 251 for at in range(64 * 1024))
    return (unit * (size // len(unit) + 1))[:size]


def waiting_in(function: str, *, thread: str | None = None) -> Callable[[], bool]:
    """Whether a thread (of this name) waits inside `function`: how to know that a call blocks, without sleeping."""

    def waits() -> bool:
        names = {each.ident: each.name for each in threading.enumerate()}
        return any(
            function in _calls_of_one_that_waits(frame)
            for ident, frame in sys._current_frames().items()
            if thread in (None, names.get(ident))
        )

    return waits


def _calls_of_one_that_waits(frame: FrameType) -> set[str]:
    """The functions on the stack of a thread that waits on a condition; none when it does not wait."""
    if frame.f_code is not threading.Condition.wait.__code__:
        return set()
    calls: set[str] = set()
    caller: FrameType | None = frame
    while caller is not None:
        calls.add(caller.f_code.co_name)
        caller = caller.f_back
    return calls
