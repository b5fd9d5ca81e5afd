"""What must hold between the parts of a lane's core, after every call.

Slow (it looks at every stream and entry): tests call it after each step, the program never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qanat.mux.slab import Block
from qanat.mux.stream_state import State

if TYPE_CHECKING:
    from qanat.mux.lane_state import LaneState
    from qanat.mux.stream import Stream


def check_invariants(core: LaneState) -> None:
    """Raise AssertionError, with words, for the first thing that does not fit."""
    outbox, slab = core.outbox, core.slab
    kept = list(outbox.since(outbox.first))
    queued_blocks = 0
    for number, stream in core.streams.items():
        _require(number == stream.id and stream.state is not State.CLOSED, f"{stream.id} is over and yet open")
        _check_stream(stream)
        queued_blocks += sum(isinstance(payload, Block) for payload in stream.queue)
        _require(not stream.queue or stream.in_fresh or stream.in_steady, f"{stream.id} has payload and no turn")
        _require(not stream.fin_due or bool(stream.queue), f"{stream.id} owes a FIN and nothing before it")
    _require(core.queued_bytes == sum(s.queued_bytes for s in core.streams.values()), "queued bytes do not add up")
    _require(
        outbox.charged == sum(entry.charge for entry in (*kept, *core._control)),
        "the outbox is charged for something else than it holds",
    )
    _require(
        slab.lent >= queued_blocks + sum(entry.block is not None for entry in kept), "a block came back while in use"
    )
    _require(slab.lent <= slab.capacity, "more blocks are lent than there may be")
    _require(0 <= core.budget.used <= core.budget.limit, f"{core.budget.used} bytes of the budget are used")
    _require(outbox.first <= core._sent <= outbox.next_number, "frames are sent that are not kept")
    _require(
        not core.attached or core._sent + len(core._replay) == outbox.next_number, "the replay is not what is missing"
    )
    _require(core._own_open == sum(core._is_own(number) for number in core.streams), "own streams miscounted")
    _require(core.draining >= 0, "more streams drained than there were")
    _require(all(core._is_open(s) for s in core._waiting_for_queue), "a stream that is over waits for the queue")
    _require(all(core._is_open(s) for s in core.owed.credits.values()), "a stream that is over is owed credit")


def _check_stream(stream: Stream) -> None:
    window = stream.window
    queued = sum(p.length if isinstance(p, Block) else len(p) for p in stream.queue)
    _require(stream.queued_bytes == queued, f"{stream.id}: queued bytes do not add up")
    _require(stream.promised == stream.sent + queued, f"{stream.id}: promised is not sent and queued")
    _require(stream.promised <= stream.send_limit, f"{stream.id}: credit is overspent")
    _require(window.received <= window.granted, f"{stream.id}: more came than was granted")
    if not stream.released:
        waiting = sum(map(len, stream.inbox))
        _require(window.consumed + waiting <= window.received, f"{stream.id}: more is in the inbox than came")
        _require(window.charged >= window.granted - window.consumed - window.initial, f"{stream.id}: memory uncharged")


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(text)
