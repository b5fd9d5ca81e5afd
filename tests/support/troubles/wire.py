"""Both protocols of HTTP as one kind of exchange: a head, bytes until their end, and the same the other way.

`Exchange` is one request and its answer at either end of a relay, `Http1Connection` and `Http2Connection` carry them.
An open WebSocket is an exchange whose bodies are the bytes after the head.  All calls block; nothing has a thread but a
connection of HTTP/2, which needs one to read.  What breaks is an OSError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

Fields = tuple[tuple[str, str], ...]

HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")
"""RFC 9110 §7.6.1, but for `te: trailers`, which gRPC needs."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head; `websocket` when it asks for one, by Upgrade or by extended CONNECT."""

    method: str
    path: str
    authority: str
    fields: Fields
    version: int  # 1 or 2
    websocket: bool = False

    def value(self, name: str) -> str:
        """The field's value, or "" without one."""
        return next((value for key, value in self.fields if key == name), "")

    @property
    def length(self) -> int | None:
        """What content-length says."""
        text = self.value("content-length")
        return int(text) if text.isdigit() else None

    @property
    def is_grpc(self) -> bool:
        return self.value("content-type").startswith("application/grpc")

    def without_upgrade(self) -> Request:
        return replace(self, websocket=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's head."""

    status: int
    fields: Fields

    def value(self, name: str) -> str:
        return next((value for key, value in self.fields if key == name), "")


class Exchange(ABC):
    """One request and its answer, seen from one end: bytes come from `receive` and go out by `send`."""

    @abstractmethod
    def receive(self) -> bytes:
        """What has come of the other end's body; b"" at its end."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send bytes of our body."""

    @abstractmethod
    def finish(self, trailers: Fields = ()) -> None:
        """End our body."""

    @abstractmethod
    def cut(self) -> None:
        """End the exchange in both directions at once, so that the other end sees a failure.  From any thread."""

    @property
    def trailers(self) -> Fields:
        """What came behind the other end's body."""
        return ()


class Asked(Exchange):
    """At the client's side: the request has come, and `answer` begins its answer."""

    request: Request

    @abstractmethod
    def answer(self, answer: Answer, *, last: bool = False) -> None:
        """Send the head; with `last` the connection ends behind this exchange."""

    @abstractmethod
    def cut_connection(self) -> None:
        """End the connection, with all its exchanges."""


class Asking(Exchange):
    """At the server's side: the request has been sent, and `head` waits for its answer."""

    @abstractmethod
    def head(self) -> Answer:
        """The answer's head."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection that this exchange had for itself."""
