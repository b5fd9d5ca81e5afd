"""What `-v` shows: every frame by name, and never a byte of content."""

from __future__ import annotations

import logging

import pytest

from qanat.mux import frames as wire
from qanat.mux.trace import describe_frames
from tests.support.mux.rig import Pair, read, write_all

SECRET = b"hunter2-hunter2"


def test_each_kind_of_frame_is_named_and_no_content_is_shown() -> None:
    encoded = b"".join(
        (
            wire.Open(1, SECRET).encode(),
            wire.data_header(1, len(SECRET)) + SECRET,
            wire.Fin(1, 15).encode(),
            wire.Reset(3, wire.Reason.LIMIT, SECRET.decode()).encode(),
            wire.Accept(1, SECRET.decode()).encode(),
            wire.Control(SECRET).encode(),
            wire.Ack(7).encode(),
            wire.Credit(1, 99).encode(),
            wire.Ping(1).encode(),
            wire.Pong(1).encode(),
            wire.Datagram(1, SECRET).encode(),
            wire.Clock(7).encode(),
        )
    )
    lines = list(describe_frames(memoryview(encoded)))
    assert [line.partition(" ")[0] for line in lines] == [
        kind.name
        for kind in (
            wire.FrameType.OPEN,
            wire.FrameType.DATA,
            wire.FrameType.FIN,
            wire.FrameType.RESET,
            wire.FrameType.ACCEPT,
            wire.FrameType.CONTROL,
            wire.FrameType.ACK,
            wire.FrameType.CREDIT,
            wire.FrameType.PING,
            wire.FrameType.PONG,
            wire.FrameType.DATAGRAM,
            wire.FrameType.CLOCK,
        )
    ]
    assert lines[1] == "DATA stream 1, 15 bytes"
    assert not any("hunter" in line for line in lines)


def test_a_malformed_frame_ends_the_trace_and_nothing_else() -> None:
    assert list(describe_frames(memoryview(wire.Ping(5).encode() + b"\xff"))) == ["PING 5"]


def test_a_lane_traces_both_directions_when_debug_is_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="qanat.frames"), Pair() as pair:
        ours, theirs = pair.open()
        write_all(ours, SECRET)
        assert read(theirs, len(SECRET)) == SECRET
        ours.finish()
        theirs.finish()
    traced = [record.getMessage() for record in caplog.records if record.name == "qanat.frames"]
    assert any(line.endswith("> DATA stream 1, 15 bytes") for line in traced)
    assert any(line.endswith("< DATA stream 1, 15 bytes") for line in traced)
    assert "hunter" not in caplog.text
