"""Numbered frames kept until the peer has acknowledged them, so that a new pipe can replay them.

An entry's number is its place: `first` is the oldest one kept, and numbers only rise.  The limit (`flow.outbox` in
the configuration) counts memory: a bulk buffer counts whole, a small frame what it takes, and a control frame from
when it is queued, since those do not wait for room: only DATA does, and whoever opens a stream.

Pure, and not thread-safe: the lane's lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from qanat.base.errors import ProtocolError
from qanat.mux.buffer_pool import Buffer, BufferPool

ENTRY_OVERHEAD = 128
"""Bytes that an entry is counted for beyond its content."""


class Entry:
    """One numbered frame: `head` is the frame whole, or the header of DATA whose payload is in `buffer`."""

    __slots__ = ("buffer", "charge", "head")

    def __init__(self, head: bytes, buffer: Buffer | None = None) -> None:
        self.head = head
        self.buffer = buffer
        self.charge = len(head) + ENTRY_OVERHEAD + (0 if buffer is None else len(buffer.storage))


class RetransmitBuffer:
    """The unacknowledged tail of one lane's direction; `limit` and `charged` are bytes."""

    def __init__(self, limit: int, buffers: BufferPool) -> None:
        self.limit = limit
        self.charged = 0
        self.first = 0
        self._buffers = buffers
        self._entries: deque[Entry] = deque()

    @property
    def next_number(self) -> int:
        """The number that the next appended entry gets."""
        return self.first + len(self._entries)

    @property
    def full(self) -> bool:
        """Whether DATA, and whoever opens a stream, must wait for an ACK."""
        return self.charged >= self.limit

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, entry: Entry) -> None:
        """Count the memory of `entry`, which will be appended."""
        self.charged += entry.charge

    def append(self, entry: Entry) -> None:
        """Keep `entry`, which has been reserved for, under the next number."""
        self._entries.append(entry)

    def keep(self, entry: Entry) -> None:
        """Do both at once."""
        self.charged += entry.charge
        self._entries.append(entry)

    def acknowledge(self, expected: int) -> None:
        """Forget all below `expected`, which the caller has checked; nothing when that is done already."""
        if expected <= self.first:
            return
        entries, charge = self._entries, 0
        for _ in range(self.first, expected):
            entry = entries.popleft()
            charge += entry.charge
            if entry.buffer is not None:
                self._buffers.give_back(entry.buffer)
        self.first = expected
        self.charged -= charge

    def check_resume(self, expected: int) -> None:
        """Raise ProtocolError unless the frames from `expected` on can be replayed."""
        if not self.first <= expected <= self.next_number:
            raise ProtocolError(f"the peer expects frame {expected}; kept are {self.first} to {self.next_number}")

    def since(self, number: int) -> Iterator[Entry]:
        """Yield the entries from `number` on, for replay."""
        start = number - self.first
        for index in range(start, len(self._entries)):
            yield self._entries[index]

    def clear(self) -> None:
        """Forget everything, what is only reserved too: the session is over."""
        self.acknowledge(self.next_number)
        self.charged = 0
