"""A connection here whose user has named its target, and waits for word of it.

Of most connections nobody asks what became of their target: they are reset when it could not be reached.  A proxy's
user is told, in the words of the protocol that he speaks.  `qanat.session.joined_streams` opens the stream and gives
the word; the connections are in `qanat.endpoints.dynamic` and `qanat.client.stdio`.
"""

from __future__ import annotations

import socket
from typing import Protocol

from qanat.mux.frames import Reason
from qanat.mux.stream import Stream

MAX_EARLY = 16 * 1024
"""Bytes of `PendingConnection.early` at most."""


class PendingConnection(Protocol):
    """See the module's docstring.  One of `accepted` and `refused` is called, once, by some thread."""

    origin: str
    """Who connected, as an address."""
    early: bytes
    """What came for the target already: it goes out with the request for it."""

    def opened(self, stream: Stream) -> None:
        """Note the stream that leads to the target, before anything else is called.  Must not block."""

    def accepted(self, address: str) -> socket.socket | None:
        """Tell the user that the target was reached, at `address`, "" where that is unknown; return his socket.

        None when he is gone.  What is returned belongs to the caller.  Must not block.
        """

    def refused(self, reason: Reason, text: str) -> None:
        """Tell the user why the target was not reached.  Must not block."""

    def ended(self) -> None:
        """Note that the socket that `accepted` returned is closed.  Must not block."""
