"""HTTP/2 for the relays, by h2: a connection of a client's with its streams, and one request to a server on its own.

The same class is either end.  A thread reads; whoever sends blocks until the peer's windows have room.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from qanat.base.sockets import set_no_delay, set_reset_on_close
from tests.support.troubles.http1 import CHUNK, end_to_end
from tests.support.troubles.wire import Answer, Asked, Asking, Exchange, Fields, Request

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GOAWAY = 7
WINDOW = 1 << 20


class Http2Connection:
    """One connection at either end.  `on_request` is called in the reading thread for each stream of a client."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        client: bool,
        extended_connect: bool = False,
        on_request: Callable[[Http2Asked], object] | None = None,
    ) -> None:
        self.sock = sock
        self._on_request = on_request
        config = H2Configuration(
            client_side=client,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self.h2 = H2Connection(config)
        values = {SettingCodes.INITIAL_WINDOW_SIZE: WINDOW}
        if client:
            values[SettingCodes.ENABLE_PUSH] = 0
        else:
            values[SettingCodes.MAX_CONCURRENT_STREAMS] = 128
        if extended_connect:
            values[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        self.h2.local_settings = Settings(client=client, initial_values=values)
        self.changed = threading.Condition()
        self.streams: dict[int, Http2Exchange] = {}
        self.over = False
        self._draining = False
        self._skip = 0 if client else len(PREFACE)
        self._begun = b""
        with self.changed:
            self.h2.initiate_connection()
            self.h2.increment_flow_control_window(16 * WINDOW)
            self.flush_locked()

    def read_loop(self, first: bytes = b"") -> None:
        """Read until the connection ends; the streams that are left are then cut."""
        data = first
        try:
            while True:
                if data := self._without_goaway(data):
                    self._handle(data)
                data = self.sock.recv(CHUNK)
                if not data:
                    return
        except (OSError, ProtocolError):
            pass
        finally:
            with self.changed:
                self.over = True
                self.changed.notify_all()

    def _without_goaway(self, data: bytes) -> bytes:
        """The whole frames that have come, but for GOAWAY: h2 would end streams at it that go on (RFC 9113 §6.8)."""
        self._begun += data
        frames, at = [], self._skip
        if len(self._begun) < at:
            return b""
        frames.append(self._begun[:at])
        while len(self._begun) >= at + 9:
            end = at + 9 + int.from_bytes(self._begun[at : at + 3], "big")
            if len(self._begun) < end:
                break
            if self._begun[at + 3] != GOAWAY:
                frames.append(self._begun[at:end])
            at = end
        self._begun = self._begun[at:]
        self._skip = 0
        return b"".join(frames)

    def flush_locked(self) -> None:
        if data := self.h2.data_to_send():
            self.sock.sendall(data)

    def go_away_locked(self) -> None:
        """Take no further streams; those that there are go on (RFC 9113 §6.8), which h2 itself does not know."""
        if not self._draining:
            self._draining = True
            last = self.h2.highest_inbound_stream_id
            payload = last.to_bytes(4, "big") + bytes(4)
            self.flush_locked()
            self.sock.sendall(len(payload).to_bytes(3, "big") + bytes((GOAWAY, 0)) + bytes(4) + payload)

    def close(self) -> None:
        set_reset_on_close(self.sock, True)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _handle(self, data: bytes) -> None:
        asked = []
        with self.changed:
            for event in self.h2.receive_data(data):
                if isinstance(event, events.RequestReceived):
                    if self._draining:
                        self.h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
                    else:
                        asked.append(self._asked_locked(event))
                elif (stream := self.streams.get(getattr(event, "stream_id", 0) or 0)) is not None:
                    stream.take_locked(event)
            self.flush_locked()
            self.changed.notify_all()
        for one in asked:
            assert self._on_request is not None
            self._on_request(one)

    def forget(self, stream_id: int) -> None:
        """Nothing more is wanted of a stream."""
        with self.changed:
            self.streams.pop(stream_id, None)

    def _asked_locked(self, event: events.RequestReceived) -> Http2Asked:
        pseudo = {name: value for name, value in event.headers if name.startswith(":")}
        fields = tuple((name, value) for name, value in event.headers if not name.startswith(":"))
        request = Request(
            pseudo[":method"],
            pseudo.get(":path", "/"),
            pseudo.get(":authority", "localhost"),
            fields,
            2,
            pseudo.get(":protocol") == "websocket",
        )
        stream = Http2Asked(self, event.stream_id, request)
        self.streams[event.stream_id] = stream
        return stream


class Http2Exchange(Exchange):
    """One stream at either end."""

    def __init__(self, connection: Http2Connection, stream_id: int) -> None:
        self._connection = connection
        self._id = stream_id
        self._received: deque[bytes] = deque()
        self._ended = False
        self._finished = False
        self._reset = False
        self._head: Answer | None = None
        self._trailers: Fields = ()

    @property
    def trailers(self) -> Fields:
        return self._trailers

    @property
    def peer_takes_extended_connect(self) -> bool:
        """Whether the other end has said so by now."""
        return bool(self._connection.h2.remote_settings.enable_connect_protocol)

    def take_locked(self, event: object) -> None:
        if isinstance(event, events.DataReceived):
            self._received.append(event.data)
            padding = event.flow_controlled_length - len(event.data)
            if padding:
                self._connection.h2.acknowledge_received_data(padding, self._id)
        elif isinstance(event, events.ResponseReceived):
            fields = tuple(event.headers)
            status = int(next(value for name, value in fields if name == ":status"))
            self._head = Answer(status, tuple(field for field in fields if not field[0].startswith(":")))
        elif isinstance(event, events.TrailersReceived):
            self._trailers = tuple(event.headers)
        elif isinstance(event, events.StreamEnded):
            self._ended = True
        elif isinstance(event, events.StreamReset):
            self._reset = True

    def head(self) -> Answer:
        with self._connection.changed:
            while self._head is None:
                self._check_locked()
                self._connection.changed.wait()
            return self._head

    def receive(self) -> bytes:
        connection = self._connection
        with connection.changed:
            while not self._received:
                if self._ended:
                    return b""
                self._check_locked()
                connection.changed.wait()
            data = b"".join(self._received)
            self._received.clear()
            if data and not connection.over:
                with contextlib.suppress(ProtocolError):
                    connection.h2.acknowledge_received_data(len(data), self._id)
                connection.flush_locked()
            return data

    def send(self, data: bytes) -> None:
        connection = self._connection
        view = memoryview(data)
        while view:
            with connection.changed:
                self._check_locked()
                try:
                    room = connection.h2.local_flow_control_window(self._id)
                    room = min(room, connection.h2.max_outbound_frame_size, len(view))
                    if room <= 0:
                        connection.changed.wait()
                        continue
                    connection.h2.send_data(self._id, bytes(view[:room]))
                except ProtocolError as error:
                    raise ConnectionError(str(error)) from error
                connection.flush_locked()
                view = view[room:]

    def finish(self, trailers: Fields = ()) -> None:
        connection = self._connection
        with connection.changed:
            self._check_locked()
            self._finished = True
            try:
                if trailers:
                    connection.h2.send_headers(self._id, list(trailers), end_stream=True)
                else:
                    connection.h2.end_stream(self._id)
            except ProtocolError as error:
                raise ConnectionError(str(error)) from error
            connection.flush_locked()

    def cut(self) -> None:
        connection = self._connection
        with connection.changed:
            if not self._reset and not connection.over and not (self._ended and self._finished):
                with contextlib.suppress(ProtocolError, OSError):
                    connection.h2.reset_stream(self._id, ErrorCodes.INTERNAL_ERROR)
                    connection.flush_locked()
            self._reset = True
            connection.changed.notify_all()

    def _check_locked(self) -> None:
        if self._reset or self._connection.over:
            raise ConnectionResetError("the stream was reset")


class Http2Asked(Http2Exchange, Asked):
    """A stream of a client's."""

    def __init__(self, connection: Http2Connection, stream_id: int, request: Request) -> None:
        super().__init__(connection, stream_id)
        self.request = request

    def answer(self, answer: Answer, *, last: bool = False) -> None:
        connection = self._connection
        # The end of an upgrade is 200 here (RFC 8441 §5), and its key has no meaning.
        status = 200 if answer.status == 101 else answer.status
        fields = [(n, v) for n, v in end_to_end(answer.fields) if n != "sec-websocket-accept"]
        if answer.status == 426:
            fields += [(name, value) for name, value in answer.fields if name == "upgrade"]
        with connection.changed:
            self._check_locked()
            try:
                connection.h2.send_headers(self._id, [(":status", str(status)), *fields])
            except ProtocolError as error:
                raise ConnectionError(str(error)) from error
            connection.flush_locked()
            if last:
                connection.go_away_locked()

    def cut_connection(self) -> None:
        self._connection.close()

    def forget(self) -> None:
        """Free what its connection keeps for it."""
        self._connection.forget(self._id)


class Http2Asking(Http2Exchange, Asking):
    """A request to the server, on a connection of its own and without TLS; a WebSocket by extended CONNECT."""

    def __init__(self, address: tuple[str, int], request: Request, body: bytes | None) -> None:
        sock = socket.create_connection(address)
        set_no_delay(sock)
        connection = Http2Connection(sock, client=True)
        super().__init__(connection, 1)
        fields = end_to_end(request.fields)
        if body is not None:
            fields = [field for field in fields if field[0] != "content-length"]
            if body or request.method == "POST":
                fields.append(("content-length", str(len(body))))
        if request.value("te"):
            fields.append(("te", "trailers"))
        head = [(":method", request.method), (":scheme", "http"), (":authority", request.authority)]
        if request.websocket:
            head[0] = (":method", "CONNECT")
            head.append((":protocol", "websocket"))
        with connection.changed:
            connection.streams[1] = self
            connection.h2.send_headers(1, [*head, (":path", request.path), *fields])
            connection.flush_locked()
        self._thread = threading.Thread(target=connection.read_loop, name="relay to the server", daemon=True)
        self._thread.start()
        if body is not None:
            try:
                self.send(body)
                self.finish()
            except BaseException:  # nobody has this yet, to close it
                self.close()
                raise

    def another(self, path: str) -> Http2Exchange:
        """GET `path` on the same connection; what comes of it is read by `receive`, and its head by `head`."""
        connection = self._connection
        with connection.changed:
            stream_id = connection.h2.get_next_available_stream_id()
            one = connection.streams[stream_id] = Http2Exchange(connection, stream_id)
            fields = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", path)]
            connection.h2.send_headers(stream_id, fields, end_stream=True)
            connection.flush_locked()
        return one

    def close(self) -> None:
        self._connection.close()
        self._thread.join()
        self._connection.sock.close()
