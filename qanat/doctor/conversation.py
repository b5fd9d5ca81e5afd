"""One request and its answer, over HTTP/1.1 or HTTP/2, as a doctor needs them: each part when it comes.

The transports' clients know only what they need and explain everything else away; here the path itself is looked at.
By h11 and h2, on a wire that the dialer made.  One thread at a time.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h11
from h2.config import H2Configuration
from h2.settings import SettingCodes

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.untrusted import header_text, http_status, words
from qanat.base.version import __version__
from qanat.transports.dial.answer_fields import mapping
from qanat.transports.dial.dialer import dial
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import Wire
from qanat.transports.wire.tls import TlsWire

Fields = Sequence[tuple[str, str]]

_READ = 64 * 1024
_MAX_HEAD = 64 * 1024
MAX_BODY = 1 << 20
"""Bytes of an answer that are read; more than any probe sends."""


@dataclass(frozen=True, slots=True)
class Head:
    """An answer's head; fields have names in lower case."""

    status: int
    fields: dict[str, str]

    def value(self, name: str) -> str:
        """Return a field's value, "" without one."""
        return self.fields.get(name, "")


class Conversation(ABC):
    """A request that has been sent, as far as it goes, and what comes back."""

    @abstractmethod
    def head(self, deadline: Deadline) -> Head:
        """Block for the answer's head.  Raises TransportError."""

    @abstractmethod
    def receive(self, deadline: Deadline) -> bytes:
        """Block for bytes of the answer; b"" at its end.  Raises TransportError."""

    @abstractmethod
    def send(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes of the request's body.  Raises TransportError."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection.  Idempotent."""

    def body(self, deadline: Deadline) -> bytes:
        """Block for the rest of the answer, at most MAX_BODY.  Raises TransportError."""
        parts, size = [], 0
        while size < MAX_BODY and (data := self.receive(deadline)):
            parts.append(data)
            size += len(data)
        return b"".join(parts)


def ask(
    url: TunnelUrl,
    route: Route,
    version: int,
    deadline: Deadline,
    cancel: Cancel,
    *,
    method: str = "GET",
    fields: Fields = (),
    open_body: bool = False,
    target: str | None = None,
) -> Conversation:
    """Dial and send a request's head; with `open_body` it goes on with `send`.

    `version` 1 offers http/1.1 alone in ALPN, 2 h2 alone.  Blocks until `deadline`.  Raises TransportError.
    """
    wire = dial(url, alpn=("h2",) if version == 2 else ("http/1.1",), deadline=deadline, route=route, cancel=cancel)
    try:
        if version == 2 and isinstance(wire, TlsWire) and wire.alpn != "h2":
            raise TransportError(f"HTTP/2 was offered, and {wire.alpn or 'no protocol'} chosen")
        if version == 1:
            return Http1Conversation(wire, url, route, method, fields, open_body=open_body, target=target)
        connection = Http2Conversations(wire)
        return connection.ask(url, route, method, fields, open_body=open_body, target=target)
    except BaseException:
        wire.close()
        raise


def _own_fields(route: Route, fields: Fields) -> list[tuple[str, str]]:
    return [*route.with_headers([("User-Agent", f"qanat/{__version__}")]), *fields]


def _read(wire: Wire, buffer: memoryview, deadline: Deadline) -> bytes:
    if deadline.passed:
        raise TransportError("nothing came in time")
    wire.set_read_timeout(deadline.remaining())
    try:
        return bytes(buffer[: wire.recv_into(buffer)])
    except TransportError as error:
        if deadline.passed:
            raise TransportError("nothing came in time") from error
        raise


class Http1Conversation(Conversation):
    """See `ask`; after 101 `receive` has the bytes of the new protocol."""

    def __init__(
        self,
        wire: Wire,
        url: TunnelUrl,
        route: Route,
        method: str,
        fields: Fields,
        *,
        open_body: bool,
        target: str | None = None,
    ) -> None:
        """Send the head.  Raises TransportError."""
        self._wire = wire
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._buffer = memoryview(bytearray(_READ))
        self._upgraded = False
        headers = [("Host", route.authority(url)), *_own_fields(route, fields)]
        if open_body and not any(name.lower() == "content-length" for name, _ in fields):
            headers.append(("Transfer-Encoding", "chunked"))
        self._say(h11.Request(method=method, target=target or url.path, headers=headers))
        if not open_body:
            self._say(h11.EndOfMessage())

    def head(self, deadline: Deadline) -> Head:
        """See `Conversation.head`."""
        while True:
            event = self._next(deadline)
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                self._upgraded = True
            elif not isinstance(event, h11.Response):
                if isinstance(event, h11.InformationalResponse):
                    continue
                raise TransportError("the connection was closed without an answer")
            fields = mapping((header_text(name).lower(), header_text(value)) for name, value in event.headers)
            return Head(event.status_code, fields)

    def receive(self, deadline: Deadline) -> bytes:
        """See `Conversation.receive`."""
        if self._upgraded:
            return bytes(self._h11.trailing_data[0]) or _read(self._wire, self._buffer, deadline)
        event = self._next(deadline)
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    def send(self, data: bytes, *, last: bool = False) -> None:
        """See `Conversation.send`."""
        if data:
            self._say(h11.Data(data=data))
        if last:
            self._say(h11.EndOfMessage())

    def close(self) -> None:
        """See `Conversation.close`."""
        self._wire.close()

    def _say(self, event: h11.Event) -> None:
        try:
            data = self._h11.send(event)
        except h11.LocalProtocolError as error:
            raise TransportError(f"the request cannot be sent: {error}") from error
        if data:
            self._wire.send_all(data)

    def _next(self, deadline: Deadline) -> object:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(_read(self._wire, self._buffer, deadline))
        except h11.RemoteProtocolError as error:
            raise TransportError(f"it does not answer as HTTP/1.1 demands: {words(str(error))}") from error
        return event


class Http2Conversations:
    """An HTTP/2 connection, on which several requests may be asked.  Used by one thread."""

    def __init__(self, wire: Wire) -> None:
        """Send the preface.  Owns `wire`.  Raises TransportError."""
        self._wire = wire
        self._buffer = memoryview(bytearray(_READ))
        config = H2Configuration(client_side=True, header_encoding=None, validate_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(
            client=True, initial_values={SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20}
        )
        self.settings: dict[str, int] | None = None
        """What the other end has announced; None before it has."""
        self.forbidden: tuple[str, ...] = ()
        """Header fields of an answer that HTTP/2 forbids (RFC 9113 §8.2.2)."""
        self._streams: dict[int, _Http2Conversation] = {}
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(1 << 20)
        self.flush()

    def ask(
        self,
        url: TunnelUrl,
        route: Route,
        method: str,
        fields: Fields,
        *,
        open_body: bool = False,
        target: str | None = None,
    ) -> _Http2Conversation:
        """Send a request's head.  Raises TransportError."""
        headers = [
            (":method", method),
            (":scheme", "https" if url.tls else "http"),
            (":authority", route.authority(url)),
            (":path", target or url.path),
            *((name.lower(), value) for name, value in _own_fields(route, fields)),
        ]
        try:
            stream_id = self.h2.get_next_available_stream_id()
            self.h2.send_headers(stream_id, headers, end_stream=not open_body)
        except h2.exceptions.ProtocolError as error:
            raise TransportError(f"the request cannot be sent: {error}") from error
        stream = self._streams[stream_id] = _Http2Conversation(self, stream_id)
        self.flush()
        return stream

    def wait_settings(self, deadline: Deadline) -> dict[str, int]:
        """Block for the other end's SETTINGS.  Raises TransportError."""
        while self.settings is None:
            self.pump(deadline)
        return self.settings

    def pump(self, deadline: Deadline) -> None:
        """Block for more bytes, and take them.  Raises TransportError."""
        data = _read(self._wire, self._buffer, deadline)
        if not data:
            raise TransportError("the connection was closed")
        try:
            happened = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise TransportError(f"it does not speak HTTP/2: {words(str(error))}") from error
        for event in happened:
            self._take(event)
        self.flush()

    def flush(self) -> None:
        """Send what is due."""
        if data := self.h2.data_to_send():
            self._wire.send_all(data)

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            remote = self.h2.remote_settings
            self.settings = {
                "enable_connect_protocol": int(remote.get(SettingCodes.ENABLE_CONNECT_PROTOCOL, 0)),
                "initial_window_size": int(remote.initial_window_size),
                "max_frame_size": int(remote.max_frame_size),
                "max_concurrent_streams": int(remote.get(SettingCodes.MAX_CONCURRENT_STREAMS, 0)),
            }
        elif isinstance(event, h2.events.ConnectionTerminated):
            # h2 takes every GOAWAY for the end of all streams; what a probe needs is over soon, or goes on elsewhere.
            for stream in self._streams.values():
                stream.failure = stream.failure or f"GOAWAY, error {event.error_code}"
        known = self._streams.get(getattr(event, "stream_id", None) or 0)
        if known is not None:
            self._take_of(known, event)

    def _take_of(self, stream: _Http2Conversation, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            fields = [(header_text(name).lower(), header_text(value)) for name, value in event.headers]
            self.forbidden += tuple(name for name, _ in fields if name in ("upgrade", "connection", "keep-alive"))
            found = mapping(fields)
            stream.answer = Head(http_status(found.pop(":status", "")), found)
        elif isinstance(event, h2.events.DataReceived):
            stream.parts.append(event.data or b"")
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        elif isinstance(event, h2.events.StreamReset):
            stream.failure = f"the stream was reset: error {event.error_code}"
            if stream.ended or event.error_code == 0:
                stream.ended, stream.failure = True, ""


class _Http2Conversation(Conversation):
    """One stream of it."""

    def __init__(self, connection: Http2Conversations, stream_id: int) -> None:
        self.connection = connection
        self._id = stream_id
        self.answer: Head | None = None
        self.parts: deque[bytes] = deque()
        self.ended = False
        self.failure = ""

    def head(self, deadline: Deadline) -> Head:
        """See `Conversation.head`."""
        while self.answer is None:
            self._check()
            self.connection.pump(deadline)
        return self.answer

    def receive(self, deadline: Deadline) -> bytes:
        """See `Conversation.receive`."""
        while not self.parts:
            if self.ended:
                return b""
            self._check()
            self.connection.pump(deadline)
        data = b"".join(self.parts)
        self.parts.clear()
        return data

    def send(self, data: bytes, *, last: bool = False) -> None:
        """See `Conversation.send`; no more than what fits into the first window."""
        try:
            self.connection.h2.send_data(self._id, data, end_stream=last)
        except h2.exceptions.ProtocolError as error:
            raise TransportError(f"the request's body cannot be sent: {error}") from error
        self.connection.flush()

    def close(self) -> None:
        """See `Conversation.close`; it ends the connection."""
        self.connection.close()

    def _check(self) -> None:
        if self.failure:
            raise TransportError(self.failure)
