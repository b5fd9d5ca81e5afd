"""Two lanes over one pipe after the other, and bulk on them: for tests of what outlives a pipe."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from qanat.base.deadline import Deadline
from qanat.base.watcher import Watcher
from qanat.handshake.exchange import SealedPipe
from qanat.mux.frames import Reason
from qanat.mux.lane import Lane
from qanat.mux.parameters import FIRST_PIPE, LaneParameters, ResumePoint
from qanat.mux.pipe_result import PipeResult
from qanat.mux.stream import Stream
from qanat.transports import pipe as transports
from tests.support.background import Background, wait_until
from tests.support.mux.cores import KIB
from tests.support.mux.rig import DEADLINE, pattern, read_all, run_lane, sealed_pair, write_all
from tests.support.transports.memory import memory_pair

MIB = 1024 * KIB


class End:
    """A lane, and the pipes that have carried it."""

    def __init__(self, parameters: LaneParameters, watcher: Watcher | None = None) -> None:
        self.opened: list[Stream] = []
        self.lane = Lane(
            "client" if parameters.client else "server",
            parameters,
            on_open=self.opened.append,
            on_control=bytes,
            watcher=watcher,
        )
        self.endings: list[Background[PipeResult]] = []

    def run(self, sealed: SealedPipe, resume: ResumePoint = FIRST_PIPE) -> Background[PipeResult]:
        """Have the lane on this pipe, once it is attached or has been turned away."""
        begun = threading.Event()

        def run() -> PipeResult:
            try:
                return run_lane(self.lane, sealed, resume, on_attached=begun.set)
            finally:
                begun.set()

        running = Background(run)
        self.endings.append(running)
        assert begun.wait(DEADLINE)
        return running


@dataclass
class Pipe:
    """The two ends of one pipe, and how they ended for the lanes."""

    client: SealedPipe
    server: SealedPipe
    endings: list[Background[PipeResult]] = field(default_factory=list)

    def cut(self) -> None:
        self.client.close("the network was cut")
        self.server.close("the network was cut")

    def ends(self) -> tuple[PipeResult, PipeResult]:
        """How it ended at the client and at the server."""
        client, server = self.endings
        return client.result(), server.result()


class Lanes:
    """A client's lane and a server's, over one pipe after the other.  `connect` does what HELLO and READY do."""

    def __init__(
        self,
        client: LaneParameters | None = None,
        server: LaneParameters | None = None,
        *,
        pipes: Callable[[], tuple[transports.Pipe, transports.Pipe]] = memory_pair,
        watcher: Watcher | None = None,
    ) -> None:
        self.client = End(client or LaneParameters(client=True), watcher)
        self.server = End(server or LaneParameters(client=False), watcher)
        self._pipes = pipes
        self.epoch = -1
        self.pipes: list[Pipe] = []

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for end in (self.client, self.server):
            with end.lane.lock:
                end.lane.core.check_invariants()
            end.lane.end(Reason.SESSION_ENDED, "the test is over")
        for pipe in self.pipes:
            pipe.cut()
        for end in (self.client, self.server):
            for running in end.endings:
                running.result()
            with end.lane.lock:
                assert kind is not None or end.lane.core.sender.buffers.lent == 0, "buffers are missing"

    def new_pipe(self) -> Pipe:
        pipe = Pipe(*sealed_pair(*self._pipes()))
        self.pipes.append(pipe)
        return pipe

    def connect(self) -> Pipe:
        """Move both lanes to a new pipe; the old one may be there still, or may have been cut."""
        pipe = self.new_pipe()
        self.epoch += 1
        if not self.epoch:
            pipe.endings = [self.client.run(pipe.client), self.server.run(pipe.server)]
            return pipe
        client, server = self.client.lane, self.server.lane
        expects = client.pause_writer()
        server_expects = server.acquire(self.epoch, expects, Deadline(DEADLINE))
        serving = self.server.run(pipe.server, ResumePoint(self.epoch, expects, server_expects))
        client.acquire(self.epoch, server_expects, Deadline(DEADLINE))
        calling = self.client.run(pipe.client, ResumePoint(self.epoch, server_expects, expects))
        pipe.endings = [calling, serving]
        return pipe

    def open(self) -> tuple[Stream, Stream]:
        """A stream from the client, and the server's end of it."""
        count = len(self.server.opened)
        ours = self.client.lane.open_stream(b"")
        wait_until(lambda: len(self.server.opened) > count, "the stream is there")
        return ours, self.server.opened[-1]

    @property
    def both(self) -> tuple[Lane, Lane]:
        return self.client.lane, self.server.lane


class Bulk:
    """Bytes both ways at once on a stream of their own, in buffers one way and small pieces the other."""

    def __init__(self, lanes: Lanes, size: int) -> None:
        self.ours, self.theirs = lanes.open()
        self._size = size
        self._there, self._back = pattern(size, 1), pattern(size, 2)
        self._sending = [
            Background(lambda: (write_all(self.ours, self._there), self.ours.finish())),
            Background(lambda: (write_all(self.theirs, self._back, buffers=False), self.theirs.finish())),
        ]
        self._receiving = [Background(lambda: read_all(self.theirs)), Background(lambda: read_all(self.ours))]

    @property
    def received(self) -> int:
        """Bytes that have come at both ends together."""
        return self.ours.counts[1] + self.theirs.counts[1]

    def wait_received(self, count: int) -> None:
        wait_until(lambda: self.received >= min(count, 2 * self._size), f"{count} bytes have come")

    @property
    def over(self) -> bool:
        return self.received == 2 * self._size

    def check(self) -> None:
        """All has come, once and in order."""
        assert self._receiving[0].result() == self._there
        assert self._receiving[1].result() == self._back
        for sending in self._sending:
            sending.result()
        self.ours.release()
        self.theirs.release()
