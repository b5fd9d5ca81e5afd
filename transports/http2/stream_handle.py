"""What a pipe, or a wire, does with its HTTP/2 stream, whatever is spoken there: waiting, timeouts, the end.

A client's stream has its connection for itself and ends with it; a server's shares it with other streams, and the
connection's owner (`server`) sends what is pending.  Used by `pipe` and `stream_wire`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from qanat.base.errors import TransportError
from qanat.base.threads import start_thread
from qanat.base.watcher import Ready, Watcher
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.pipe import silent_for
from qanat.transports.readiness import PostedReadiness, Readiness


class StreamHandle:
    """See the module's docstring.  `engine` and `stream` are the owner's to use, too."""

    def __init__(self, engine: Http2Engine, stream: Http2Stream, end: Callable[[str], None], *, alone: bool) -> None:
        """`end` ends what the pipe owns, with the cause that it is given.

        `alone` is whether the connection serves this pipe only, so that the lane's writer sends what is pending.
        """
        self.engine = engine
        self.stream = stream
        self._end = end
        self._alone = alone
        if alone:
            engine.on_pending_control(self._start_writer)
        self._read_timeout: float | None = None
        self._unauthenticated = False

    def wait_locked(self, has_come: Callable[[], bool], seconds: float | None = None) -> None:
        """Block until `has_come`, or the stream is over, as it is after the read timeout; or for `seconds` instead."""
        stream, began = self.stream, time.monotonic()
        if seconds is not None:
            self.engine.wait_locked(stream, stream.readable, lambda: has_come() or stream.over, seconds)
            return
        while not (has_come() or stream.over):
            timeout = self._read_timeout
            remaining = None
            if timeout is not None:
                remaining = max(began, stream.last_received) + timeout - time.monotonic()
                if remaining <= 0:
                    stream.end(silent_for(timeout))
                    return
            self.engine.wait_locked(stream, stream.readable, lambda: has_come() or stream.over, remaining)

    def readiness(self, watcher: Watcher, waiting: Callable[[], bool]) -> Readiness | None:
        """See `Pipe.readiness`; `waiting` says, with the lock, whether there is something to take."""
        if not self.engine.watch_by(watcher):
            return None
        return _StreamReadiness(self.engine, self.stream, watcher, waiting, alone=self._alone)

    def begin_reading(self) -> None:
        """Take the peer for an authenticated one, unless something was said about that."""
        if not self.stream.authenticated and not self._unauthenticated:
            self.set_unauthenticated(False)

    def set_unauthenticated(self, unauthenticated: bool) -> None:
        """While unauthenticated, a server's stream keeps the small window with which it began."""
        self._unauthenticated = unauthenticated
        if not unauthenticated:
            with self.engine.lock:
                self.engine.core.widen(self.stream)
                self.stream.reads_alone = not self._alone
        self.engine.tell()

    @property
    def unsent(self) -> int:
        """See `Pipe.unsent`; 0 where others share the connection, whose bytes these may be."""
        return self.engine.wire.unsent if len(self.engine.core.streams) == 1 else 0

    def set_read_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_read_timeout`."""
        self._read_timeout = seconds  # heeded from the next wait on

    def set_write_timeout(self, seconds: float | None) -> None:
        """Count the time without a window, too.  For what is below a shared connection, the last word counts."""
        self.stream.write_timeout = seconds
        with contextlib.suppress(TransportError):  # the connection is closed, and the next read says why
            self.engine.wire.set_write_timeout(seconds)

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """See `Pipe.set_wakeup`."""
        if not self._alone:
            return  # the connection's own writer does it
        self.engine.wire.set_wakeup(wakeup)
        self.engine.on_pending_control(wakeup)
        self.engine.end_writer()

    def set_on_leaving(self, callback: Callable[[], None]) -> None:
        """For GOAWAY without an error on a client's connection (RFC 9113 §6.8)."""
        if self._alone:
            self.engine.on_leaving(callback)

    def close(self, cause: str, final: bytes = b"") -> None:
        """End the stream, and what the pipe owns; `final` goes out before the end if a window is open for it.

        Idempotent, from any thread, never blocks.
        """
        with self.engine.lock:
            self.stream.final = final
            self.stream.end(cause)
            self.stream.inbox.clear()
        self._end(cause)

    def _start_writer(self) -> None:
        """Something is pending before anybody offered to flush: from now on a thread does it, until the end."""
        self.engine.on_pending_control(_nothing)
        start_thread(f"h2-writer {self.engine.wire.peer}", self.engine.writer_loop)


class _StreamReadiness(PostedReadiness):
    """That of a stream, whose connection is read by somebody else, or by the watcher too.

    Whoever brings something posts it, so that the pipe is read by the watcher alone.
    """

    def __init__(
        self, engine: Http2Engine, stream: Http2Stream, watcher: Watcher, waiting: Callable[[], bool], *, alone: bool
    ) -> None:
        super().__init__(watcher)
        self._engine = engine
        self._stream = stream
        self._waiting = waiting
        self._alone = alone

    def add(self, ready: Ready) -> None:
        with self._engine.lock:
            self._ready = ready
            self._stream.readable.listener = self._tell
            if self._waiting() or self._stream.over:
                self._tell()
            self._engine.leave_reading_locked(self._stream)

    def remove(self) -> None:
        with self._engine.lock:
            self._ready = self._stream.readable.listener = None
        self._engine.wake()

    def has_come(self) -> bool:
        with self._engine.lock:
            waiting = self._waiting()
        return waiting or self._engine.has_come(self._stream)

    def close(self) -> None:
        self.remove()
        if self._alone:
            self._engine.forget_watcher()


def _nothing() -> None:
    """Do nothing: the connection has a writer of its own."""
