"""A stream that somebody beside the client's forwards has asked for, and what he is told of it.

He has one end of a pair of sockets, the stream gets the other.  `qanat.control.listener` tells it to another process,
`qanat.client.stdio` to this one.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from qanat.mux.frames import Reason
from qanat.mux.stream import Stream


@dataclass(frozen=True, slots=True)
class Reached:
    """The target was reached, at this address."""

    address: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The target was not reached; the last word."""

    reason: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is over; the last word.  `reason` is None when both ways have ended orderly."""

    reason: int | None = None
    text: str = ""


Word = Reached | Failed | Ended


class SharedStream:
    """One such stream; a `qanat.endpoints.pending.PendingConnection`.  Safe to use from any thread."""

    early = b""

    def __init__(self, sock: socket.socket, origin: str, tell: Callable[[Word], None]) -> None:
        """Own `sock`.  `tell` is called by some thread, and must not block."""
        self.origin = origin
        self._sock = sock
        self._tell = tell
        self._lock = threading.Lock()  # guards the next
        self._stream: Stream | None = None
        self._canceled = False

    def cancel(self) -> None:
        """Reset the stream: whoever asked for it is gone.  Idempotent; does not block."""
        with self._lock:
            self._canceled = True
            stream = self._stream
        if stream is not None:
            stream.reset(Reason.CANCELED, "")

    def opened(self, stream: Stream) -> None:
        """Note the stream."""
        with self._lock:
            self._stream = stream
            canceled = self._canceled
        if canceled:
            stream.reset(Reason.CANCELED, "")

    def accepted(self, address: str) -> socket.socket | None:
        """Tell that the target was reached, and give the stream its end."""
        with self._lock:
            if self._canceled:
                self._sock.close()
                return None
        self._tell(Reached(address))
        return self._sock

    def refused(self, reason: Reason, text: str) -> None:
        """Tell why the target was not reached."""
        with contextlib.suppress(OSError):
            self._sock.close()
        self._tell(Failed(reason, text))

    def ended(self) -> None:
        """Tell how the stream has ended."""
        with self._lock:
            failure = None if self._stream is None else self._stream.failure
        self._tell(Ended() if failure is None else Ended(*failure))
