"""Who takes in the answers to a client's requests, as they come, and hands what they bring to the pipe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from qanat.transports.split.connections import CONTENT_TYPE
from qanat.transports.split.exchange import Failed
from qanat.transports.split.segments import Segment, SegmentReader
from qanat.transports.split.token import Token

HEARD_EVERY = 0.1
"""Seconds for which it is noted once that something of a streamed answer comes."""


class Requester(Protocol):
    """Whose answers they are: the client's end of a pipe.  Its methods do not block."""

    def take(self, segment: Segment, at: int, content: memoryview) -> None:
        """Act on what an answer says: bytes that belong at an offset.  Raises ProtocolError, which ends the pipe."""

    def go_on(self) -> None:
        """Do what that has made due."""

    def stream_heard(self, stream: StreamTaker) -> None:
        """Note that something of a streamed answer has come."""


class AnswerTaker:
    """Takes in one answer; see `exchange.Taker`."""

    def __init__(self, requester: Requester, token: Token) -> None:
        """`token` is the request's."""
        self.token = token
        self.began = time.monotonic()
        self.patience = 0.0
        """See `exchange.Taker`."""
        self.came = 0
        """How many bytes of the server's it has brought."""
        self._requester = requester
        self._reader = SegmentReader()

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """See `exchange.Taker`."""
        if status != 200:
            raise Failed(f"status {status} came instead of an answer", status=status)
        if headers.get("content-type", "") != CONTENT_TYPE:
            raise Failed("something else than the server answered, with a page of its own", status=status)

    def piece(self, content: memoryview) -> None:
        """See `exchange.Taker`."""
        self._feed(content)
        self._requester.go_on()

    def _feed(self, content: memoryview) -> None:
        for segment, at, part in self._reader.feed(content):
            if segment.number != self.token.number:
                raise Failed("an answer to another request came: something on the path keeps answers")
            if segment.repeated:
                raise Failed("the path has sent a request twice, and this is the second one's answer")
            self._requester.take(segment, at, part)
            self.came += len(part)

    def end(self) -> None:
        """See `exchange.Taker`."""
        if self._reader.in_the_middle:
            raise Failed("an answer was cut")


class StreamTaker(AnswerTaker):
    """Takes in an answer that goes on for as long as the path lets it."""

    def __init__(self, requester: Requester, token: Token) -> None:
        super().__init__(requester, token)
        self.heard_at = 0.0
        """When something came last, within HEARD_EVERY; 0 before anything has."""
        self.followed = False
        """Whether another one takes its place."""

    def piece(self, content: memoryview) -> None:
        """See `exchange.Taker`."""
        self._feed(content)
        if time.monotonic() - self.heard_at >= HEARD_EVERY:
            self._requester.stream_heard(self)
        self._requester.go_on()
