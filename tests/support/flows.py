"""Pseudo-random bytes of one direction of a stream, made once where they are sent and once where they arrive."""

from __future__ import annotations

import random

_BLOCK = 16 * 1024


class Wrong(Exception):
    """Something arrived that should not have, or did not arrive that should have; the text names the offset."""


class Flow:
    """`make` gives the bytes to send, in turn; `check` compares what arrives, in any pieces, with the same.

    The one is called by the sender alone and the other by the receiver alone.  The same `key` gives the same bytes.
    """

    def __init__(self, key: str) -> None:
        self._made, self._expected = _Source(key), _Source(key)
        self.sent = 0
        self.received = 0

    def make(self, count: int) -> bytes:
        """The next `count` bytes; they count as sent."""
        self.sent += count
        return self._made.take(count)

    def check(self, data: bytes) -> None:
        """These arrived next.  Raises Wrong when they are not what comes next, or more than was sent."""
        sent = self.sent
        expected = self._expected.take(len(data))
        if data != expected:
            at = next(i for i, (came, right) in enumerate(zip(data, expected, strict=True)) if came != right)
            came, right = data[at : at + 16].hex(), expected[at : at + 16].hex()
            raise Wrong(f"got wrong bytes at offset {self.received + at}: {came} instead of {right}")
        self.received += len(data)
        if self.received > sent:
            raise Wrong(f"got {self.received} bytes, and only {sent} were sent")

    def check_end(self) -> None:
        """The sender has finished.  Raises Wrong when not all has arrived."""
        if self.received != self.sent:
            raise Wrong(f"got the end at offset {self.received}, and {self.sent} bytes were sent")


class _Source:
    """An endless row of bytes, the same for the same key however it is cut."""

    def __init__(self, key: str) -> None:
        self._random = random.Random(key)
        self._rest = b""

    def take(self, count: int) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while have < count:
            parts.append(self._random.randbytes(_BLOCK))
            have += _BLOCK
        data = b"".join(parts)
        self._rest = data[count:]
        return data[:count]
