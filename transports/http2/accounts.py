"""Who pays for what a peer does: its connection, or the client of a stream where a proxy carries several.

A client that is authenticated has a token, and had to do a handshake for its stream: what becomes of that stream is no
attack, so its end costs it nothing, and those who share its address or its proxy are not refused for it.  Needs the
connection's lock.  Used by `core`; what costs how much is `limits`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from h2.stream import H2Stream

from qanat.transports.http2.frames import FrameType
from qanat.transports.http2.limits import MAX_STREAMS, ControlFrameBudget, StreamBudget

_MOST_STREAMS = 16 * MAX_STREAMS
"""Streams that are remembered, most of which are over: late frames are charged like those before them."""


class Accounts:
    """The budget of one connection, and those of its streams whose clients have their own."""

    def __init__(self, streams: Mapping[int, H2Stream]) -> None:
        """`streams` are those that h2 knows; nothing but late frames can come for one that is not there, or closed."""
        self.connection = ControlFrameBudget(time.monotonic)
        self._streams = streams
        self._clients: dict[int, StreamBudget] = {}
        self._authenticated: dict[int, None] = {}
        self._unauthenticated: set[int] = set()  # tunnel streams that run, of those in `_clients`

    def open(self, stream_id: int, client: StreamBudget) -> None:
        """Charge `client` for this stream from now on."""
        self._make_room(self._clients)
        self._clients[stream_id] = client

    def begin(self, stream_id: int) -> None:
        """Count a tunnel request whose client is not authenticated, until `authenticate` or `end`."""
        if client := self._clients.get(stream_id):
            client.begin()
            self._unauthenticated.add(stream_id)

    def authenticate(self, stream_id: int) -> None:
        """Take the peer of this stream for an authenticated client: it may do more, and the stream's end is free."""
        self._forget(stream_id)
        self.connection.trust()
        if client := self._clients.get(stream_id):
            client.trust()
        self._make_room(self._authenticated)
        self._authenticated[stream_id] = None

    def has_own(self, stream_id: int) -> bool:
        """Whether this stream's client is charged, rather than the connection that it shares with others."""
        return stream_id in self._clients

    def spend(self, stream_id: int, kind: int) -> None:
        """Charge a frame on this stream that the peer sent, or made us send."""
        client = self._clients.get(stream_id)
        if stream_id not in self._authenticated:
            (client or self.connection).spend(kind)
        elif client is None:  # as any frame that carries nothing: a closed stream may be reset again and again
            self.connection.spend(FrameType.DATA if kind == FrameType.RST_STREAM else kind)

    def end(self, stream_id: int, *, served: bool) -> None:
        """Charge a tunnel request that is over, and whose client was never authenticated: a handshake, if `served`."""
        self._forget(stream_id)
        if served:
            (self._clients.get(stream_id) or self.connection).spend_request()
        else:
            self.spend(stream_id, FrameType.HEADERS)

    def _forget(self, stream_id: int) -> None:
        if stream_id in self._unauthenticated:
            self._unauthenticated.remove(stream_id)
            self._clients[stream_id].end()

    def _make_room(self, streams: dict[int, StreamBudget] | dict[int, None]) -> None:
        if len(streams) >= _MOST_STREAMS:
            over = [number for number in streams if number not in self._unauthenticated and self._is_over(number)]
            for old in over[: len(over) - MAX_STREAMS]:
                del streams[old]

    def _is_over(self, stream_id: int) -> bool:
        known = self._streams.get(stream_id)
        return known is None or bool(known.closed)
