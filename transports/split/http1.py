"""Messages of HTTP/1.1 with bodies, read from a wire one after the other: what both ends of a split pipe need of it.

A proxy may change how a body is delimited: by its length, in chunks, or, in an answer, by the end of the connection
(RFC 9112 §6.3).  Heads are bounded in size, bodies by whoever reads them.  Everything here blocks as the wire does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, TransportError
from qanat.base.untrusted import header_text, http_status, number
from qanat.transports.dial.answer_fields import mapping
from qanat.transports.pipe import Wire

MAX_HEAD = 64 * 1024
MAX_BODY = 1 << 40
_MAX_LINE = 256
_MAX_TRAILERS = 64
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;[^\r\n]*)?\Z")
_READ = 64 * 1024
SMALL = 16 * 1024
"""Bytes of a body that go with the head in one piece."""

CUT = "the connection was closed by the other end or the path"


class ByteSource:
    """Bytes from a wire, and those that were read before they were needed."""

    def __init__(self, wire: Wire, first: bytes = b"") -> None:
        """`first` were read already."""
        self._wire = wire
        self.rest = bytearray(first)
        """What was read and not yet returned."""
        self.deadline: Deadline | None = None
        """When reading has to be done; without one the wire's read timeout holds."""
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
        return data

    def some(self, most: int) -> bytearray:
        """Return 1 to `most` bytes, or none at the end of the connection."""
        if not self.rest:
            self.more()
        data = self.rest[:most]
        del self.rest[:most]
        return data

    def _receive(self, buffer: memoryview) -> int:
        if self.deadline is not None:
            if self.deadline.passed:
                raise TransportError("a body did not come to its end in time")
            self._wire.set_read_timeout(self.deadline.remaining())
        return self._wire.recv_into(buffer)

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


def body_pieces(source: ByteSource, headers: Mapping[str, str], *, of_answer: bool) -> Iterator[bytearray]:
    """Yield the body in pieces as they come.  Raises TransportError when it is cut, and ProtocolError."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        yield from _chunks(source)
        return
    if "content-length" in headers:
        left = number(headers["content-length"], MAX_BODY)
        if left is None:
            raise ProtocolError("a length that is none")
        while left:
            piece = source.some(left)
            if not piece:
                raise TransportError(CUT)
            left -= len(piece)
            yield piece
        return
    while of_answer and (piece := source.some(_READ)):
        yield piece


def read_body(source: ByteSource, headers: Mapping[str, str], most: int, *, of_answer: bool) -> bytearray | None:
    """Return the whole body, or None for one of more than `most` bytes.  Raises as `body_pieces`."""
    if "transfer-encoding" not in headers and "content-length" in headers:
        size = number(headers["content-length"], MAX_BODY)
        if size is None:
            raise ProtocolError("a length that is none")
        return None if size > most else source.take(size)
    body = bytearray()
    for piece in body_pieces(source, headers, of_answer=of_answer):
        body += piece
        if len(body) > most:
            return None
    return body


def _chunks(source: ByteSource) -> Iterator[bytearray]:
    """Yield what is in the chunks, RFC 9112 §7.1."""
    while True:
        match = _CHUNK.match(source.line())
        if match is None:
            raise ProtocolError("a chunk without a length")
        left = int.from_bytes(bytes.fromhex(header_text(match[1]).zfill(8)))
        if not left:
            for _ in range(_MAX_TRAILERS):  # they mean nothing here
                if not source.line():
                    return
            raise ProtocolError("trailers without end")
        while left:
            piece = source.some(left)
            if not piece:
                raise TransportError(CUT)
            left -= len(piece)
            yield piece
        if source.line():
            raise ProtocolError("a chunk that is longer than it says")


def keeps_alive(headers: Mapping[str, str], *, http10: bool) -> bool:
    """Return whether another request may follow on the connection (RFC 9112 §9.3)."""
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    return "close" not in options and (not http10 or "keep-alive" in options)
