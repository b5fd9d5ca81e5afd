"""One relayed connection that can be disturbed in every way a network does it, on a loop without threads of its own.

`Loop` is one thread with a selector and timers; `Link` copies bytes both ways between two sockets on it, and
has a method for each fault.  What happens when, `tests.support.chaos` decides.  Everything here but `Loop.call` and
`Loop.close` is for the loop's thread alone.
"""

from __future__ import annotations

import contextlib
import enum
import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from qanat.base.sockets import set_no_delay, set_reset_on_close

CHUNK = 64 * 1024
"""Bytes that are read, and delayed or truncated, in one piece."""
WAITING = 8 * 1024 * 1024
"""Bytes that may wait in one direction to be passed on later; without a delay it is one chunk."""
GRACE = 1.0
"""Seconds that both ends get to close after a clean cut, before they are reset."""


class Loop:
    """A thread that waits for sockets and timers.  `close` ends and joins it; what it watched is others' to close."""

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._ours, self._waker = socket.socketpair()
        self._ours.setblocking(False)
        self._calls: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._over = False
        self.failure: BaseException | None = None
        self._selector.register(self._ours, selectors.EVENT_READ, self._wake)
        self._thread = threading.Thread(target=self._run_loop, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], object]) -> None:
        """Have `function` called in the loop's thread, soon and in order.  From any thread; does not block."""
        self._calls.append(function)
        with contextlib.suppress(OSError):
            self._waker.send(b"!")

    def close(self) -> None:
        """End the thread after the calls that were made before.  Raises what a callback of the loop raised."""
        self.call(self._finish)
        self._thread.join()
        self._selector.close()
        self._ours.close()
        self._waker.close()
        if self.failure is not None:
            raise self.failure

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        self.at(time.monotonic() + seconds, function)

    def at(self, moment: float, function: Callable[[], object]) -> None:
        """Call `function` at `moment` of the monotonic clock."""
        heapq.heappush(self._timers, (moment, next(self._order), function))

    def watch(self, sock: socket.socket, events: int, callback: Callable[[int], None]) -> None:
        """From now on call `callback` when `sock` is ready for one of `events`; 0: no longer."""
        known = self._selector.get_map().get(sock)
        if known is None:
            if events:
                self._selector.register(sock, events, callback)
        elif not events:
            self._selector.unregister(sock)
        elif known.events != events:
            self._selector.modify(sock, events, callback)

    def _finish(self) -> None:
        self._over = True

    def _wake(self, mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ours.recv(4096)
        while self._calls:
            self._calls.popleft()()

    def _run_loop(self) -> None:
        try:
            while not self._over:
                timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
                for key, mask in self._selector.select(timeout):
                    key.data(mask)
                while self._timers and self._timers[0][0] <= time.monotonic():
                    heapq.heappop(self._timers)[2]()
        except BaseException as error:
            self.failure = error
            while not self._over:  # whoever waits for a call must not wait for ever
                self._selector.select()
                self._wake(0)


class Mode(enum.Enum):
    """What a direction does with its bytes."""

    LIVE = enum.auto()
    HELD = enum.auto()  # nothing is read, nothing passed on; the sender's buffers fill
    DEAD = enum.auto()  # everything is read and vanishes, an end too


class Direction:
    """One direction of a link.  Bytes wait until they are due, and then go out in their order."""

    def __init__(self, link: Link, source: socket.socket, target: socket.socket, delay: float) -> None:
        self._link, self.source, self.target = link, source, target
        self.mode = Mode.LIVE
        self.delay = delay
        self.truncate: float | None = None
        """This part of the next chunk is passed on, and then the link is reset."""
        self.passed = 0
        self.finished = False  # nothing more will come, and its end has been passed on, if it should be
        self.tap: Callable[[bytes], None] | None = None
        self.not_before = 0.0
        """Nothing is passed on before this moment."""
        self._queue: deque[tuple[float, memoryview]] = deque()
        self._waiting = 0
        self._alarm = 0.0
        self._ended = False
        self._blocked = False

    @property
    def wants_read(self) -> bool:
        return not self._ended and self.mode is not Mode.HELD and self._waiting < (WAITING if self.delay else CHUNK)

    @property
    def wants_write(self) -> bool:
        return self._blocked and self.mode is Mode.LIVE

    def die(self) -> None:
        """From now on all vanishes."""
        self.mode = Mode.DEAD
        self._queue.clear()
        self._waiting = 0
        self._blocked = False
        self.finished = self._ended

    def abandon(self) -> None:
        """The source is gone."""
        self._ended = True
        self.die()

    def read(self) -> None:
        """Take what is there.  Raises OSError when the source is broken."""
        data = self.source.recv(CHUNK)
        self._ended = not data
        if self.mode is Mode.DEAD:
            self.finished = self._ended
            return
        if self.tap is not None:
            self.tap(data)
        if self.truncate is not None and data:
            data = data[: max(1, int(len(data) * self.truncate))]
            self._ended = True
            self._link.end_truncated()
        # The order stays, when a delay becomes shorter too.
        self.not_before = max(self.not_before, time.monotonic() + self.delay)
        self._queue.append((self.not_before, memoryview(data)))
        self._waiting += len(data)

    def pass_on(self) -> None:
        """Send what is due, and see to it that the rest is when its time comes.  Raises OSError for a broken target."""
        self._blocked = False
        while self._queue and self.mode is Mode.LIVE:
            due, data = self._queue[0]
            if due > time.monotonic():
                if self._alarm != due:
                    self._alarm = due
                    self._link.loop.at(due, self._link.pass_on)
                return
            if data:
                try:
                    sent = self.target.send(data)
                except BlockingIOError:
                    self._blocked = True
                    return
                self.passed += sent
                self._waiting -= sent
                if sent < len(data):
                    self._queue[0] = due, data[sent:]
                    continue
            else:
                self.target.shutdown(socket.SHUT_WR)
                self.finished = True
            self._queue.popleft()


class Link:
    """A connection from `client` to `server`, both of which it owns.  `on_over` is called once, when both are closed.

    `on_carried` is called once, when `least` bytes have gone through in each direction.
    """

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        server: socket.socket,
        *,
        delay: float,
        least: int,
        on_carried: Callable[[Link], None],
        on_over: Callable[[Link], None],
    ) -> None:
        self.loop = loop
        self._sockets = {client, server}
        for sock in self._sockets:
            sock.setblocking(False)
            set_no_delay(sock)
        self.client, self.server = client, server
        self.up = Direction(self, client, server, delay)
        self.down = Direction(self, server, client, delay)
        # The kernel's handshake with the client was over at once, and on such a path takes a round trip.
        self.up.not_before = time.monotonic() + 3 * delay
        self._delay = delay
        self._least = least
        self.on_carried, self._on_over = on_carried, on_over
        self.carried = self.over = False
        self.disturbed = False
        """Whether a fault has struck; then the ends are no longer told of each other."""
        self._watch()

    # --- faults ---------------------------------------------------------------------------------

    def reset(self) -> None:
        """RST to both ends."""
        for sock in list(self._sockets):
            self._close(sock, reset=True)

    def cut(self) -> None:
        """FIN to both ends; whatever they still send vanishes."""
        self._strike()
        for direction in (self.up, self.down):
            direction.die()
            self._finish(direction.target)
        self.loop.later(GRACE, self.reset)
        self._watch()

    def half_open(self, told: socket.socket, *, gently: bool) -> None:
        """`told` gets a FIN (`gently`) or RST; the other end hears nothing, and what it sends vanishes."""
        self._strike()
        self.up.die()
        self.down.die()
        if gently:
            self._finish(told)
        else:
            self._close(told, reset=True)
        self._watch()

    def kill(self, direction: Direction) -> None:
        """What goes in this direction vanishes from now on; the other direction lives."""
        self._strike()
        direction.die()
        self._watch()

    def stall(self) -> None:
        """Nothing passes until `go_on`, and nobody is told."""
        self.up.mode = self.down.mode = Mode.HELD
        self._watch()

    def stall_for_ever(self) -> None:
        self._strike()
        self.stall()

    def go_on(self) -> None:
        """An end to stalls and delays, unless a fault has struck."""
        if not self.disturbed and not self.over:
            for direction in (self.up, self.down):
                direction.mode = Mode.LIVE
                direction.delay = self._delay
            self.pass_on()

    def slow_down(self, seconds: float) -> None:
        """Every chunk comes so much later, until `go_on`."""
        self.up.delay = self.down.delay = self._delay + seconds

    def truncate(self, direction: Direction, part: float) -> None:
        """The next chunk in this direction arrives in part only; then both ends are reset."""
        self._strike()
        direction.truncate = part
        self.loop.later(GRACE, self.reset)

    def end_truncated(self) -> None:
        # A reset discards what its receiver has not read: the part must have time to arrive.
        self.loop.later(0.005, self.reset)

    # --- carrying -------------------------------------------------------------------------------

    def pass_on(self) -> None:
        """Send what is due, both ways."""
        for direction in (self.up, self.down):
            if not self.over:
                self._guarded(direction.pass_on, direction.target)
        self._settle()

    def _ready(self, sock: socket.socket, mask: int) -> None:
        if mask & selectors.EVENT_READ and sock in self._sockets:
            self._guarded((self.up if sock is self.client else self.down).read, sock)
        self.pass_on()

    def _guarded(self, action: Callable[[], None], sock: socket.socket) -> None:
        """`action`, which uses `sock`; and what follows when that is broken."""
        try:
            action()
        except BlockingIOError:
            pass
        except OSError:
            if self.disturbed:
                self._close(sock, reset=True)
            else:
                self.reset()

    def _settle(self) -> None:
        if self.over:
            return
        if not self.carried and min(self.up.passed, self.down.passed) >= self._least:
            self.carried = True
            self.on_carried(self)
        if self.up.finished and self.down.finished:
            for sock in list(self._sockets):
                self._close(sock, reset=False)
        self._watch()

    def _watch(self) -> None:
        for sock in self._sockets:
            mine, other = (self.up, self.down) if sock is self.client else (self.down, self.up)
            events = mine.wants_read * selectors.EVENT_READ | other.wants_write * selectors.EVENT_WRITE
            self.loop.watch(sock, events, lambda mask, sock=sock: self._ready(sock, mask))  # type: ignore[misc]

    def _strike(self) -> None:
        self.go_on()
        self.disturbed = True

    def _finish(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    def _close(self, sock: socket.socket, *, reset: bool) -> None:
        if sock not in self._sockets:
            return
        self._sockets.discard(sock)
        self.loop.watch(sock, 0, self._ignore)
        set_reset_on_close(sock, reset)
        sock.close()
        mine, other = (self.up, self.down) if sock is self.client else (self.down, self.up)
        mine.abandon()
        other.die()
        if not self._sockets and not self.over:
            self.over = True
            self._on_over(self)

    def _ignore(self, mask: int) -> None:
        """For a socket that is no longer watched."""
