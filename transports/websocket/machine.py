"""The libraries' protocol machines, driven by our reader, one whole frame at a time.

Bulk never comes here (see `frames`).  Pings, pongs, closes and fragments do: what they mean, and
what must be answered, is decided by simple-websocket (on wsproto) in a server and by websocket-client in a
client.  Both libraries would write their answers to the socket from whichever thread reads, without
regard to a writer or to a full socket; here their "socket" is a `Capture`, and what they wrote becomes
part of the `Outcome`, for the pipe to send when it is its turn.

Nothing of the libraries' own reading is used: simple-websocket's reader thread (which fills an unbounded list, and
may die without waking anyone) is never started.  Used by `upgrade` and `pipe`.
"""

from __future__ import annotations

import contextlib
import struct
import weakref
from typing import NamedTuple, Protocol

import simple_websocket
import websocket
from wsproto.connection import ConnectionState

from qanat.base.untrusted import words
from qanat.transports.pipe import MAX_MESSAGE
from qanat.transports.websocket.frames import CloseCode, FrameError

_NO_STATUS = 1005  # RFC 6455 §7.4.1: the close frame was empty


class Outcome(NamedTuple):
    """What one frame led to."""

    message: bytes | None = None  # the last fragment of a binary message came: the whole
    closed: str | None = None  # the peer's close frame, in words
    answer: bytes = b""  # what the library wants to send


class Machine(Protocol):
    """Either library."""

    def receive(self, frame: bytes) -> Outcome:
        """Take one whole frame as it came.  Raises FrameError.  Does no I/O."""


class NeedsMore(Exception):
    """The library wants to read beyond the frame that it was given."""


class Capture:
    """The socket that the libraries are given: keeps what they send, serves what they are fed."""

    def __init__(self) -> None:
        self._sent = bytearray()
        self._fed = memoryview(b"")

    def feed(self, data: bytes) -> None:
        """Serve `data` to the library's next reads."""
        self._fed = memoryview(data)

    def take(self) -> bytes:
        """All that has been sent since the last call."""
        sent = bytes(self._sent)
        self._sent.clear()
        return sent

    def send(self, data: bytes) -> int:
        """Keep what the library sends."""
        self._sent += data
        return len(data)

    def recv(self, size: int) -> bytes:
        """Return what was fed; raise NeedsMore when that is used up."""
        if not self._fed:
            raise NeedsMore
        part, self._fed = bytes(self._fed[:size]), self._fed[size:]
        return part

    def gettimeout(self) -> None:
        """Asked by websocket-client before each read: none, so it never polls."""

    def close(self) -> None:
        """Do nothing: the wire below is closed by the pipe, never by a library."""


class NoThread:
    """What simple-websocket takes for a thread class: its reader would be a second one, so it never runs."""

    def __init__(self, target: object) -> None:
        self.name = "never started"

    def start(self) -> None:
        """Do nothing: the pipe's own reading thread does the work."""


class ServerMachine:
    """simple-websocket's server, after its handshake."""

    def __init__(self, server: simple_websocket.Server, capture: Capture) -> None:
        self._server = server
        self._capture = capture
        with contextlib.suppress(AttributeError):  # another version of the library
            # Its parser is a generator that holds its owner: a cycle that only the collector would free.
            parser = server.ws.connection._proto
            parser._parse_more = type(parser)._parse_more_gen(weakref.proxy(parser))

    def receive(self, frame: bytes) -> Outcome:
        """See `Machine.receive`."""
        server = self._server
        server.ws.receive_data(frame)
        server.connected = server._handle_events()
        answer = self._capture.take()
        if not server.connected:
            if server.ws.state is ConnectionState.CLOSED:
                return Outcome(closed=describe_close(server.close_reason, server.close_message), answer=answer)
            raise FrameError(server.close_reason, server.close_message or "a malformed frame")
        message = server.input_buffer.pop() if server.input_buffer else None
        return Outcome(message=message, answer=answer)


class ClientMachine:
    """websocket-client's WebSocket, after its handshake."""

    def __init__(self, client: websocket.WebSocket, capture: Capture) -> None:
        self._client = client
        self._capture = capture

    def receive(self, frame: bytes) -> Outcome:
        """See `Machine.receive`."""
        self._capture.feed(frame)
        try:
            opcode, content = self._client.recv_data_frame(control_frame=True)
        except NeedsMore:
            return Outcome(answer=self._capture.take())  # a fragment, and more will come
        except websocket.WebSocketException as error:
            raise FrameError(CloseCode.PROTOCOL_ERROR, str(error)) from error
        answer = self._capture.take()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            code = struct.unpack("!H", content.data[:2])[0] if content.data else _NO_STATUS
            return Outcome(closed=describe_close(code, content.data[2:]), answer=answer)
        if opcode == websocket.ABNF.OPCODE_BINARY:
            return Outcome(message=content.data, answer=answer)
        return Outcome(answer=answer)


def server_machine() -> ServerMachine:
    """Return a server's machine for a WebSocket that was opened without HTTP/1.1 (RFC 8441)."""
    capture = Capture()
    # The library insists on a handshake; its answer goes nowhere.
    environ = {
        "werkzeug.socket": capture,
        "HTTP_HOST": "qanat",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": "AAAAAAAAAAAAAAAAAAAAAA==",
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
    }
    server = simple_websocket.Server(environ, max_message_size=MAX_MESSAGE, thread_class=NoThread)
    capture.take()
    return ServerMachine(server, capture)


def client_machine() -> ClientMachine:
    """Return a client's machine, likewise."""
    client, capture = new_client()
    client.sock = capture  # type: ignore[assignment]
    client.connected = True
    return ClientMachine(client, capture)


def new_client() -> tuple[websocket.WebSocket, Capture]:
    """Return the library's client before its handshake, and what it reads from afterwards."""
    client = websocket.WebSocket(enable_multithread=False)  # its locks are not needed: only our reader uses it
    capture = Capture()
    client.frame_buffer.recv = capture.recv  # its own method there would be a cycle that only the collector frees
    return client, capture


def describe_close(code: int, reason: bytes | str | None) -> str:
    """Return a peer's close frame in words for our log; its reason is the peer's, and may end inside a character."""
    if code == _NO_STATUS:
        return "the other end closed the WebSocket without giving a status"
    return f"the other end closed the WebSocket: {code:d} {words(reason or '')}".rstrip()
