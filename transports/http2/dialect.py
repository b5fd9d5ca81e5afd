"""What the transports over one HTTP/2 stream differ in: headers, trailers, and how DATA is cut into messages.

`Dialect` is the interface; `octet_stream`, `grpc` and `extended_connect` each have one, and everything else they have
in common: `engine` (the connection), `client` and `server`.  The first two cut DATA into messages themselves
(`MessageDialect`): `inbox` puts these together again, the dialect telling where they end, and `pipe` is a stream as a
Pipe.  To the third a stream is a Wire (`stream_wire`), as a connection is.  Sans-IO.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from qanat.base.errors import TransportError
from qanat.transports.dial.urls import TunnelUrl

Headers = list[tuple[str, str]]


class Dialect(ABC):
    """One way to speak over a stream.  Has no state: one for all connections."""

    name: str
    """The transport's name in configs and logs."""
    method: tuple[tuple[str, str], ...] = ((":method", "POST"),)
    """The pseudo-headers that say what is asked for."""
    extended_connect: bool = False
    """Whether a client may ask only once the other end has offered that (RFC 8441 §3)."""
    half_closes: bool = False
    """Whether a server's answer goes on when the request has ended, in place of ending with it."""
    needs_no_thread: bool = False
    """Whether a server's handler returns at once, and calls `Exchange.finish` whenever the answer has been given."""

    @abstractmethod
    def request_headers(self) -> Headers:
        """Return a client's headers beside the pseudo-headers."""

    @abstractmethod
    def response_headers(self) -> Headers:
        """Return a server's headers, `:status` included, that open the pipe."""

    def trailers(self) -> Headers:
        """Return what a server says at an orderly end; by default nothing: DATA ends the stream."""
        return []

    def refusal(self, status: int, retry_after: int | None) -> Headers | None:
        """Return a whole answer that opens no pipe; None, the default, where a plain one with `status` will do."""
        return None

    @abstractmethod
    def check_response(self, status: int, headers: Mapping[str, str], url: TunnelUrl) -> TransportError | None:
        """None when this answer opens the pipe; otherwise what it most likely means."""

    def describe_trailers(self, headers: Mapping[str, str]) -> str:
        """Why the stream ended, as the trailers say it; "" when they do not.  For our log: unprintables are gone."""
        return ""


class MessageDialect(Dialect):
    """A dialect that has a prefix of fixed size before each message."""

    prefix_size: int
    """Bytes in front of each message that tell how long it is."""
    overhead: int
    """Bytes that framing adds to a message at most, the prefix included."""

    @abstractmethod
    def body_size(self, prefix: bytes | memoryview) -> int:
        """How many bytes follow this prefix.  Raises ProtocolError."""

    @abstractmethod
    def unwrap(self, body: memoryview) -> memoryview:
        """Return the message inside `body`.  Raises ProtocolError."""

    @abstractmethod
    def wrap(self, buffer: memoryview, at: int) -> int:
        """Write the framing of the message `buffer[at:]` in front of it; return where it now begins."""
