"""Messages put together again from DATA, however proxies have cut it, until they are taken.

Sans-IO.  Large messages have a buffer each, which is used again; small ones share one, since a million of them must not
cost more than their bytes.  A message that came in one piece, with none waiting before it, is not even copied where
that piece may be borrowed (`feed`).  Used by `core`, `stream` and `pipe`.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import cast

from qanat.base.errors import ProtocolError
from qanat.transports.http2.dialect import MessageDialect
from qanat.transports.pipe import MAX_UNAUTHENTICATED

_SMALL = 16 * 1024
"""Messages up to this size share a buffer while they wait, so that a million of one byte cost little more than that."""

_GRAIN = 32 * 1024  # sizes of buffers for larger ones are rounded up to this, so that they can be used again
_SPARE = 4  # such buffers kept by a stream


class _Batch:
    """Small messages one after the other, and their lengths."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._lengths = array("H")
        self._next = 0
        self._position = 0

    @property
    def open(self) -> bool:
        """Whether more can be added: not once a view was given out, since that pins the buffer."""
        return self._next == 0

    @property
    def empty(self) -> bool:
        return self._next == len(self._lengths)

    def add(self, message: memoryview) -> None:
        self._data += message
        self._lengths.append(len(message))

    def take(self) -> memoryview:
        start = self._position
        self._position += self._lengths[self._next]
        self._next += 1
        return memoryview(self._data)[start : self._position]


class Inbox:
    """Messages that have come and are not yet taken.  What they may amount to is bounded by the stream's window.

    Not thread-safe: the connection's lock is held around it.
    """

    def __init__(self, dialect: MessageDialect) -> None:
        self._dialect = dialect
        self._items: deque[memoryview | _Batch] = deque()
        self._prefix = bytearray()  # of the message that is coming
        self._body: memoryview | None = None  # the same, once its length is known
        self._filled = 0  # bytes of that body that have come
        self._spare: list[bytearray] = []  # buffers for large messages: new ones would cost page faults
        self._lent: bytearray | None = None  # the one of the message that was taken last
        self._borrowed: memoryview | None = None  # the message, first or taken last, that lies where it was received
        self._borrowed_taken = False
        self._unauthenticated = False
        self._held: bytearray | None = None  # all that came since a message that is too large before authentication
        self.released = 0
        """Bytes that need no more room here since its owner last set this to 0."""

    @property
    def in_the_middle(self) -> bool:
        """Whether an end now would cut a message."""
        return self._body is not None or self._held is not None or bool(self._prefix)

    @property
    def waiting(self) -> bool:
        """Whether `take` has something, or something to say."""
        return bool(self._items) or (self._unauthenticated and self._held is not None)

    def set_unauthenticated(self, unauthenticated: bool) -> None:
        """While unauthenticated, no message above MAX_UNAUTHENTICATED is taken.  Raises ProtocolError, as `feed` does.

        What came too early for that waits, in the little room that such a peer has: the limit holds for what is taken,
        not for what comes, since honest bytes may come before we know that they are.
        """
        self._unauthenticated = unauthenticated
        held, self._held = self._held, None
        if held:
            self.feed(memoryview(held))

    def feed(self, data: memoryview, *, borrow: bool = False) -> bool:
        """Take the next bytes; return whether a message is whole now.  Raises ProtocolError.

        They are copied; but with `borrow` `data` may be kept until `return_borrowed`, which must be called before what
        it views is written to.
        """
        position, end = 0, len(data)
        body = self._body
        if body is not None and self._filled + end < len(body):  # most pieces of a large message
            body[self._filled : self._filled + end] = data
            self._filled += end
            return False
        if self._held is not None:
            self._held += data
            return False
        came = False
        while position < end:
            body = self._body
            if body is None:
                prefix, position = self._read_prefix(data, position)
                if prefix is None:
                    break
                size = self._dialect.body_size(prefix)
                if (
                    self._unauthenticated
                    and size > MAX_UNAUTHENTICATED + self._dialect.overhead - self._dialect.prefix_size
                ):
                    self._held = bytearray(prefix) + data[position:]
                    return True  # so that whoever waits for a message hears that it is none
                if end - position >= size:  # the whole body is here
                    self._add(data[position : position + size], ours=False, borrow=borrow)
                    position += size
                    came = True
                    continue
                body = self._body = self._room(size)
                self._filled = 0
            take = min(len(body) - self._filled, end - position)
            body[self._filled : self._filled + take] = data[position : position + take]
            self._filled += take
            position += take
            if self._filled == len(body):
                self._body = None
                self._add(body, ours=True)
                came = True
        return came

    def take(self) -> memoryview | None:
        """Return the next message, the caller's until the next call; None when none is whole.

        Raises ProtocolError when the next is too large before authentication.
        """
        if self._borrowed_taken:
            self._borrowed, self._borrowed_taken = None, False
        elif self._lent is not None:
            if len(self._spare) < _SPARE:
                self._spare.append(self._lent)
            self._lent = None
        if not self._items:
            if self._unauthenticated and self._held is not None:
                raise ProtocolError(f"a message of more than {MAX_UNAUTHENTICATED} bytes in the handshake")
            return None
        first = self._items[0]
        if isinstance(first, _Batch):
            message = first.take()
            if first.empty:
                self._items.popleft()
        else:
            message = first
            self._items.popleft()
            if message is self._borrowed:
                self._borrowed_taken = True
            elif len(message) > _SMALL:
                self._lent = cast(bytearray, message.obj)
        self.released += self._dialect.prefix_size + len(message)
        return message

    def return_borrowed(self) -> bool:
        """Copy the message that lies where it was received; False when that was taken and is in use."""
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is None:
            return True
        if self._borrowed_taken:
            self._borrowed_taken = False
            return False
        if self._items and self._items[0] is borrowed:
            kept = self._room(len(borrowed))
            kept[:] = borrowed
            self._items[0] = kept
        return True

    def trim(self) -> None:
        """Give memory back that large messages have needed.  What `take` returned last is gone after this."""
        self._lent = None
        self._spare.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self._prefix.clear()
        self._body = self._held = None

    def _read_prefix(self, data: memoryview, position: int) -> tuple[bytes | memoryview | None, int]:
        """Return the prefix of the next message, if it is whole, and where `data` goes on."""
        size = self._dialect.prefix_size
        if not self._prefix and len(data) - position >= size:
            return data[position : position + size], position + size
        take = min(size - len(self._prefix), len(data) - position)
        self._prefix += data[position : position + take]
        position += take
        if len(self._prefix) < size:
            return None, position
        prefix = bytes(self._prefix)
        self._prefix.clear()
        return prefix, position

    def _room(self, size: int) -> memoryview:
        """Return a buffer for `size` bytes."""
        if size <= _SMALL:
            buffer = bytearray(size)
        elif self._spare and len(self._spare[-1]) >= size:
            buffer = self._spare.pop()
        else:
            self._spare.clear()  # what comes now is larger
            buffer = bytearray(-(-size // _GRAIN) * _GRAIN)
        return memoryview(buffer)[:size]

    def _add(self, body: memoryview, *, ours: bool, borrow: bool = False) -> None:
        """Keep the message in `body`: as it is, if the body is ours to keep, or may be borrowed."""
        message = self._dialect.unwrap(body)
        self.released += len(body) - len(message)
        if borrow and not self._items and self._borrowed is None:
            self._borrowed = message
            self._items.append(message)
            return
        if len(message) > _SMALL:
            if not ours:
                kept = self._room(len(message))
                kept[:] = message
                message = kept
            self._items.append(message)
            return
        last = self._items[-1] if self._items else None
        if not isinstance(last, _Batch) or not last.open:
            last = _Batch()
            self._items.append(last)
        last.add(message)
