"""What the transports over one HTTP/2 stream differ in: headers, trailers, and how DATA is cut into messages.

`Dialect` is the interface; `http2` and `grpc` each have one, and everything else is theirs in common: `http2_engine`
(the connection), `http2_pipe` (a stream as a Pipe), `http2_client` and `http2_server`.  `Inbox` puts messages together
again from DATA of any size, the dialect telling where they end.  Sans-IO.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Mapping
from typing import cast

from base.errors import ProtocolError, TransportError
from transports.pipe import MAX_MESSAGE
from transports.urls import TunnelUrl

Headers = list[tuple[str, str]]

_SMALL = 16 * 1024
"""Messages up to this size share a buffer while they wait, so that a million of one byte cost little more than that."""

_GRAIN = 32 * 1024  # sizes of buffers for larger ones are rounded up to this, so that they can be used again
_SPARE = 4  # such buffers kept by a stream


class Dialect(ABC):
    """One way to speak over a stream.  Has no state: one for all connections."""

    name: str
    """The transport's name in configs and logs."""
    prefix_size: int
    """Bytes in front of each message that tell how long it is."""
    overhead: int
    """Bytes that framing adds to a message at most, the prefix included."""

    @abstractmethod
    def body_size(self, prefix: bytes | memoryview) -> int:
        """How many bytes follow this prefix.  Raises ProtocolError."""

    @abstractmethod
    def unwrap(self, body: memoryview) -> memoryview:
        """The message inside `body`.  Raises ProtocolError."""

    @abstractmethod
    def wrap(self, buffer: memoryview, at: int) -> int:
        """Write the framing of the message `buffer[at:]` in front of it; return where it now begins."""

    @abstractmethod
    def request_headers(self) -> Headers:
        """A client's headers beside the pseudo-headers."""

    @abstractmethod
    def response_headers(self) -> Headers:
        """A server's headers, `:status` included, that open the pipe."""

    @abstractmethod
    def trailers(self) -> Headers:
        """What a server says at an orderly end; nothing when DATA ends the stream."""

    @abstractmethod
    def refusal(self, status: int, retry_after: int | None) -> Headers | None:
        """A whole answer that opens no pipe; None where a plain one with `status` will do."""

    @abstractmethod
    def check_response(self, status: int, headers: Mapping[str, str], url: TunnelUrl) -> TransportError | None:
        """None when this answer opens the pipe; otherwise what it most likely means."""

    @abstractmethod
    def describe_trailers(self, headers: Mapping[str, str]) -> str:
        """Why the stream ended, as the trailers say it; "" when they do not.  For our log: unprintables are gone."""


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

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._items: deque[memoryview | _Batch] = deque()
        self._prefix = bytearray()  # of the message that is coming
        self._body: memoryview | None = None  # the same, once its length is known
        self._filled = 0  # bytes of that body that have come
        self._spare: list[bytearray] = []  # buffers for large messages: new ones would cost page faults
        self._lent: bytearray | None = None  # the one of the message that was taken last
        self.max_body = MAX_MESSAGE + dialect.overhead
        """Bytes; a body above this is refused before it is waited for.  May be changed at any time."""
        self.released = 0
        """Bytes that need no more room here since its owner last set this to 0."""

    @property
    def in_the_middle(self) -> bool:
        """Whether an end now would cut a message."""
        return self._body is not None or bool(self._prefix)

    @property
    def waiting(self) -> bool:
        """Whether `take` has something."""
        return bool(self._items)

    def feed(self, data: memoryview) -> bool:
        """Take (and copy) the next bytes; return whether a message is whole now.  Raises ProtocolError."""
        position, end = 0, len(data)
        came = False
        while position < end:
            body = self._body
            if body is None:
                size, position = self._read_prefix(data, position)
                if size is None:
                    break
                if end - position >= size:  # the whole body is here
                    self._add(data[position : position + size], ours=False)
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
        """The next message, the caller's until the next call; None when none is whole."""
        if self._lent is not None:
            if len(self._spare) < _SPARE:
                self._spare.append(self._lent)
            self._lent = None
        if not self._items:
            return None
        first = self._items[0]
        if isinstance(first, _Batch):
            message = first.take()
            if first.empty:
                self._items.popleft()
        else:
            message = first
            self._items.popleft()
            self._lent = cast(bytearray, message.obj)
        self.released += self._dialect.prefix_size + len(message)
        return message

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self._prefix.clear()
        self._body = None

    def _read_prefix(self, data: memoryview, position: int) -> tuple[int | None, int]:
        """The length of the next body, if its prefix is whole, and where `data` goes on."""
        size = self._dialect.prefix_size
        if not self._prefix and len(data) - position >= size:
            return self._body_size(data[position : position + size]), position + size
        take = min(size - len(self._prefix), len(data) - position)
        self._prefix += data[position : position + take]
        position += take
        if len(self._prefix) < size:
            return None, position
        length = self._body_size(bytes(self._prefix))
        self._prefix.clear()
        return length, position

    def _body_size(self, prefix: bytes | memoryview) -> int:
        size = self._dialect.body_size(prefix)
        if size > self.max_body:
            raise ProtocolError(f"a message of {size} bytes, where at most {self.max_body} may come")
        return size

    def _room(self, size: int) -> memoryview:
        """A buffer for `size` bytes."""
        if size <= _SMALL:
            buffer = bytearray(size)
        elif self._spare and len(self._spare[-1]) >= size:
            buffer = self._spare.pop()
        else:
            self._spare.clear()  # what comes now is larger
            buffer = bytearray(-(-size // _GRAIN) * _GRAIN)
        return memoryview(buffer)[:size]

    def _add(self, body: memoryview, *, ours: bool) -> None:
        """Keep the message in `body`: as it is, if the body is ours to keep."""
        message = self._dialect.unwrap(body)
        self.released += len(body) - len(message)
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
