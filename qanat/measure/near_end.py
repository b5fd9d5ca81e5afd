"""The near end of the streams that measure: one step, in which one stream is pinged and another one is filled.

It sees sockets alone, as any application of a tunnel does; `qanat.client.measuring` joins them to streams.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from qanat.base.deadline import Deadline
from qanat.base.errors import QanatError
from qanat.base.sockets import close_socket
from qanat.base.threads import ThreadGroup
from qanat.measure.far_end import REPORT
from qanat.measure.figures import INTERVAL, Mark, Ping, Step
from qanat.session.messages import Measurement

PING_SIZE = 64
"""Bytes of a ping, and of its answer."""
PING_INTERVAL = 0.005
"""Seconds from one ping to the next, unless the answer takes longer: they must not load what they measure."""
LOOK = 0.1
"""Seconds between two looks at how far a step is."""
END = 60.0
"""Seconds that what is on its way when a step's time is up gets to arrive."""
WAITS = 1.0
"""Seconds after which whoever looks on is told that this takes its time."""

_BLOCK = 256 * 1024
_UPLOAD_BLOCK = bytes(_BLOCK)


class CutShort(QanatError):
    """A stream that measures has ended before its step did."""

    def __init__(self) -> None:
        super().__init__("the connection was lost")


class TooSlow(QanatError):
    """What was on its way when a step's time was up has not arrived within END seconds; nothing was lost."""

    def __init__(self) -> None:
        super().__init__(
            f"what was under way when its time was up did not arrive within {END:.0f} s: the path is too slow",
            hint="measure again when nothing else fills the path; where it is always this slow, `doctor` shows what it "
            "lets through, and another --transport may be faster",
        )


class MeasuredStep:
    """One step from `run` on.  `step` has what was timed so far, at any time; closed, it leaves no thread."""

    def __init__(self, load: Measurement | None, open_stream: Callable[[Measurement], socket.socket]) -> None:
        """`load` is what fills the path meanwhile, SINK or SOURCE; `open_stream` returns a socket joined to a stream.

        `open_stream` raises QanatError.
        """
        self._load = load
        self._open_stream = open_stream
        self._pings: list[Ping] = []
        self._marks: list[Mark] = []
        self._sockets: list[socket.socket] = []
        self._threads = ThreadGroup("measurement")
        self._time_is_up = threading.Event()
        self._ended = threading.Semaphore(0)  # released once for each thread
        self._cut_short = False
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._time_is_up.set()
        for sock in self._sockets:
            close_socket(sock)
        self._threads.join(END)

    @property
    def step(self) -> Step:
        """What was timed so far."""
        return Step(tuple(self._pings), tuple(self._marks))

    def run(self, seconds: float, look: Callable[[float], None], waits: Callable[[], None]) -> None:
        """Measure for so many seconds, and block until what is on its way then has come, END seconds at most.

        `look` is called about every LOOK seconds with the share that is done, from 0 to 1; `waits` once, when what is
        on its way takes more than WAITS seconds.  Raises CutShort, TooSlow, and what `open_stream` raises.
        """
        # The first stream's opening must not be in the first ping, nor in the throughput.
        pinged = self._open(Measurement.ECHO)
        self._ping_once(pinged)
        loaded = None if self._load is None else self._open(self._load)
        self._began = time.monotonic()
        self._start("ping", lambda: self._ping_loop(pinged))
        if loaded is not None:
            sock, run = loaded, self._upload_loop if self._load is Measurement.SINK else self._download_loop
            self._start("load", lambda: run(sock))
        deadline = Deadline(seconds)
        running = 1 if loaded is None else 2
        while not deadline.passed:
            look(1 - (deadline.remaining() or 0.0) / seconds)
            if self._ended.acquire(timeout=min(LOOK, deadline.remaining() or 0.0)):
                running -= 1
                break  # nothing ends before the time is up unless it was cut short
        self._time_is_up.set()
        patience, deadline, told = Deadline(WAITS), Deadline(END), False
        while running and not self._cut_short:
            if self._ended.acquire(timeout=LOOK):
                running -= 1
            elif deadline.passed:
                raise TooSlow
            elif patience.passed and not told:
                told = True
                waits()
        if self._cut_short:
            raise CutShort
        look(1.0)

    def _open(self, what: Measurement) -> socket.socket:
        sock = self._open_stream(what)
        self._sockets.append(sock)
        return sock

    def _start(self, name: str, loop: Callable[[], None]) -> None:
        def run() -> None:
            try:
                loop()
            except (OSError, CutShort):
                self._cut_short = True
            finally:
                self._ended.release()

        self._threads.start(name, run)

    # --- latency --------------------------------------------------------------------------------

    def _ping_once(self, sock: socket.socket) -> None:
        try:
            sock.sendall(bytes(PING_SIZE))
            missing = PING_SIZE
            while missing:
                data = sock.recv(missing)
                if not data:
                    raise CutShort
                missing -= len(data)
        except OSError:
            raise CutShort from None

    def _ping_loop(self, sock: socket.socket) -> None:
        asked = self._began
        while True:
            self._ping_once(sock)
            now = time.monotonic()
            self._pings.append(Ping(asked - self._began, now - asked))
            if self._time_is_up.wait(max(0.0, asked + PING_INTERVAL - now)):
                return
            asked = time.monotonic()

    # --- throughput -----------------------------------------------------------------------------

    def _download_loop(self, sock: socket.socket) -> None:
        """Receive until the time is up, and mark how much came; then have the source end."""
        block = bytearray(_BLOCK)
        received, marked = 0, 0.0
        self._marks.append(Mark(0.0, 0))
        while not self._time_is_up.is_set():
            size = sock.recv_into(block)
            if not size:
                raise CutShort
            received += size
            now = time.monotonic() - self._began
            if now - marked >= INTERVAL:
                self._marks.append(Mark(now, received))
                marked = now
        sock.shutdown(socket.SHUT_WR)
        while sock.recv_into(block):
            pass

    def _upload_loop(self, sock: socket.socket) -> None:
        """Send until the time is up, and mark how much the sink says has come; then wait for its last word."""
        sock.setblocking(False)
        said, sent, sending = b"", 0, True
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while True:
                if sending and self._time_is_up.is_set():
                    sock.shutdown(socket.SHUT_WR)
                    selector.modify(sock, selectors.EVENT_READ)
                    sending = False
                for _, ready in selector.select(LOOK):
                    if ready & selectors.EVENT_READ:
                        data = sock.recv(_BLOCK)
                        if not data:
                            if sending or not self._marks or self._marks[-1].received != sent:
                                raise CutShort
                            return
                        said = self._mark(said + data)
                    if ready & selectors.EVENT_WRITE and sending:
                        with contextlib.suppress(BlockingIOError):
                            sent += sock.send(_UPLOAD_BLOCK)

    def _mark(self, said: bytes) -> bytes:
        """Mark what the sink has reported; return the beginning of a report that has not come whole."""
        whole = len(said) - len(said) % REPORT.size
        for received, microseconds in REPORT.iter_unpack(said[:whole]):
            if not self._marks:
                self._marks.append(Mark(0.0, 0))
            self._marks.append(Mark(microseconds / 1e6, received))
        return said[whole:]
