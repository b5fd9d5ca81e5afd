"""HTTP/1.1 for the relays, by h11: a client's connection, and one request to a server on a connection of its own."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading

import h11

from qanat.base.sockets import set_no_delay, set_reset_on_close
from tests.support.troubles.wire import HOP_BY_HOP, Answer, Asked, Asking, Fields, Request

CHUNK = 64 * 1024


def _texts(headers: object) -> Fields:
    return tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)  # type: ignore[attr-defined]


def end_to_end(fields: Fields) -> list[tuple[str, str]]:
    """Without what is for one hop alone."""
    return [(name, value) for name, value in fields if name not in HOP_BY_HOP and not name.startswith(":")]


class _Spoken:
    """h11 on a socket, of which one thread may read while another sends."""

    def __init__(self, sock: socket.socket, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self.h11 = h11.Connection(role)

    def next_event(self) -> object:
        """Block for the next event.  Raises OSError, also for what is not HTTP."""
        try:
            while True:
                with self._lock:
                    event = self.h11.next_event()
                if event is not h11.NEED_DATA:
                    return event
                data = self._sock.recv(CHUNK)
                with self._lock:
                    self.h11.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise NotHttpError(str(error)) from error

    def send(self, event: object) -> None:
        try:
            with self._lock:
                data = self.h11.send(event)  # type: ignore[arg-type]
        except h11.LocalProtocolError as error:
            raise ConnectionError(str(error)) from error
        if data:
            self._sock.sendall(data)


class NotHttpError(ConnectionError):
    """The other end does not speak HTTP/1.1."""


class Http1Connection:
    """A client's connection: `requests` one after the other, each of which has to be over before the next."""

    def __init__(self, sock: socket.socket, first: bytes) -> None:
        self.sock = sock
        self.spoken = _Spoken(sock, h11.SERVER)
        self.h11 = self.spoken.h11
        if first:
            self.h11.receive_data(first)

    def next_request(self) -> Http1Asked | None:
        """The next one; None when the client has finished, or speaks something else, which it is told."""
        try:
            event = self.spoken.next_event()
            if not isinstance(event, h11.Request):
                return None
        except NotHttpError:
            with contextlib.suppress(OSError):
                self.sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return None
        fields = _texts(event.headers)
        upgrade = any(name == "upgrade" and "websocket" in value.lower() for name, value in fields)
        authority = next((value for name, value in fields if name == "host"), "localhost")
        kept = tuple((name, value) for name, value in fields if name != "host")
        request = Request(event.method.decode(), event.target.decode("latin-1"), authority, kept, 1, upgrade)
        return Http1Asked(self, request)

    def again(self) -> bool:
        """Whether another request may follow the one that is over."""
        try:
            while self.h11.their_state is h11.SEND_BODY:
                self.spoken.next_event()
            if self.h11.our_state is h11.DONE and self.h11.their_state is h11.DONE:
                self.h11.start_next_cycle()
                return True
        except (OSError, h11.ProtocolError):
            pass
        return False


class Http1Asked(Asked):
    """One request of it."""

    def __init__(self, connection: Http1Connection, request: Request) -> None:
        self.request = request
        self._connection = connection
        self._raw = False
        self._over = False

    def receive(self) -> bytes:
        if self._raw:
            data, _ = self._connection.h11.trailing_data
            if data and not self._over:
                self._over = True
                return bytes(data)
            return self._connection.sock.recv(CHUNK)
        if self._over:
            return b""
        if self._connection.h11.they_are_waiting_for_100_continue:
            self._connection.spoken.send(h11.InformationalResponse(status_code=100, headers=[]))
        event = self._connection.spoken.next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self._over = True
        return b""

    def answer(self, answer: Answer, *, last: bool = False) -> None:
        if answer.status == 101:
            fields = [(name, value) for name, value in answer.fields if not name.startswith(":")]
            self._connection.spoken.send(h11.InformationalResponse(status_code=101, headers=fields))
            self._raw = True
            self._over = False
            return
        fields = end_to_end(answer.fields)
        if last:
            fields.append(("connection", "close"))
        self._connection.spoken.send(h11.Response(status_code=answer.status, headers=fields))

    def send(self, data: bytes) -> None:
        if self._raw:
            self._connection.sock.sendall(data)
        elif data:
            self._connection.spoken.send(h11.Data(data=data))

    def finish(self, trailers: Fields = ()) -> None:
        if self._raw:
            self._connection.sock.shutdown(socket.SHUT_WR)
        else:
            self._connection.spoken.send(h11.EndOfMessage())

    def cut(self) -> None:
        self.cut_connection()

    def cut_connection(self) -> None:
        set_reset_on_close(self._connection.sock, True)
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)


class Http1Asking(Asking):
    """A request to the server.  An extended CONNECT goes as an Upgrade, and 101 comes back as it came."""

    def __init__(self, address: tuple[str, int], request: Request, body: bytes | None) -> None:
        self._sock = socket.create_connection(address)
        set_no_delay(self._sock)
        self._spoken = _Spoken(self._sock, h11.CLIENT)
        self._raw = False
        self._rest = b""
        fields = [("host", request.authority), *end_to_end(request.fields)]
        if request.websocket:
            fields += [("connection", "Upgrade"), ("upgrade", "websocket")]
            if not request.value("sec-websocket-key"):
                fields.append(("sec-websocket-key", base64.b64encode(os.urandom(16)).decode()))
        elif body is not None:
            fields = [field for field in fields if field[0] != "content-length"]
            if body or request.method == "POST":
                fields.append(("content-length", str(len(body))))
        elif request.length is None and request.method == "POST":
            fields.append(("transfer-encoding", "chunked"))
        if not request.websocket:
            fields.append(("connection", "close"))
        self._websocket = request.websocket
        method = "GET" if request.websocket else request.method
        self._spoken.send(h11.Request(method=method, target=request.path, headers=fields))
        if request.websocket:
            self._spoken.send(h11.EndOfMessage())
        elif body is not None:
            self.send(body)
            self.finish()

    def head(self) -> Answer:
        while True:
            event = self._spoken.next_event()
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                self._raw = True
                self._rest = bytes(self._spoken.h11.trailing_data[0])
                return Answer(101, _texts(event.headers))
            if isinstance(event, h11.Response):
                return Answer(event.status_code, _texts(event.headers))
            if not isinstance(event, h11.InformationalResponse):
                raise ConnectionError("the server closed the connection")

    def receive(self) -> bytes:
        if self._raw:
            data, self._rest = self._rest, b""
            return data or self._sock.recv(CHUNK)
        event = self._spoken.next_event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    def send(self, data: bytes) -> None:
        if self._websocket:
            self._sock.sendall(data)
        elif data:
            self._spoken.send(h11.Data(data=data))

    def finish(self, trailers: Fields = ()) -> None:
        if self._websocket:
            self._sock.shutdown(socket.SHUT_WR)
        else:
            self._spoken.send(h11.EndOfMessage())

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()
