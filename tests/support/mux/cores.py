"""Two cores and the wire between them, driven by hand: records lie on the wire until the test delivers them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from qanat.mux.buffer_pool import BUFFER_PAYLOAD, Buffer
from qanat.mux.core import LaneCore
from qanat.mux.frames import Data, Frame, parse_frames
from qanat.mux.parameters import Event, LaneParameters, Opened
from qanat.mux.stream_state import StreamState

KIB = 1024


class Peer:
    """One core, what it has put on the wire, and the streams that were opened towards it."""

    def __init__(self, parameters: LaneParameters, now: float = 0.0) -> None:
        self.core = LaneCore(parameters, now)
        self.wire: deque[bytes] = deque()
        self.events: list[Event] = []

    @property
    def opened(self) -> list[StreamState]:
        """The streams that the other end opened, in order."""
        return [event.stream for event in self.events if isinstance(event, Opened)]

    def stream(self, number: int) -> StreamState:
        """The open stream of this id."""
        return next(stream for stream in self.core.streams if stream.id == number)

    def send(self, now: float = 0.0) -> bool:
        """Put the next record on the wire; False when there is none."""
        record = self.core.sender.next_record(now)
        if record is None:
            return False
        self.wire.append(bytes(record[1:]))
        return True

    def send_all(self, now: float = 0.0) -> None:
        while self.send(now):
            pass

    def send_alone(self, stream: StreamState, payload: Buffer | bytes, now: float = 0.0) -> bool:
        """Put a record of `payload` on the wire as an idle lane does; False when that has to be queued."""
        record = self.core.sender.record_alone(stream, payload, now)
        if record is not None:
            self.wire.append(bytes(record[1:]))
        return record is not None

    def take_alone(self, record: bytes, now: float = 0.0) -> bool:
        """Receive a record whose payload a lane's reader hands on itself; False when it is another.

        The reader's socket takes nothing, so the payload goes to the inbox after all.
        """
        alone = self.core.receiver.receive_alone(memoryview(record), now)
        if alone is not None:
            stream, payload = alone
            self.core.receiver.put_back(stream, payload)
            stream.delivering = False
        return alone is not None

    def feed(self, *frames: bytes, now: float = 0.0) -> list[Event]:
        """Receive a record of `frames`, whoever made them."""
        events = self.core.receiver.receive(memoryview(b"".join(frames)), now)
        self.events += events
        return events

    def next_frames(self, now: float = 0.0) -> list[Frame]:
        """The frames of the next record, which goes nowhere; nothing when there is none."""
        record = self.core.sender.next_record(now)
        return [] if record is None else list(parse_frames(memoryview(bytes(record[1:]))))

    def all_frames(self, now: float = 0.0) -> list[Frame]:
        """The frames of all records that there are to send now."""
        found: list[Frame] = []
        while frames := self.next_frames(now):
            found += frames
        return found

    def read(self, stream: StreamState, now: float = 0.0) -> bytes:
        """What is in the stream's inbox, consumed."""
        parts = []
        while (payload := self.core.receiver.take(stream)) is not None:
            parts.append(bytes(payload))
            self.core.receiver.consumed(stream, len(payload), now)
        return b"".join(parts)

    def write_buffer(self, stream: StreamState, data: bytes, *, alone_at: float | None = None) -> int:
        """Queue as much of `data` as fits into one buffer and is sendable; return how much that was.

        Or send it alone, at the time `alone_at`, if that can be.
        """
        size = min(self.core.sender.sendable(stream), len(data), BUFFER_PAYLOAD)
        buffer = self.core.sender.buffers.take() if size else None
        if buffer is None:
            return 0
        buffer.length = size
        buffer.payload[:size] = data[:size]
        if alone_at is None or not self.send_alone(stream, buffer, alone_at):
            self.core.sender.send(stream, buffer)
        return size


def held(core: LaneCore) -> list[str]:
    """What a core still holds for streams: nothing once all are over, released and acknowledged."""
    counts = {
        "open streams": len(core.streams),
        "draining streams": core.streams.draining,
        "bytes of the budget": core.streams.budget.used,
        "buffers": core.sender.buffers.lent,
        "queued bytes": core.sender.queued_bytes,
        "unacknowledged frames": len(core.sender.retransmit_buffer),
        "charged bytes": core.sender.retransmit_buffer.charged,
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


class Rig:
    """A client's core and a server's, attached to each other."""

    def __init__(self, client: LaneParameters | None = None, server: LaneParameters | None = None) -> None:
        self.client = Peer(client or LaneParameters(client=True))
        self.server = Peer(
            server or replace(client, client=False) if client else server or LaneParameters(client=False)
        )
        self.ends = (self.client, self.server)
        for peer in self.ends:
            peer.core.attach(0.0)

    def other(self, peer: Peer) -> Peer:
        return self.server if peer is self.client else self.client

    def deliver(self, peer: Peer, now: float = 0.0) -> None:
        """Hand the oldest record that `peer` sent to the other end."""
        other, record = self.other(peer), peer.wire.popleft()
        if not other.take_alone(record, now):
            other.feed(record, now=now)

    def settle(self, now: float = 0.0) -> None:
        """Send and deliver until both ends have nothing to say."""
        moved = True
        while moved:
            moved = False
            for peer in self.ends:
                peer.send_all(now)
                while peer.wire:
                    self.deliver(peer, now)
                    moved = True

    def open(self, request: bytes = b"") -> tuple[StreamState, StreamState]:
        """A stream from client to server, known to both."""
        ours = self.client.core.open_stream(request, 0.0)
        self.settle()
        return ours, self.server.opened[-1]

    def cut(self, now: float = 0.0, *, stale: tuple[int, int] = (0, 0)) -> None:
        """Lose what is on the wire; go on over a new pipe.

        Each end goes on `stale` frames (the client's, the server's) before what the other expects, as far
        as it still has them: the receiver must drop those.
        """
        for peer in self.ends:
            peer.wire.clear()
            peer.core.detach()
        expected = {peer: peer.core.receiver.expected for peer in self.ends}
        starts = {}
        for peer, back in zip(self.ends, stale, strict=True):
            starts[peer] = max(peer.core.sender.retransmit_buffer.first, expected[self.other(peer)] - back)
        for peer in self.ends:
            peer.core.attach(now, peer_expects=starts[peer], receive_from=starts[self.other(peer)])

    def hand_over(self, now: float, *, before: int, during: int, after: int) -> None:
        """Move to a new pipe while the old one works, as docs/PROTOCOL.md §3 has it.

        The client begins no record any more and says HELLO.  `before` of its records still reach the server before
        that; `during` and `after` of the server's reach the client until the server yields, and until READY comes.
        """
        client, server = self.client, self.server
        expected = client.core.receiver.expected
        for _ in range(min(before, len(client.wire))):
            self.deliver(client, now)
        for _ in range(min(during, len(server.wire))):
            self.deliver(server, now)
        assert expected >= server.core.sender.retransmit_buffer.first, "more was acknowledged than HELLO says"
        ready = server.core.receiver.expected
        server.core.detach()
        server.core.attach(now, peer_expects=expected, receive_from=ready)
        for _ in range(min(after, len(server.wire))):
            self.deliver(server, now)
        for peer in self.ends:
            peer.wire.clear()
        client.core.detach()
        client.core.attach(now, peer_expects=ready, receive_from=expected)


def fill(peer: Peer, stream: StreamState) -> int:
    """Queue buffers until no more may be; return the bytes."""
    total = 0
    while written := peer.write_buffer(stream, bytes(BUFFER_PAYLOAD)):
        total += written
    return total


def data_order(frames: list[Frame]) -> list[int]:
    return [frame.stream for frame in frames if isinstance(frame, Data)]
