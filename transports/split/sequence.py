"""The two ends of one direction: bytes that are kept until they are acknowledged, and bytes put in order again.

Sans-IO, and not thread-safe: whoever owns them holds a lock.  Each message has its length in front as u32, so that the
bytes of a direction are one sequence, of which requests and answers carry any part in any order, and more than once.
"""

from __future__ import annotations

import bisect
import struct
from collections import deque

from qanat.base.errors import ProtocolError
from qanat.transports.pipe import MAX_MESSAGE, MAX_UNAUTHENTICATED

PREFIX = struct.Struct("!I")
WINDOW = 16 * 1024 * 1024
"""Bytes of a direction that may be on their way, or wait for a gap to be filled or for their reader."""

_SMALL = 1024
_TOGETHER = 16 * 1024
"""Bytes of one piece, up to which small ones are put together."""
_NOTHING = bytearray()
_MOST_SMALL = 256
"""Small pieces in order, of which more are put together."""
_MAX_PIECES = 4096
"""Pieces kept out of order, beyond which the furthest are dropped: each costs memory beside its bytes."""


class Outgoing:
    """Bytes to send, from the first that is not acknowledged, in the pieces that came; small ones are joined."""

    def __init__(self) -> None:
        self._pieces: list[bytearray] = []  # in order; the first `_gone` are forgotten
        self._starts: list[int] = []  # where each begins
        self._gone = 0
        self.acknowledged = 0
        """All bytes below it have come to the other end."""
        self.next = 0
        """Where the bytes begin that were never sent."""
        self.limit = 0
        """The other end takes bytes below it."""
        self.end = 0
        """Where the bytes end that were given to be sent."""
        self._lost: list[tuple[int, int]] = []  # ranges to send again, in order

    @property
    def unsent(self) -> int:
        """How many bytes were never sent."""
        return self.end - self.next

    @property
    def kept(self) -> int:
        """How many bytes are not acknowledged."""
        return self.end - self.acknowledged

    @property
    def ready(self) -> int:
        """How many bytes `take` would give, of which there may be more to come once the limit has risen."""
        new = max(0, min(self.end, self.limit) - self.next)
        if not self._lost:
            return new
        return new + sum(max(0, end - max(begin, self.acknowledged)) for begin, end in self._lost)

    def append(self, data: bytes | memoryview) -> None:
        """Take more bytes to send, in a copy."""
        if self._pieces and self._starts[-1] >= self.next and len(self._pieces[-1]) + len(data) <= _TOGETHER:
            self._pieces[-1] += data  # of which no part has been taken
        elif data:
            self._starts.append(self.end)
            self._pieces.append(bytearray(data))
        self.end += len(data)

    def take(self, size: int) -> tuple[int, memoryview] | None:
        """Return where the next bytes belong, and at most `size` of them: first those that were lost.

        The view stays valid, also after `acknowledge`.
        """
        while self._lost:
            begin, end = self._lost.pop(0)
            begin = max(begin, self.acknowledged)
            if begin >= end:
                continue
            if end - begin > size:
                self._lost.insert(0, (begin + size, end))
                end = begin + size
            return begin, self._range(begin, end)
        end = min(self.end, self.limit, self.next + size)
        if end <= self.next:
            return None
        begin, self.next = self.next, end
        return begin, self._range(begin, end)

    def lose(self, begin: int, end: int) -> None:
        """Have these bytes sent again, as far as they are not acknowledged."""
        if max(begin, self.acknowledged) < end:
            bisect.insort(self._lost, (begin, end))

    def rewind(self) -> None:
        """Have all that is not acknowledged sent again."""
        self._lost.clear()
        self.lose(self.acknowledged, self.next)

    def acknowledge(self, to: int, limit: int) -> bool:
        """Forget all bytes below `to`, and heed the limit; return whether either has risen.  Raises ProtocolError."""
        if to > self.next:
            raise ProtocolError("an acknowledgment of what was never sent")
        risen = to > self.acknowledged or limit > self.limit
        if to > self.acknowledged:
            self.acknowledged = to
            self._forget()
        self.limit = max(self.limit, limit)
        return risen

    def _forget(self) -> None:
        """Let go of the pieces that are acknowledged."""
        pieces, starts, gone = self._pieces, self._starts, self._gone
        while gone < len(pieces) and starts[gone] + len(pieces[gone]) <= self.acknowledged:
            pieces[gone] = _NOTHING
            gone += 1
        if 2 * gone > len(pieces):
            del pieces[:gone], starts[:gone]
            gone = 0
        self._gone = gone

    def _range(self, begin: int, end: int) -> memoryview:
        """Return these bytes, without a copy where they lie in one piece."""
        pieces, starts = self._pieces, self._starts
        index = bisect.bisect_right(starts, begin) - 1
        first = memoryview(pieces[index])[begin - starts[index] :]
        if len(first) >= end - begin:
            return first[: end - begin]
        whole = bytearray(first)
        while len(whole) < end - begin:
            index += 1
            whole += memoryview(pieces[index])[: end - begin - len(whole)]
        return memoryview(whole)


class Incoming:
    """Bytes that have come, until they are taken as messages.  What they may amount to is bounded by the window."""

    def __init__(self, window: int) -> None:
        self.window = window
        """Bytes that may come beyond those that were taken."""
        self.expected = 0
        """All bytes below it have come."""
        self.end: int | None = None
        """Where the other end has closed, if it has."""
        self.unauthenticated = False
        """Whether a message above MAX_UNAUTHENTICATED is an error."""
        self._taken = 0
        self._ordered: deque[memoryview] = deque()  # from `_taken` to `expected`
        self._starts: list[int] = []  # of the pieces beyond, sorted
        self._pieces: dict[int, memoryview] = {}  # these, by where they start
        self._beyond = 0  # bytes of these; some may have come more than once
        self._small = 0  # pieces in order, of the last ones, that are small

    @property
    def limit(self) -> int:
        """The other end may send bytes below it."""
        return self._taken + self.window

    @property
    def finished(self) -> bool:
        """Whether all has come that the other end has sent before it closed."""
        return self.end is not None and self.expected >= self.end

    def add(self, at: int, data: memoryview) -> bool:
        """Keep bytes, which belong to the caller no more; return whether there are more of them in order now.

        What has come before is ignored.  Raises ProtocolError for bytes beyond the limit.
        """
        if at + len(data) > self.limit:
            raise ProtocolError("more bytes than its window allows")
        if at > self.expected:
            self._keep(at, data)
            return False
        if not self._append(at, data):
            return False
        while self._starts and self._starts[0] <= self.expected:
            start = self._starts.pop(0)
            piece = self._pieces.pop(start)
            self._beyond -= len(piece)
            self._append(start, piece)
        return True

    def _append(self, at: int, data: memoryview) -> bool:
        new = data[self.expected - at :]
        if not new:
            return False
        self._ordered.append(_own(new))
        self.expected += len(new)
        self._small = self._small + 1 if len(new) < _SMALL else 0
        if self._small > _MOST_SMALL:
            self._join_small()
        return True

    def _join_small(self) -> None:
        """Put the last pieces together: each costs memory beside its bytes."""
        small = [self._ordered.pop() for _ in range(min(self._small, len(self._ordered)))]
        self._ordered.append(memoryview(bytearray().join(reversed(small))))
        self._small = 0

    def _keep(self, at: int, data: memoryview) -> None:
        there = self._pieces.get(at)
        if there is None:
            bisect.insort(self._starts, at)
        if there is None or len(there) < len(data):
            self._pieces[at] = _own(data)
            self._beyond += len(data) - (0 if there is None else len(there))
        while len(self._starts) > _MAX_PIECES or self._beyond > 2 * self.window:
            self._beyond -= len(self._pieces.pop(self._starts.pop()))

    @property
    def has_message(self) -> bool:
        """Whether `take` has a message, or something to say."""
        size = self._next_size()
        return size is not None and (self._is_wrong(size) or self.expected - self._taken >= PREFIX.size + size)

    def take(self) -> memoryview | None:
        """Return the next message, the caller's; None when none is whole.  Raises ProtocolError."""
        size = self._next_size()
        if size is None:
            return None
        if self._is_wrong(size):
            raise ProtocolError(f"a message of {size} bytes")
        if self.expected - self._taken < PREFIX.size + size:
            return None
        self._cut(PREFIX.size)
        return self._cut(size)

    def clear(self) -> None:
        """Forget all bytes."""
        self._ordered.clear()
        self._starts.clear()
        self._pieces.clear()
        self._beyond = self._small = 0
        self._taken = self.expected

    def _is_wrong(self, size: int) -> bool:
        return size > (MAX_UNAUTHENTICATED if self.unauthenticated else MAX_MESSAGE)

    def _next_size(self) -> int | None:
        """Return the length of the next message; None while that is not known."""
        if self.expected - self._taken < PREFIX.size:
            return None
        first = self._ordered[0]
        if len(first) < PREFIX.size:
            prefix = bytearray()
            for piece in self._ordered:
                prefix += piece[: PREFIX.size - len(prefix)]
                if len(prefix) == PREFIX.size:
                    break
            first = memoryview(prefix)
        size: int = PREFIX.unpack_from(first)[0]
        return size

    def _cut(self, size: int) -> memoryview:
        """Take the next `size` bytes, which are there; without a copy where they lie in one piece."""
        self._taken += size
        first = self._ordered[0] if size else memoryview(b"")
        if len(first) >= size:
            if size:
                self._ordered[0] = first[size:]
                if not self._ordered[0]:
                    self._ordered.popleft()
            # A small message must not pin a large piece.
            return memoryview(bytearray(first[:size])) if size <= _SMALL else first[:size]
        whole = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            piece = self._ordered.popleft()
            part = piece[: size - filled]
            whole[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(piece):
                self._ordered.appendleft(piece[len(part) :])
        return whole


def _own(data: memoryview) -> memoryview:
    """Return bytes that do not keep much more than themselves in memory."""
    return data if 2 * len(data) >= len(data.obj) else memoryview(bytearray(data))  # type: ignore[arg-type]
