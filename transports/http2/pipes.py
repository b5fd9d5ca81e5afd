"""A pipe for an HTTP/2 stream: which one, its dialect says.  Used by `client` and `server`."""

from __future__ import annotations

from qanat.transports.http2.dialect import MessageDialect
from qanat.transports.http2.pipe import Http2Pipe
from qanat.transports.http2.stream_handle import StreamHandle
from qanat.transports.http2.stream_wire import StreamWire
from qanat.transports.pipe import Pipe
from qanat.transports.websocket.machine import client_machine, server_machine
from qanat.transports.websocket.pipe import WebSocketPipe


def pipe_of(handle: StreamHandle, *, is_client: bool) -> Pipe:
    """Return the pipe that speaks on this stream from now on.  Sends nothing."""
    dialect = handle.stream.dialect
    if isinstance(dialect, MessageDialect):
        return Http2Pipe(handle)
    machine = client_machine() if is_client else server_machine()
    return WebSocketPipe(StreamWire(handle), machine, is_client=is_client, transport=dialect.name)
