"""One HTTP/1.1 request head in: bytes only, no sockets.

The grammar is h11's; what lives here is the bound on a head's size, and the few questions that are asked about a
request.  Used by the server's front door and by the listener of `qanat.monitor`.
"""

from __future__ import annotations

from dataclasses import dataclass

import h11

from qanat.base.untrusted import header_text


class BadRequest(Exception):
    """A request head that is not acceptable.  `status` is the answer; the text is for our log only."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request head that h11 found to be well-formed, and the bytes that came after it."""

    method: str
    target: str  # as sent: origin-form, absolute-form, "*" or authority
    headers: tuple[tuple[str, str], ...]  # names in lower case, in the order sent
    version: str  # "1.0", "1.1"; RFC 9112 §2.3 allows later minor versions
    rest: bytes  # what was read beyond the head

    def values(self, name: str) -> tuple[str, ...]:
        """Return all values of the header `name` (lower case), in the order sent."""
        return tuple(value for key, value in self.headers if key == name)

    @property
    def path(self) -> str:
        """The path without query, of origin-form or absolute-form (RFC 9112 §3.2); "" for the other forms."""
        target = self.target
        scheme, separator, after = target.partition("://")
        if separator and scheme.lower() in ("http", "https"):
            _, slash, path = after.partition("/")
            target = slash + path
        return target.partition("?")[0] if target.startswith("/") else ""

    @property
    def query(self) -> str:
        """What follows the path's question mark, "" without one."""
        return self.target.partition("?")[2]

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        return bool(self.values("transfer-encoding")) or any(v.strip("0 ") for v in self.values("content-length"))

    @property
    def may_be_upgraded(self) -> bool:
        """Whether `Upgrade` counts: not with HTTP/1.0 (RFC 9110 §7.8), and not with a body, whose bytes would be
        taken for the new protocol's."""
        return self.version != "1.0" and not self.has_body


class HeadReader:
    """Collects the bytes of one request head, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        """Take at most `limit` bytes."""
        self._limit = limit
        self._received = 0
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limit)

    @property
    def room(self) -> int:
        """How many bytes `feed` may still be given; never 0 while the head is incomplete."""
        return self._limit - self._received

    def feed(self, data: bytes) -> RequestHead | None:
        """Take at most `room` more bytes, at least one; return the head once it is whole.  Raises BadRequest."""
        self._received += len(data)
        try:
            self._h11.receive_data(data)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            error.__traceback__ = None  # h11 raises it in a method of its own, which is a cycle
            raise BadRequest(str(error), status=error.error_status_hint) from error
        if isinstance(event, h11.Request):
            if not event.http_version.startswith(b"1."):
                raise BadRequest("a version of HTTP that is not spoken here", status=505)
            return RequestHead(
                method=header_text(event.method),
                target=header_text(event.target),
                headers=tuple((header_text(name), header_text(value)) for name, value in event.headers),
                version=header_text(event.http_version),
                rest=bytes(self._h11.trailing_data[0]),
            )
        if self._received >= self._limit:
            raise BadRequest(f"request head of more than {self._limit} bytes", status=431)
        return None
