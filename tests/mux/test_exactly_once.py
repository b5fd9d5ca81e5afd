"""Two cores against a naive model: whatever is cut, delayed and replayed, each byte arrives once and in order.

The model knows, for each stream and direction, the bytes that were written and those that were read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qanat.base.errors import StreamReset
from qanat.mux.frames import Reason
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream_state import StreamPhase, StreamState
from tests.support.long import LONG
from tests.support.mux.cores import KIB, Peer, Rig

NUMBERS = st.integers(min_value=0, max_value=2**31)


@dataclass(eq=False)
class Direction:
    """One direction of one stream, as the model sees it."""

    writer: Peer
    sending: StreamState
    reader: Peer
    receiving: StreamState | None = None
    written: bytearray = field(default_factory=bytearray)
    read: int = 0
    finished: bool = False
    taken: int = 0
    """Bytes read and not yet reported as consumed."""

    def next_bytes(self, size: int) -> bytes:
        """Bytes that are wrong wherever they are shifted, doubled or belong to another stream."""
        start = len(self.written) + self.sending.id * 7
        return bytes((start + offset) * 31 % 251 for offset in range(size))


@dataclass(eq=False)
class Both:
    """One stream, seen from its opener."""

    opener: Peer
    number: int
    there: Direction
    back: Direction
    reset: bool = False
    accepted: bool = False

    @property
    def directions(self) -> tuple[Direction, Direction]:
        return self.there, self.back


class TwoLanes(RuleBasedStateMachine):
    """See the module's docstring."""

    @initialize(
        window=st.sampled_from((1, 700, 8 * KIB, 128 * KIB)),
        outbox=st.sampled_from((2 * KIB, 256 * KIB, 1024 * KIB)),
        budget=st.sampled_from((0, 64 * KIB, 8 * 1024 * KIB)),
    )
    def start(self, window: int, outbox: int, budget: int) -> None:
        self.now = 0.0
        self.streams: list[Both] = []
        client, server = (
            LaneParameters(
                client=client,
                initial_window=window,
                max_window=1024 * KIB,
                window_budget=budget,
                outbox=outbox,
                max_streams=6,
                peer_initial_window=window,
                peer_max_streams=6,
            )
            for client in (True, False)
        )
        self.rig = Rig(client, server)

    # --- what applications do -------------------------------------------------------------------

    @rule(by_client=st.booleans())
    def open(self, by_client: bool) -> None:
        opener = self.rig.ends[not by_client]
        other = self.rig.other(opener)
        if opener.core.sender.retransmit_buffer.full:
            return
        try:
            stream = opener.core.open_stream(b"request", self.now)
        except StreamReset:
            return
        placeholder = stream  # Replaced as soon as the other end knows the stream.
        self.streams.append(
            Both(opener, stream.id, Direction(opener, stream, other), Direction(other, placeholder, opener, stream))
        )

    def _known(self, direction: Direction, both: Both) -> bool:
        return both.there.receiving is not None or direction is both.there

    def _direction(self, pick: int) -> tuple[Both, Direction] | None:
        found = [(both, each) for both in self.streams for each in both.directions if self._known(each, both)]
        return found[pick % len(found)] if found else None

    @rule(
        pick=NUMBERS,
        size=st.sampled_from((1, 5, 600, 3000, 64 * KIB, 128 * KIB)),
        small=st.booleans(),
        alone=st.booleans(),
    )
    def write(self, pick: int, size: int, small: bool, alone: bool = False) -> None:
        chosen = self._direction(pick)
        if chosen is None or chosen[1].finished or chosen[1].sending.phase is StreamPhase.CLOSED:
            return
        direction = chosen[1]
        size = min(size, direction.writer.core.sender.sendable(direction.sending))
        data = direction.next_bytes(size)
        if not size:
            return
        if small:
            data = data[: 16 * KIB]
            if not (alone and direction.writer.send_alone(direction.sending, data, self.now)):
                direction.writer.core.sender.send(direction.sending, data)
        else:
            at = self.now if alone else None
            data = data[: direction.writer.write_buffer(direction.sending, data, alone_at=at)]
        direction.written += data

    @rule(pick=NUMBERS, size=st.sampled_from((1, 5, 600, 128 * KIB)), small=st.booleans(), lost=st.booleans())
    def send_when_all_is_quiet(self, pick: int, size: int, small: bool, lost: bool) -> None:
        """And perhaps lose it."""
        self.rig.settle(self.now)
        self._meet()
        self.deliver_directly(pick, True)
        self.write(pick, size, small, alone=True)
        for peer in self.rig.ends:
            while peer.wire and not lost:
                self.rig.deliver(peer, self.now)
        if lost:
            self.rig.cut(self.now)

    @rule(pick=NUMBERS)
    def finish(self, pick: int) -> None:
        chosen = self._direction(pick)
        if chosen is not None:
            chosen[1].finished = True
            chosen[1].writer.core.sender.finish(chosen[1].sending)

    @rule(pick=NUMBERS)
    def reset(self, pick: int) -> None:
        chosen = self._direction(pick)
        if chosen is not None and pick % 3 == 0:
            chosen[0].reset = True
            chosen[1].writer.core.reset(chosen[1].sending, Reason.CANCELED, "by the model")

    @rule(pick=NUMBERS)
    def accept(self, pick: int) -> None:
        chosen = self._direction(pick)
        if chosen is not None and not chosen[0].accepted and chosen[0].there.receiving is not None:
            both = chosen[0]
            both.accepted = True
            both.there.reader.core.accept(both.there.receiving, "there")

    @rule(pick=NUMBERS, direct=st.booleans())
    def deliver_directly(self, pick: int, direct: bool) -> None:
        chosen = self._direction(pick)
        if chosen is not None and chosen[1].receiving is not None:
            chosen[1].receiving.direct = direct

    @rule(pick=NUMBERS)
    def read_some(self, pick: int) -> None:
        chosen = self._direction(pick)
        if chosen is not None:
            self._read(chosen[1])

    def _read(self, direction: Direction) -> None:
        if direction.receiving is None:
            return
        payload = direction.reader.core.receiver.take(direction.receiving)
        if payload is not None:
            expected = direction.written[direction.read : direction.read + len(payload)]
            where = f"stream {direction.receiving.id} at {direction.read}"
            assert bytes(payload) == bytes(expected), f"wrong bytes on {where}"
            direction.read += len(payload)
            direction.taken += len(payload)

    @rule(pick=NUMBERS, part=st.sampled_from((1, 2, 10)))
    def consume(self, pick: int, part: int) -> None:
        chosen = self._direction(pick)
        if chosen is not None:
            self._consume(chosen[1], -(-chosen[1].taken // part))

    def _consume(self, direction: Direction, count: int) -> None:
        if count and direction.receiving is not None:
            direction.taken -= count
            direction.reader.core.receiver.consumed(direction.receiving, count, self.now)

    # --- what the network does ------------------------------------------------------------------

    @rule(by_client=st.booleans(), count=st.integers(1, 4))
    def send(self, by_client: bool, count: int) -> None:
        for _ in range(count):
            self.rig.ends[not by_client].send(self.now)

    @rule(by_client=st.booleans(), count=st.integers(1, 4))
    def deliver(self, by_client: bool, count: int) -> None:
        peer = self.rig.ends[not by_client]
        for _ in range(min(count, len(peer.wire))):
            self.rig.deliver(peer, self.now)
        self._meet()

    @rule(seconds=st.sampled_from((0.001, 0.02, 1.0, 16.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(stale=st.tuples(st.integers(0, 3), st.integers(0, 3)))
    def cut(self, stale: tuple[int, int]) -> None:
        self.rig.cut(self.now, stale=stale)

    @rule(before=st.integers(0, 3), during=st.integers(0, 3), after=st.integers(0, 3))
    def hand_over(self, before: int, during: int, after: int) -> None:
        self.rig.hand_over(self.now, before=before, during=during, after=after)
        self._meet()

    @precondition(lambda self: len(self.streams) > 0)
    @rule()
    def fill_everything_and_cut(self) -> None:
        """Every window and both retransmit buffers are as full as they get, and then the pipe is gone."""
        for _ in range(40):
            before = sum(len(direction.written) for both in self.streams for direction in both.directions)
            for pick in range(2 * len(self.streams)):
                self.write(pick, 128 * KIB, pick % 2 == 0)
            for peer in self.rig.ends:
                peer.send(self.now)
                if peer.wire:
                    self.rig.deliver(peer, self.now)
            self._meet()
            if before == sum(len(direction.written) for both in self.streams for direction in both.directions):
                break
        self.rig.cut(self.now)

    def _meet(self) -> None:
        """Join what the other end has opened to the model's streams."""
        for both in self.streams:
            if both.there.receiving is None:
                for stream in both.there.reader.opened:
                    if stream.id == both.number:
                        both.there.receiving = stream
                        both.back.sending = stream

    # --- what must hold -------------------------------------------------------------------------

    @invariant()
    def cores_are_sound(self) -> None:
        if hasattr(self, "rig"):
            for peer in self.rig.ends:
                peer.core.check_invariants()

    @invariant()
    def nothing_ends_early(self) -> None:
        for both in getattr(self, "streams", ()):
            for direction in both.directions:
                if direction.receiving is not None and direction.receiving.fin_received:
                    assert direction.finished
                    assert direction.receiving.window.received == len(direction.written)

    def teardown(self) -> None:
        """Everything that was written arrives, everything ends, and nothing is left."""
        if not hasattr(self, "rig"):
            return
        for round_number in range(4000):
            self.now += 0.021
            self.rig.settle(self.now)
            self._meet()
            for both in self.streams:
                for direction in both.directions:
                    if not self._known(direction, both):
                        continue
                    while direction.receiving is not None and direction.receiving.inbox:
                        self._read(direction)
                    self._consume(direction, direction.taken)
                    direction.finished = True
                    direction.writer.core.sender.finish(direction.sending)
            if round_number and all(not peer.core.streams for peer in self.rig.ends):
                break
        self.cores_are_sound()
        for both in self.streams:
            refused = both.there.receiving is None
            for direction in both.directions:
                assert refused or direction.sending.phase is StreamPhase.CLOSED, f"stream {both.number} has not ended"
                if not both.reset and not refused:
                    assert direction.read == len(direction.written), f"stream {both.number}: bytes are missing"
                    assert direction.receiving is not None
                    assert direction.receiving.fin_received
            for peer, stream in ((both.opener, both.there.sending), (both.there.reader, both.there.receiving)):
                if stream is not None:
                    peer.core.streams.release(stream)
        self.now += 1.0
        self.rig.settle(self.now)
        for peer in self.rig.ends:
            core = peer.core
            assert not core.streams
            assert core.sender.idle
            assert len(core.sender.retransmit_buffer) == 0
            assert core.sender.retransmit_buffer.charged == 0
            assert core.sender.buffers.lent == 0
            assert core.streams.budget.used == 0
            assert core.streams.draining == 0
            core.check_invariants()


TwoLanes.TestCase.settings = settings(
    max_examples=2000 if LONG else 100, stateful_step_count=50, suppress_health_check=list(HealthCheck)
)
TestTwoLanes = pytest.mark.timeout(900 if LONG else 120)(TwoLanes.TestCase)
