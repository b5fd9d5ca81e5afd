"""Messages of HTTP/1.1 with bodies, read from a wire one after the other: what both ends of a split pipe need of it.

A proxy may change how a body is delimited: by its length, in chunks, or, in an answer, by the end of the connection
(RFC 9112 §6.3).  Heads are bounded in size, bodies by whoever reads them.  Everything here blocks as the wire does,
or, where a source must not wait, raises NothingCame and goes on from there when it is called again; `take` and
`read_body` are for sources that wait, and lose what they have read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, TransportError
from qanat.base.untrusted import header_text, http_status, number
from qanat.transports.dial.answer_fields import mapping
from qanat.transports.pipe import Wire, silent_for

MAX_HEAD = 64 * 1024
MAX_BODY = 1 << 40
_MAX_LINE = 256
_MAX_TRAILERS = 64
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;[^\r\n]*)?\Z")
_READ, _LARGE = 64 * 1024, 128 * 1024
MAX_INTERIM = 8
"""Interim answers (100 to 199) before an answer."""
SMALL = 16 * 1024
"""Bytes of a body that go with the head in one piece."""

CUT = "the connection was closed by the other end or the path"


class NothingCame(Exception):
    """There is nothing to read just now, from a source that must not wait for it."""


class ByteSource:
    """Bytes from a wire, and those that were read before they were needed."""

    def __init__(self, wire: Wire, first: bytes = b"") -> None:
        """`first` were read already."""
        self._wire = wire
        self.rest = bytearray(first)
        """What was read and not yet returned."""
        self.deadline: Deadline | None = None
        """When reading has to be done; without one the wire's read timeout holds."""
        self.within: float | None = None
        """Seconds after which reading raises NothingCame, on a wire that is watched, or was; without, it blocks."""
        self.patience = 0.0
        """Seconds of silence after which it raises TransportError instead; heeded where `within` is more than 0."""
        self._buffer: memoryview | None = None

    def more(self) -> bool:
        """Read more into `rest`; return False at the end of the connection."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(_READ))
        count = self._receive(self._buffer)
        self.rest += self._buffer[:count]
        return count > 0

    def take(self, size: int) -> bytearray:
        """Return exactly `size` bytes.  Raises TransportError when the connection ends before."""
        data = bytearray(size)
        view = memoryview(data)
        filled = min(size, len(self.rest))
        view[:filled] = self.rest[:filled]
        del self.rest[:filled]
        while filled < size:
            count = self._receive(view[filled:])
            if not count:
                raise TransportError(CUT)
            filled += count
            if filled < size:
                self.acknowledge_now()
        return data

    def acknowledge_now(self) -> None:
        """See `Wire.acknowledge_now`: for a body that has yet to come whole."""
        self._wire.acknowledge_now()

    def some(self, most: int) -> memoryview:
        """Return 1 to `most` bytes, which are the caller's, or none at the end of the connection."""
        if self.rest:
            data = self.rest[:most]
            del self.rest[:most]
            return memoryview(data)
        # Straight into what is returned: a large body would be copied twice otherwise.
        room = memoryview(bytearray(min(most, _LARGE)))
        piece = room[: self._receive(room)]
        return piece if 2 * len(piece) >= len(room) else memoryview(bytearray(piece))  # whoever keeps it keeps all

    def _receive(self, buffer: memoryview) -> int:
        if self.deadline is not None:
            if self.deadline.passed:
                raise TransportError("a body did not come to its end in time")
            self._wire.set_read_timeout(self.deadline.remaining())
        elif self.within is not None:
            return self._receive_within(buffer, self.within)
        return self._wire.recv_into(buffer)

    def _receive_within(self, buffer: memoryview, within: float) -> int:
        waited = 0.0
        while (count := self._wire.recv_within(buffer, within)) is None:
            waited += within
            if not within or not self.patience:
                raise NothingCame
            if waited >= self.patience:
                raise TransportError(silent_for(self.patience))
        return count

    def line(self) -> bytes:
        """Return the next line without its end.  Raises ProtocolError for one that is too long, and TransportError."""
        while (end := self.rest.find(b"\n")) < 0:
            if len(self.rest) > _MAX_LINE:
                raise ProtocolError("a line between chunks that has no end")
            if not self.more():
                raise TransportError(CUT)
        found = bytes(self.rest[:end])
        del self.rest[: end + 1]
        return found.removesuffix(b"\r")

    def trim(self) -> None:
        """Give memory back: nothing is read for a while."""
        self._buffer = None
        self._wire.trim()


class AnswerHeads:
    """Reads the head of one answer, and passes over the interim ones before it (RFC 9110 §15.2)."""

    def __init__(self) -> None:
        self._interim = 0

    def next(self, source: ByteSource) -> tuple[int, dict[str, str], bool]:
        """Return as `read_answer_head` does.  Raises ProtocolError where too many are none, and as the source does."""
        while True:
            head = read_answer_head(source)
            if not 100 <= head[0] < 200:
                return head
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise ProtocolError(f"more than {MAX_INTERIM} interim answers, and no answer")


def read_answer_head(source: ByteSource) -> tuple[int, dict[str, str], bool]:
    """Return an answer's status, its headers as `answer_fields.mapping` has them, and whether it is of HTTP/1.0.

    Raises TransportError and ProtocolError.
    """
    while not (found := _HEAD_END.search(source.rest)):
        if source.rest and not b"HTTP/1.".startswith(source.rest[:7]):
            raise ProtocolError("what answers is no web server")
        if len(source.rest) > MAX_HEAD:
            raise ProtocolError(f"an answer with more than {MAX_HEAD} bytes of headers")
        if not source.more():
            raise TransportError(CUT)
    head = bytes(source.rest[: found.start()])
    del source.rest[: found.end()]
    first, *lines = header_text(head).split("\n")
    status = http_status(first.partition(" ")[2].lstrip()[:4].rstrip())
    if not status:
        raise ProtocolError("an answer without a status")
    fields = (line.partition(":") for line in lines)
    headers = mapping((name.strip().lower(), value.strip()) for name, _, value in fields)
    return status, headers, first.startswith("HTTP/1.0")


class BodyReader:
    """A body in the pieces that come, however it is delimited."""

    def __init__(self, source: ByteSource, headers: Mapping[str, str], *, of_answer: bool) -> None:
        """`headers` are those that came before it on `source`.  Raises ProtocolError."""
        self._source = source
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self.length: int | None = None
        """Bytes of the whole body, where that was said before it."""
        self._left = 0  # bytes of the body, or of the present chunk
        self.to_the_end = False
        """Whether it goes on to the end of the connection."""
        self._in_chunk = False  # the line after its bytes has yet to come
        self._trailers: int | None = None  # how many have come, once the last chunk has
        if not self._chunked and "content-length" in headers:
            self.length = number(headers["content-length"], MAX_BODY)
            if self.length is None:
                raise ProtocolError("a length that is none")
            self._left = self.length
        elif not self._chunked:
            self.to_the_end = of_answer

    @property
    def over(self) -> bool:
        """Whether all has come, so that `next` reads nothing before it says so."""
        return not (self._left or self._chunked or self.to_the_end)

    def next(self) -> memoryview | None:
        """Return the next piece, the caller's, or None at the end.

        Raises TransportError when it is cut, ProtocolError, and NothingCame as the source does.
        """
        if self.to_the_end:
            return self._source.some(_READ) or None
        if self._chunked and not self._left and not self._begin_chunk():
            return None
        if not self._left:
            return None
        piece = self._source.some(self._left)
        if not piece:
            raise TransportError(CUT)
        self._left -= len(piece)
        return piece

    def _begin_chunk(self) -> bool:
        """Read up to the bytes of the next chunk, RFC 9112 §7.1; False when there is none."""
        source = self._source
        if self._trailers is None:
            if self._in_chunk:
                if source.line():
                    raise ProtocolError("a chunk that is longer than it says")
                self._in_chunk = False
            match = _CHUNK.match(source.line())
            if match is None:
                raise ProtocolError("a chunk without a length")
            self._left = int.from_bytes(bytes.fromhex(header_text(match[1]).zfill(8)))
            if self._left:
                self._in_chunk = True
                return True
            self._trailers = 0
        while source.line():  # they mean nothing here
            self._trailers += 1
            if self._trailers >= _MAX_TRAILERS:
                raise ProtocolError("trailers without end")
        return False


def read_body(source: ByteSource, headers: Mapping[str, str], most: int, *, of_answer: bool) -> bytearray | None:
    """Return the whole body, or None for one of more than `most` bytes.  Raises as `BodyReader`."""
    reader = BodyReader(source, headers, of_answer=of_answer)
    if reader.length is not None:
        return None if reader.length > most else source.take(reader.length)
    body = bytearray()
    while (piece := reader.next()) is not None:
        body += piece
        if len(body) > most:
            return None
        source.acknowledge_now()
    return body


def keeps_alive(headers: Mapping[str, str], *, http10: bool) -> bool:
    """Return whether another request may follow on the connection (RFC 9112 §9.3)."""
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    return "close" not in options and (not http10 or "keep-alive" in options)
