"""Frames in words, for the log of somebody who looks for a fault (`-v`).  Never payload, never a request's content.

Whoever calls this asks `frame_log` first, so that nothing is paid for it otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from qanat.base.errors import ProtocolError
from qanat.mux import frames as wire

frame_log = logging.getLogger("qanat.frames")


def log_frames(lane: str, direction: str, content: memoryview) -> None:
    """Write a line for each frame of a FRAMES record's content, ">" for what is sent and "<" for what has come."""
    for line in describe_frames(content):
        frame_log.debug("%s %s %s", lane, direction, line)


def describe_frames(content: memoryview) -> Iterator[str]:
    """One line for each frame of a FRAMES record's content; ends in silence at a malformed one."""
    try:
        for frame in wire.parse_frames(content):
            yield _describe(frame)
    except ProtocolError:
        return


def _describe(frame: wire.Frame) -> str:
    match frame:
        case wire.Data(stream, payload):
            return f"DATA stream {stream}, {len(payload)} bytes"
        case wire.Open(stream, _):
            return f"OPEN stream {stream}"
        case wire.Fin(stream, offset):
            return f"FIN stream {stream} at {offset}"
        case wire.Reset(stream, reason, _):
            return f"RESET stream {stream}, {wire.reason_name(reason)}"
        case wire.Accept(stream, _):
            return f"ACCEPT stream {stream}"
        case wire.Control(message):
            return f"CONTROL {len(message)} bytes"
        case wire.Ack(expected):
            return f"ACK {expected}"
        case wire.Credit(stream, offset):
            return f"CREDIT stream {stream} to {offset}"
        case wire.Ping(value):
            return f"PING {value}"
        case wire.Pong(value):
            return f"PONG {value}"
        case wire.Datagram(stream, payload):
            return f"DATAGRAM stream {stream}, {len(payload)} bytes"
        case wire.Clock(value):
            return f"CLOCK {value} ms"
