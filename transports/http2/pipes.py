"""A pipe for an HTTP/2 stream: which one, its dialect says.  Used by `client` and `server`."""

from __future__ import annotations

from collections.abc import Callable

from qanat.transports.http2.dialect import MessageDialect
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.pipe import Http2Pipe
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.http2.stream_wire import StreamWire
from qanat.transports.pipe import Pipe
from qanat.transports.websocket.machine import client_machine, server_machine
from qanat.transports.websocket.pipe import WebSocketPipe


def client_pipe(engine: Http2Engine, stream: Http2Stream) -> Pipe:
    """Return the pipe that speaks on this stream, and owns the connection, from now on.  Sends nothing."""
    if isinstance(stream.dialect, MessageDialect):
        return Http2Pipe(engine, stream, engine.end, alone=True)
    wire = StreamWire(engine, stream, engine.end, alone=True)
    return WebSocketPipe(wire, client_machine(), is_client=True, transport=stream.dialect.name, nudge=True)


def server_pipe(engine: Http2Engine, stream: Http2Stream, end: Callable[[str], None]) -> Pipe:
    """Return the pipe that speaks on this stream from now on, and ends it by `end`.  Sends nothing."""
    if isinstance(stream.dialect, MessageDialect):
        return Http2Pipe(engine, stream, end, alone=False)
    wire = StreamWire(engine, stream, end, alone=False)
    return WebSocketPipe(wire, server_machine(), is_client=False, transport=stream.dialect.name)
