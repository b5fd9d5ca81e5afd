"""A WebSocket connection as a `Pipe`, once its opening handshake is done.

    send:  header into the headroom, mask in place, one `send_all`
    recv:  large reads into one buffer, a whole binary message returned as a view into it

A frame that is anything but a whole binary message goes through the library's machine.  What the library
wants to answer becomes state here, never a queue: the last ping's pong.  The writing thread sends it (`flush`, or
in front of its next message), because a reader that writes can wait for its peer's reader for ever.
Made by `upgrade.connect` and `upgrade.accept`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from qanat.base.errors import LocalError, PipeEnded, ProtocolError, TransportError
from qanat.base.watcher import Watcher
from qanat.transports.cause import FirstCause
from qanat.transports.pipe import MAX_MESSAGE, MAX_UNAUTHENTICATED, Pipe, Wire, silent_for
from qanat.transports.readiness import Readiness
from qanat.transports.websocket.frames import (
    CLIENT_HEADROOM,
    SERVER_HEADROOM,
    CloseCode,
    Frame,
    FrameError,
    FrameReader,
    Opcode,
    close_frame,
    ping_frame,
    write_header,
)
from qanat.transports.websocket.machine import Machine
from qanat.transports.websocket.mask import MaskKeys, xor_mask

MAX_UNUSUAL_UNAUTHENTICATED = 64
"""Frames that are no whole message, and cost a hundred times more than their bytes, before authentication."""

FIRST_NUDGE, LAST_NUDGE = 0.1, 1.0
"""Seconds between two pings while a client waits for the peer's first bytes: doubled each time."""

PONG_PAUSES = (0.0, 0.001, 0.01)
"""Seconds before each try to answer a ping in a handshake: whoever sends on a shared connection is done by then."""

UNUSUAL_AT_ONCE = 64
"""The same, that one `recv_within` which must not block looks at: a peer that pings without end must not keep it."""


class WebSocketPipe(Pipe):
    """Owns `wire`.  The lock is held for the whole of a write, so that nothing can get into a frame half sent."""

    def __init__(
        self,
        wire: Wire,
        machine: Machine,
        *,
        is_client: bool,
        first: bytes = b"",
        transport: str = "websocket",
        nudge: bool = False,
    ) -> None:
        """`first` are bytes that were read together with the HTTP head.  Sends nothing.

        With `nudge` a client pings while it waits for the peer's first bytes, and the wire can `recv_within`: a proxy
        on the path may hold them back until more has come both ways.
        """
        self.transport = transport
        self.peer = wire.peer
        self.addresses = wire.addresses
        self.headroom = wire.headroom + (CLIENT_HEADROOM if is_client else SERVER_HEADROOM)
        self.max_message = MAX_MESSAGE
        self._wire = wire
        self._machine = machine
        self._reader = FrameReader(masked=not is_client, max_message=self.max_message, first=first)
        self._keys = MaskKeys() if is_client else None
        self._cause = FirstCause()
        self._unusual_left: int | None = None
        self._flooded = False
        self._nudge = nudge
        self._read_timeout: float | None = None
        self._send_lock = threading.Lock()
        self._send_failure: str | None = None  # the path failed for sending; there may be something to receive
        self._pong_lock = threading.Lock()  # guards the next line; held for moments
        self._pending_pong = b""  # the pong for the last ping
        self._wakeup: Callable[[], None] | None = None

    def send(self, buffer: memoryview) -> None:
        """See `Pipe.send`."""
        length = len(buffer) - self.headroom
        if not 0 <= length <= self.max_message:
            raise LocalError(f"a message of {length} bytes is outside the limit of {self.max_message}")
        with self._send_lock:
            frame = self._frame_locked(buffer)
            if self._pending_pong:
                self._send_pong_locked()
            self._send_locked(frame)

    @property
    def can_send_now(self) -> bool:
        """See `Pipe.can_send_now`."""
        return not self._pending_pong and self._wire.can_send_now

    @property
    def unsent(self) -> int:
        """See `Pipe.unsent`."""
        return self._wire.unsent

    def send_now(self, buffer: memoryview) -> bool:
        """See `Pipe.send_now`."""
        with self._send_lock:
            frame = self._frame_locked(buffer)
            if self._cause.text is not None or self._send_failure is not None:
                self._check_sendable_locked()
            try:
                return self._wire.send_now(frame)
            except TransportError as error:
                self._fail(error)

    def _frame_locked(self, buffer: memoryview) -> memoryview:
        """Mask the message behind the headroom in place, put the header in front of it, and return the whole frame.

        The wire's own headroom is in front of that.
        """
        headroom, key = self.headroom, None
        if self._keys is not None:
            key = self._keys.next()
            xor_mask(buffer[headroom:], key)
        return buffer[write_header(buffer, headroom, key) - self._wire.headroom :]

    def recv(self) -> memoryview:
        """See `Pipe.recv`."""
        message = self.recv_within(None)
        assert message is not None  # the end is raised
        return message

    def watch(self) -> int | None:
        """See `Pipe.watch`."""
        try:
            return self._wire.watch()
        except TransportError as error:
            self._end(error.message, b"")
            raise self._cause.error() from error

    def unwatch(self) -> None:
        """See `Pipe.unwatch`."""
        self._wire.unwatch()

    def readiness(self, watcher: Watcher) -> Readiness | None:
        """See `Pipe.readiness`."""
        try:
            return self._wire.readiness(watcher)
        except TransportError as error:
            self._end(error.message, b"")
            raise self._cause.error() from error

    def trim(self) -> None:
        """See `Pipe.trim`."""
        self._reader.trim()
        self._wire.trim()

    @property
    def flooded(self) -> bool:
        """See `Pipe.flooded`."""
        return self._flooded

    @property
    def buffered(self) -> bool:
        """See `Pipe.buffered`."""
        return not self._reader.starved or self._wire.buffered

    @property
    def holds_message(self) -> bool:
        """See `Pipe.holds_message`."""
        return self._reader.holds_message

    def recv_within(self, seconds: float | None) -> memoryview | None:
        """See `Pipe.recv_within`; with None it waits as `recv` does."""
        unusual = 0
        reader, cause = self._reader, self._cause
        self._flooded = False
        try:
            while cause.text is None:
                if reader.starved and not self._receive(seconds):
                    return None
                frame = reader.next()
                if isinstance(frame, memoryview):
                    return frame
                if frame is None:
                    continue
                message = self._receive_unusual(frame)
                if message is not None:
                    return message
                unusual += 1
                if seconds == 0 and unusual >= UNUSUAL_AT_ONCE:
                    self._flooded = True
                    return None
        except FrameError as error:
            text = f"the other end broke the WebSocket protocol: {error}"
            if self._end(text, self._close_frame(error.code)):
                raise ProtocolError(text) from error
        except TransportError as error:
            self._end(error.message, b"")
        except ProtocolError as error:
            self._end(error.message, b"")
            raise
        raise self._cause.error()

    def set_read_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_read_timeout`."""
        self._read_timeout = seconds
        with contextlib.suppress(TransportError):  # the wire is closed, and the next recv says why
            self._wire.set_read_timeout(seconds)

    def set_write_timeout(self, seconds: float | None) -> None:
        """See `Pipe.set_write_timeout`."""
        with contextlib.suppress(TransportError):  # likewise
            self._wire.set_write_timeout(seconds)

    def set_unauthenticated(self, unauthenticated: bool) -> None:
        """See `Pipe.set_unauthenticated`."""
        self._reader.max_message = MAX_UNAUTHENTICATED if unauthenticated else self.max_message
        self._unusual_left = MAX_UNUSUAL_UNAUTHENTICATED if unauthenticated else None
        self._wire.set_unauthenticated(unauthenticated)

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """See `Pipe.set_wakeup`."""
        self._wire.set_wakeup(wakeup)
        with self._pong_lock:
            self._wakeup = wakeup
            pong = bool(self._pending_pong)
        if pong:
            wakeup()

    def set_on_leaving(self, callback: Callable[[], None]) -> None:
        """See `Pipe.set_on_leaving`."""
        self._wire.set_on_leaving(callback)

    def flush(self) -> None:
        """See `Pipe.flush`."""
        with self._send_lock:
            if self._pending_pong:
                self._send_pong_locked()
            try:
                self._wire.flush()
            except TransportError as error:
                self._fail(error)

    def close(self, cause: str) -> None:
        """See `Pipe.close`."""
        self._end(cause, self._close_frame(CloseCode.NORMAL))

    @property
    def cause(self) -> str | None:
        """See `Pipe.cause`."""
        return self._cause.text

    def _receive(self, seconds: float | None) -> bool:
        """Read more; False when nothing has come for `seconds`, where that is a number."""
        space = self._reader.space()
        if seconds is not None:
            count = self._wire.recv_within(space, seconds)
        elif self._nudge:
            count = self._receive_first(space)
        else:
            count = self._wire.recv_into(space)
        if count is None:
            return False
        self._nudge = False
        if count == 0:
            where = " in the middle of a message" if self._reader.in_the_middle else ""
            raise TransportError(f"the connection was closed by the other end or the path{where}")
        self._reader.filled(count)
        return True

    def _receive_first(self, space: memoryview) -> int:
        """Block for the peer's first bytes; a ping goes out at once, and again and again."""
        step, left = FIRST_NUDGE, self._read_timeout
        while left is None or left > 0:
            self._nudge_now()
            count = self._wire.recv_within(space, step if left is None else min(step, left))
            if count is not None:
                return count
            left = None if left is None else left - step
            step = min(2 * step, LAST_NUDGE)
        raise TransportError(silent_for(self._read_timeout or 0.0))

    def _nudge_now(self) -> None:
        if self._keys is not None:
            self._try_to_send(ping_frame(self._keys.next()))

    def _try_to_send(self, frame: bytes) -> bool:
        """Send a control frame, as the thread that reads, if that can be done at once and nobody else is sending."""
        if not self._send_lock.acquire(blocking=False):
            return False
        try:
            if not self._wire.can_send_now or self._cause.text is not None or self._send_failure is not None:
                return False
            with contextlib.suppress(TransportError):  # receiving says why
                self._wire.send_now(bytes(self._wire.headroom) + frame)
            return True
        finally:
            self._send_lock.release()

    def _receive_unusual(self, frame: Frame) -> memoryview | None:
        """Have the library decide what `frame` means; return a message if one is now whole."""
        if self._unusual_left is not None:
            if not self._unusual_left:
                raise FrameError(
                    CloseCode.PROTOCOL_ERROR, f"more than {MAX_UNUSUAL_UNAUTHENTICATED} pings or fragments at once"
                )
            self._unusual_left -= 1
        outcome = self._machine.receive(bytes(frame.raw))
        if outcome.closed is not None:
            self._end(outcome.closed, outcome.answer)
        elif outcome.answer and frame.opcode == Opcode.PING:
            self._answer_ping(outcome.answer)
        return None if outcome.message is None else memoryview(bytearray(outcome.message))

    def _answer_ping(self, pong: bytes) -> None:
        """Have the writer answer.

        In a handshake nobody writes yet, and who asks may wait for it: then answer here, if that is possible.  The
        handshake's own thread reads, so it may wait for a moment.
        """
        if self._unusual_left is not None:
            for pause in PONG_PAUSES:
                time.sleep(pause)
                if self._try_to_send(pong):
                    return
        with self._pong_lock:
            self._pending_pong = pong
            wakeup = self._wakeup
        if wakeup is not None:
            wakeup()

    def _send_pong_locked(self) -> None:
        with self._pong_lock:
            pong, self._pending_pong = self._pending_pong, b""
        self._send_locked(bytes(self._wire.headroom) + pong)

    def _check_sendable_locked(self) -> None:
        if self._cause.text is not None:
            raise self._cause.error()
        if self._send_failure is not None:
            raise PipeEnded(self._send_failure)

    def _send_locked(self, data: bytes | memoryview) -> None:
        self._check_sendable_locked()
        try:
            self._wire.send_all(data)
        except TransportError as error:
            self._fail(error)

    def _fail(self, error: TransportError) -> NoReturn:
        """Note that the path failed while sending.  `recv` goes on until its own end: the peer may have said why."""
        self._send_failure = error.message
        if self._cause.text is not None:
            raise self._cause.error() from error
        raise PipeEnded(error.message) from error

    def _close_frame(self, code: int) -> bytes:
        return close_frame(code, None if self._keys is None else os.urandom(4))

    def _end(self, cause: str, closing: bytes) -> bool:
        """Close the wire if `cause` is the first; `closing` only if no frame is half sent.  Does not block."""
        if not self._cause.set(cause):
            return False
        if self._send_lock.acquire(blocking=False):
            try:
                self._wire.close(b"" if self._send_failure is not None else closing)
            finally:
                self._send_lock.release()
        else:
            self._wire.close()
        return True
