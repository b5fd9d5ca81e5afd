"""Who sends next: deficit round robin with a head start for streams that were quiet (RFC 8290 §4.2).

A stream that becomes ready joins `fresh` with one quantum; fresh streams go first, so a keystroke does
not wait behind bulk.  One that has used its quantum goes to the end of `steady` for the next, and so does one that
comes with more than a quantum: of a thousand that are read in turn (`qanat.mux.sender`) most come anew all the time,
and those few with a place in `steady` would wait for all others once more.  One that owes for a large frame keeps its
place until that is paid, whether it has something to send or not.  Any that has
run empty keeps a place there: until it comes up, the stream has only what is left of its quantum, so that
nobody can starve the others by being quiet often; but with what is left it still goes first, since a person
types several times while sixty downloads have a turn each.  Pure; `qanat.mux.sender` calls it.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from qanat.mux.stream_state import StreamState

QUANTUM = 32 * 1024
"""Bytes a stream may send in one turn; a larger frame is paid for by skipping turns."""

SPARSE = 1024
"""Bytes that a stream has waiting at most, for what `sparse` returns."""
LOOKED_AT = 64
"""Fresh streams among which that is looked for."""


class Scheduler:
    """The streams that have something to send, in the order in which they will.

    `in_fresh` and `in_steady` of a stream say where it stands; it may be in both, and is then passed over
    when its place in `steady` comes up.
    """

    def __init__(self) -> None:
        self._fresh: deque[StreamState] = deque()
        self._steady: deque[StreamState] = deque()

    def add(self, stream: StreamState, size: int = 0) -> None:
        """Give a turn to `stream`, which had nothing queued and is about to have `size` bytes."""
        if not stream.in_steady and not stream.in_fresh:
            stream.deficit = QUANTUM
            if size > QUANTUM:
                stream.in_steady = True
                self._steady.append(stream)
        if not stream.in_fresh and stream.deficit > 0 and size <= QUANTUM:
            stream.in_fresh = True
            self._fresh.append(stream)

    def peek(self) -> StreamState | None:
        """Return the stream whose turn it is, or None when nobody has anything to send."""
        fresh, steady = self._fresh, self._steady
        while fresh:
            stream = fresh[0]
            if stream.queue and stream.deficit > 0:
                return stream
            fresh.popleft()
            stream.in_fresh = False
            # It waits for its next quantum, or keeps the place that says that it has had one.
            if not stream.in_steady and (stream.queue or steady):
                stream.in_steady = True
                steady.append(stream)
        while steady:
            stream = steady[0]
            if not stream.queue:
                steady.popleft()
                if stream.deficit > 0 or not steady:
                    stream.in_steady = False
                else:  # what it has had too much is others' turn, whether it has something now or not
                    stream.deficit += QUANTUM
                    steady.append(stream)
            elif stream.deficit <= 0:
                # Alone it has all turns at once that it needs: a large frame costs eight.
                alone = len(steady) == 1
                stream.deficit = QUANTUM + (stream.deficit % -QUANTUM if alone else stream.deficit)
                steady.rotate(-1)
            else:
                return stream
        return None

    def sparse(self) -> StreamState | None:
        """Return a stream that was quiet and has little to send, or None where there is none among the first."""
        for stream in islice(self._fresh, LOOKED_AT):
            if 0 < stream.queued_bytes <= SPARSE and stream.deficit > 0:
                return stream
        return None

    def charge(self, stream: StreamState, size: int) -> None:
        """Count `size` bytes that `stream` has just sent."""
        stream.deficit -= size

    def clear(self) -> None:
        """Forget every stream: nobody has anything to send, or sends any more."""
        fresh, steady = self._fresh, self._steady
        while fresh:
            fresh.popleft().in_fresh = False
        while steady:
            steady.popleft().in_steady = False
