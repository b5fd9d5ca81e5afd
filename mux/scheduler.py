"""Who sends next: deficit round robin with a head start for streams that were quiet (RFC 8290 §4.2).

A stream that becomes ready joins `fresh` with one quantum; fresh streams go first, so a keystroke
does not wait behind bulk.  One that has used its quantum, or has run empty, goes to the end of
`steady`, so that nobody can starve the others by being quiet often.  Pure; `mux.core` calls it.
"""

from __future__ import annotations

from collections import deque

from .stream import Stream

QUANTUM = 32 * 1024
"""Bytes a stream may send in one turn; a larger frame is paid for by skipping turns."""


class Scheduler:
    """The streams that have something to send, in the order in which they will."""

    def __init__(self) -> None:
        self._fresh: deque[Stream] = deque()
        self._steady: deque[Stream] = deque()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._steady)

    def add(self, stream: Stream) -> None:
        """`stream` has payload queued.  Nothing happens when it is in the queue already."""
        if not stream.in_turn:
            stream.in_turn = True
            stream.deficit = QUANTUM
            self._fresh.append(stream)

    def peek(self) -> Stream | None:
        """The stream whose turn it is, or None when nobody has anything to send."""
        while True:
            queue = self._fresh or self._steady
            if not queue:
                return None
            stream = queue[0]
            if not stream.queue:
                queue.popleft()
                if queue is self._fresh and self._steady:
                    self._steady.append(stream)
                else:
                    stream.in_turn = False
            elif stream.deficit <= 0:
                queue.popleft()
                stream.deficit += QUANTUM
                self._steady.append(stream)
            else:
                return stream

    def charge(self, stream: Stream, size: int) -> None:
        """`stream` has just sent `size` bytes."""
        stream.deficit -= size

    def clear(self) -> None:
        """Nobody sends any more."""
        for stream in (*self._fresh, *self._steady):
            stream.in_turn = False
        self._fresh.clear()
        self._steady.clear()
