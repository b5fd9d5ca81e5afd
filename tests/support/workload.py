"""Applications of every kind at once, through a tunnel or without one, each byte of theirs checked at either end.

A `Workload` serves the target itself, and drives a number of *slots* that connect to it through given ports: half
through the first, half through the second.  Each slot has a shape from SHAPES and keeps it until `stop`: some hold
one stream all the time, others open one after the other.  What a stream carries is made from the seed, the stream's
number and the direction, so that no byte can be lost, doubled, reordered or mixed up with another stream's unseen.

A stream that gets a wrong byte, ends early or otherwise than its shape wants, or hangs, is a failure that names
stream, direction, offset and seed.  The flows of bytes are in `tests.support.flows`.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from qanat.base.sockets import set_no_delay, set_reset_on_close
from tests.support.applications import CHUNK, END, Target
from tests.support.flows import Flow, Wrong

PATIENCE = 20.0
"""Seconds without any progress after which a stream counts as hanging."""
_LABEL = 8


@dataclass(frozen=True, slots=True)
class Totals:
    """What a workload has carried, all of it checked."""

    seconds: float
    streams: int
    up: int
    down: int
    turns: int  # requests that were answered
    resets: int  # that applications made on purpose, and that arrived as resets
    slowest: float  # seconds that the slowest answer took


@dataclass(eq=False, slots=True)
class _Stream:
    """One stream, as both of its ends know it."""

    number: int
    shape: str
    up: Flow
    down: Flow
    key: str  # for what else both ends must draw alike
    sizes: tuple[int, int]  # bytes up and down, where the shape has them
    over: threading.Event  # the target's end is done

    def __str__(self) -> str:
        return f"stream {self.number} ({self.shape.replace('_', ' ')})"


class Workload:
    """`slots` applications at once; `start` them, `stop` them, `close` whatever is left.

    `address` is where a forward has to lead.  `pace` stretches all pauses between two writes; with 1.0 fifty slots
    carry about 10 MB/s each way and leave most of two cores to others.
    """

    def __init__(self, *, seed: int, slots: int = 50, pace: float = 1.0, patience: float = PATIENCE) -> None:
        self.seed = seed
        self._slots, self._pace, self._patience = slots, pace, patience
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}
        self._sockets: set[socket.socket] = set()
        self._failures: list[str] = []
        self._stop = threading.Event()
        self._aborted = False
        self._count = self._up = self._down = self._write_lock = self._resets = 0
        self._slowest = 0.0
        self._threads: list[threading.Thread] = []
        self._began = time.monotonic()
        self._target = Target(self._serve)
        self.address = self._target.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self, *ports: int) -> Self:
        """Begin to connect to these local ports, in turn; each of them leads to `address`."""
        self._began = time.monotonic()
        for slot in range(self._slots):
            # Neighbors have the same shape, so that every shape goes through every port.
            shape = SHAPES[slot // len(ports) % len(SHAPES)]
            arguments = (slot, shape, ports[slot % len(ports)])
            thread = threading.Thread(target=self._run_loop, args=arguments, name=f"slot {slot}, {shape}")
            self._threads.append(thread)
            thread.start()
        return self

    def check(self) -> None:
        """Raise AssertionError with what has failed so far, if anything has."""
        with self._lock:
            failures = list(self._failures)
        if failures:
            shown = "\n".join(failures[:10])
            raise AssertionError(f"{len(failures)} failures of a workload with seed {self.seed}:\n{shown}")

    def stop(self) -> Totals:
        """Finish every stream in an orderly way, check it to its last byte, and report.  Blocks until then."""
        self._stop.set()
        deadline = time.monotonic() + 2 * self._patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hanging = [thread.name for thread in self._threads if thread.is_alive()]
        with self._lock:
            unfinished = [str(stream) for stream in self._streams.values()]
        self.check()
        assert not hanging, f"with seed {self.seed} these go on after stop: {hanging}"
        assert not unfinished, f"with seed {self.seed} these have not ended: {unfinished}"
        return self.totals

    @property
    def totals(self) -> Totals:
        """What has been carried so far by streams that are over, and by the others up to now."""
        with self._lock:
            flows = list(self._streams.values())
            return Totals(
                seconds=time.monotonic() - self._began,
                streams=self._count,
                up=self._up + sum(stream.up.received for stream in flows),
                down=self._down + sum(stream.down.received for stream in flows),
                turns=self._write_lock,
                resets=self._resets,
                slowest=self._slowest,
            )

    def close(self) -> None:
        """End everything at once, whatever state it is in; joins every thread."""
        self._stop.set()
        with self._lock:
            self._aborted = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._target.close()
        for thread in self._threads:
            thread.join()

    # --- the connecting end -----------------------------------------------------------------------

    def _run_loop(self, slot: int, shape: str, port: int) -> None:
        """One slot: streams of one shape, one after the other."""
        chance = random.Random(f"{self.seed}/slot/{slot}")
        near, _ = _ENDS[shape]
        while not self._stop.is_set():
            stream = self._new_stream(shape, chance)
            if not self._guarded(stream, "the connecting end", lambda s=stream: self._connect(s, port, near)):  # type: ignore[misc]
                return
            # The target's end finishes a moment after ours, and may have something to say.
            if not stream.over.wait(self._patience):
                self._fail(f"{stream}: the connecting end is done, and the target's is not")
                return
            self._stop.wait(self._pace * chance.uniform(0.05, 0.3))  # the pace at which people and programs connect

    def _connect(self, stream: _Stream, port: int, near: _End) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=self._patience) as sock:
            set_no_delay(sock)
            self._track(sock)
            try:
                sock.sendall(stream.number.to_bytes(_LABEL, "big"))
                near(self, stream, sock)
            finally:
                with self._lock:
                    self._sockets.discard(sock)

    def _track(self, sock: socket.socket) -> None:
        with self._lock:
            if self._aborted:
                raise ConnectionAbortedError("the workload is being closed")
            self._sockets.add(sock)

    def _new_stream(self, shape: str, chance: random.Random) -> _Stream:
        small, large = _SIZES[shape]
        with self._lock:
            number = next(self._numbers)
            stream = _Stream(
                number=number,
                shape=shape,
                up=Flow(f"{self.seed}/{number}/up"),
                down=Flow(f"{self.seed}/{number}/down"),
                key=f"{self.seed}/{number}",
                sizes=(chance.randint(small, large), chance.randint(small, large)),
                over=threading.Event(),
            )
            self._streams[number] = stream
            self._count += 1
        return stream

    # --- the target's end -------------------------------------------------------------------------

    def _serve(self, sock: socket.socket, target: Target) -> str:
        sock.settimeout(self._patience)
        stream = None
        try:
            stream = self._labeled(sock)
            if stream is not None:
                _, far = _ENDS[stream.shape]
                self._guarded(stream, "the target's end", lambda: far(self, stream, sock))
        finally:
            if stream is not None:
                with self._lock:
                    del self._streams[stream.number]
                    self._up += stream.up.received
                    self._down += stream.down.received
                stream.over.set()
        return END

    def _labeled(self, sock: socket.socket) -> _Stream | None:
        """Read which stream this is.  None after a failure."""
        label = b""
        try:
            while len(label) < _LABEL:
                part = sock.recv(_LABEL - len(label))
                if not part:
                    raise Wrong(f"it ended after {len(label)} bytes")
                label += part
            with self._lock:
                return self._streams[int.from_bytes(label, "big")]
        except (OSError, Wrong, KeyError) as error:
            self._fail(f"a connection came to the target without its label: {label.hex()!r}, {error!r}")
            return None

    # --- for the shapes ---------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def pause(self, seconds: float) -> None:
        """The pace of the application: not a wait for anything.  Ends early when the workload is to stop."""
        self._stop.wait(seconds * self._pace)

    def answered(self, seconds: float) -> None:
        with self._lock:
            self._write_lock += 1
            self._slowest = max(self._slowest, seconds)

    def reset_arrived(self) -> None:
        with self._lock:
            self._resets += 1

    def both(self, stream: _Stream, sock: socket.socket, receive: Callable[[], None], send: Callable[[], None]) -> None:
        """Run `send` in a thread of its own beside `receive`; the first that fails ends the other, and is raised."""
        failed: list[Exception] = []

        def guarded(action: Callable[[], None]) -> None:
            try:
                action()
            except (OSError, Wrong) as error:
                failed.append(error)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=guarded, args=(send,), name=f"sender of {stream}")
        thread.start()
        guarded(receive)
        thread.join()
        if failed:
            raise failed[0]

    # --- failures ---------------------------------------------------------------------------------

    def _guarded(self, stream: _Stream, end: str, action: Callable[[], None]) -> bool:
        """Whether `action` succeeded; what went wrong is a failure of `stream`, seen by `end`."""
        try:
            action()
        except TimeoutError:
            self._fail(f"{stream}: {end} hangs for {self._patience:g} s; {_progress(stream)}")
        except (OSError, Wrong) as error:
            what = str(error) if isinstance(error, Wrong) else f"got {error!r}"
            self._fail(f"{stream}: {end} {what}; {_progress(stream)}")
        else:
            return True
        return False

    def _fail(self, message: str) -> None:
        with self._lock:
            if not self._aborted:
                self._failures.append(message)


def _progress(stream: _Stream) -> str:
    return (
        f"up {stream.up.received} of {stream.up.sent} bytes arrived right, "
        f"down {stream.down.received} of {stream.down.sent}"
    )


# --- the shapes -----------------------------------------------------------------------------------
# Of each, the end that connects and the target's end.  The sending of one direction and the receiving of the other
# stand side by side in a function when they take turns, and in two threads when they do not.

_End = Callable[[Workload, _Stream, socket.socket], None]
_BLOCK = 16 * 1024
_BURST = 512 * 1024


def _send_block(sock: socket.socket, flow: Flow, count: int) -> None:
    sock.sendall(flow.make(count))


def _send_all(sock: socket.socket, flow: Flow, count: int) -> None:
    """`count` bytes, then the end of this direction."""
    while flow.sent < count:
        _send_block(sock, flow, min(_BLOCK, count - flow.sent))
    sock.shutdown(socket.SHUT_WR)


def _receive(sock: socket.socket, flow: Flow, count: int, *, or_end: bool = False) -> bool:
    """Exactly `count` bytes.  False when it was the end instead, which `or_end` allows before the first of them."""
    left = count
    while left:
        data = sock.recv(min(left, CHUNK))
        if not data:
            if or_end and left == count:
                return False
            raise Wrong(f"got the end at offset {flow.received} with {left} bytes to come")
        flow.check(data)
        left -= len(data)
    return True


def _receive_to_end(sock: socket.socket, flow: Flow) -> None:
    while data := sock.recv(CHUNK):
        flow.check(data)
    flow.check_end()


def _steady_sender(work: Workload, sock: socket.socket, flow: Flow, block: int, pause: float) -> Callable[[], None]:
    """Sends a block after each pause until the workload stops, then finishes."""

    def send() -> None:
        while not work.stopping:
            _send_block(sock, flow, block)
            work.pause(pause)
        # Not all end at the same block boundary.
        _send_block(sock, flow, flow.sent % 977 + 1)
        sock.shutdown(socket.SHUT_WR)

    return send


def _duplex(block: int, pause: float) -> tuple[_End, _End]:
    """Both ends send all the time, and read all the time."""

    def near(work: Workload, stream: _Stream, sock: socket.socket) -> None:
        send = _steady_sender(work, sock, stream.up, block, pause)
        work.both(stream, sock, lambda: _receive_to_end(sock, stream.down), send)

    def far(work: Workload, stream: _Stream, sock: socket.socket) -> None:
        send = _steady_sender(work, sock, stream.down, block, pause)
        work.both(stream, sock, lambda: _receive_to_end(sock, stream.up), send)

    return near, far


def _write_lock(stream: _Stream) -> Iterator[tuple[int, int]]:
    """The sizes of every request and its answer, as both ends know them."""
    chance = random.Random(f"{stream.key}/turns")
    while True:
        yield chance.randint(1, 2000), chance.randint(1, 4000)


def _ping_pong_near(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    """Requests and answers in turn."""
    for request, answer in _write_lock(stream):
        began = time.monotonic()
        _send_block(sock, stream.up, request)
        _receive(sock, stream.down, answer)
        work.answered(time.monotonic() - began)
        work.pause(0.02)
        if work.stopping:
            break
    sock.shutdown(socket.SHUT_WR)
    _receive_to_end(sock, stream.down)


def _ping_pong_far(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    for request, answer in _write_lock(stream):
        if not _receive(sock, stream.up, request, or_end=True):
            break
        _send_block(sock, stream.down, answer)
    stream.up.check_end()
    sock.shutdown(socket.SHUT_WR)


def _near_finishes_first(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    """The whole request, its end, and only then the whole reply."""
    up, _ = stream.sizes
    began = time.monotonic()
    _send_all(sock, stream.up, up)
    _receive_to_end(sock, stream.down)
    work.answered(time.monotonic() - began)


def _far_replies_after_end(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    _, down = stream.sizes
    _receive_to_end(sock, stream.up)
    _send_all(sock, stream.down, down)


def _near_replies_after_end(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    """The target speaks first and finishes; what goes up after that arrives whole."""
    up, _ = stream.sizes
    _receive_to_end(sock, stream.down)
    work.pause(0.05)  # half open for a while
    _send_all(sock, stream.up, up)


def _far_finishes_first(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    _, down = stream.sizes
    _send_all(sock, stream.down, down)
    _receive_to_end(sock, stream.up)


def _resetter(sock: socket.socket, coming: Flow, count: int, going: Flow, before: int) -> None:
    """Take all that the other end says, say something, and reset in the middle of it."""
    _receive(sock, coming, count)
    while going.sent < before:
        _send_block(sock, going, min(_BLOCK, before - going.sent))
    set_reset_on_close(sock, True)
    sock.close()


def _victim(work: Workload, sock: socket.socket, coming: Flow, going: Flow, count: int) -> None:
    """Say something, then read to what must be a reset: an orderly end would pass off a torso as the whole.

    One thread alone uses the socket: Linux reports a reset once, to whoever comes first.
    """
    _send_block(sock, going, count)
    try:
        while data := sock.recv(CHUNK):
            coming.check(data)
    except ConnectionResetError:
        work.reset_arrived()
        return
    raise Wrong(f"got an orderly end at offset {coming.received}, where the other end had reset the stream")


_SPOKEN = 4096
"""Bytes that the victim of a reset says: they fit into every buffer on the way."""


def _near_resets(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    _resetter(sock, stream.down, _SPOKEN, stream.up, stream.sizes[0])


def _far_suffers(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    _victim(work, sock, stream.up, stream.down, _SPOKEN)


def _near_suffers(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    _victim(work, sock, stream.down, stream.up, _SPOKEN)


def _far_resets(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    _resetter(sock, stream.up, _SPOKEN, stream.down, stream.sizes[1])


def _slow_reader(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    """Reads little at a time, far slower than it could be sent, until the workload stops."""
    chance = random.Random(stream.key)
    while not work.stopping:
        _receive(sock, stream.down, chance.randint(1, 4096))
        work.pause(0.02)
    sock.shutdown(socket.SHUT_WR)
    _receive_to_end(sock, stream.down)


def _fast_sender(work: Workload, stream: _Stream, sock: socket.socket) -> None:
    # Small buffers here, so that it is the tunnel that holds it back.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BLOCK)
    while not work.stopping:
        block, before = memoryview(stream.down.make(_BLOCK)), stream.down.received
        while block:
            try:
                block = block[sock.send(block) :]
            except TimeoutError:
                # Credit for a window that has grown comes by its half, which such a reader takes a while for.
                if stream.down.received == before:
                    raise
                before = stream.down.received
    sock.shutdown(socket.SHUT_WR)
    _receive_to_end(sock, stream.up)


_ENDS: dict[str, tuple[_End, _End]] = {
    "duplex": _duplex(_BLOCK // 2, 0.05),
    "ping_pong": (_ping_pong_near, _ping_pong_far),
    "short": (_near_finishes_first, _far_replies_after_end),
    "half_close_by_the_client": (_near_finishes_first, _far_replies_after_end),
    "half_close_by_the_target": (_near_replies_after_end, _far_finishes_first),
    "reset_by_the_client": (_near_resets, _far_suffers),
    "reset_by_the_target": (_near_suffers, _far_resets),
    "slow_reader": (_slow_reader, _fast_sender),
    "bursts": _duplex(_BURST, 1.0),
}
_SIZES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(_ENDS, (0, 0)),
    "short": (0, 200),
    "half_close_by_the_client": (0, 300_000),
    "half_close_by_the_target": (0, 300_000),
    "reset_by_the_client": (0, 100_000),
    "reset_by_the_target": (0, 100_000),
}
SHAPES = tuple(_ENDS)
"""What slots do, by name."""
