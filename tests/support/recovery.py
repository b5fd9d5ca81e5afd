"""How long a stream stands still when its connection is cut, as the applications at its ends see it.

A `Heartbeat` is one stream on which both ends send a numbered byte every millisecond.  `recovery_times` cuts the
connection under it again and again.  Callers: tests/integration and `benchmarks.recovery`.
"""

from __future__ import annotations

import bisect
import contextlib
import random
import socket
import threading
import time
from types import TracebackType
from typing import Self

from qanat.base.sockets import close_socket, set_no_delay
from tests.support.applications import END, Target
from tests.support.chaos import ChaosRelay
from tests.support.harness import SECONDS

BEAT = 0.001
"""Seconds between two bytes."""
_CYCLE = 251
_BETWEEN = (0.2, 0.5)
"""Seconds from a recovery to the next cut, at random: no clock of the tunnel's may be in step with it."""


class Direction:
    """One direction: when each byte was sent, and when it had arrived.  The bytes are numbered, and checked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._sent: list[float] = []
        self._arrived: list[int] = [0]  # bytes that had come ...
        self._at: list[float] = [0.0]  # ... at this moment
        self._failure = ""
        self._changed = threading.Condition()

    def send_loop(self, sock: socket.socket, stop: threading.Event) -> None:
        with contextlib.suppress(OSError):  # the reader has more to say about it
            while not stop.wait(BEAT):  # the pace of the measurement
                self._sent.append(time.monotonic())
                sock.sendall(bytes([(len(self._sent) - 1) % _CYCLE]))

    def receive_loop(self, sock: socket.socket, stop: threading.Event) -> None:
        """Until the stream ends, which it may do only after `stop`."""
        failure = "it ended"
        try:
            while data := sock.recv(65536):
                count = self._arrived[-1]
                if data != bytes((count + number) % _CYCLE for number in range(len(data))):
                    failure = f"wrong bytes came after {count}: {data[:16].hex()}"
                    break
                with self._changed:
                    self._arrived.append(count + len(data))
                    self._at.append(time.monotonic())
                    self._changed.notify_all()
        except OSError as error:
            failure = f"{error!r} after {self._arrived[-1]} bytes"
        with self._changed:
            self._failure = "" if stop.is_set() else failure
            self._changed.notify_all()

    def wait_sent_after(self, moment: float) -> float:
        """Block until the first byte that was sent after `moment` has arrived; when that was."""
        deadline = time.monotonic() + SECONDS
        with self._changed:
            while True:
                number = bisect.bisect_left(self._sent, moment)
                if self._arrived[-1] > number:
                    return self._at[bisect.bisect_right(self._arrived, number)]
                assert not self._failure, f"{self.name}: {self._failure}"
                assert time.monotonic() < deadline, f"{self.name}: nothing new after {self._arrived[-1]} bytes"
                self._changed.wait(0.1)


class Heartbeat:
    """Serves the target at `address`; `connect` begins, `close` ends it."""

    def __init__(self) -> None:
        self.up, self.down = Direction("up"), Direction("down")
        self._stop = threading.Event()
        self._sock: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._target = Target(self._serve)
        self.address = self._target.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def connect(self, port: int) -> None:
        """Open the one stream through `port`; returns when bytes flow both ways."""
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self._threads = self._start(self._sock, self.up, self.down)
        for direction in (self.up, self.down):
            direction.wait_sent_after(0.0)

    def close(self) -> None:
        self._stop.set()
        if self._sock is not None:
            close_socket(self._sock)
        self._target.close()
        for thread in self._threads:
            thread.join()

    def _serve(self, sock: socket.socket, target: Target) -> str:
        for thread in self._start(sock, self.down, self.up):
            thread.join()
        return END

    def _start(self, sock: socket.socket, out: Direction, back: Direction) -> list[threading.Thread]:
        set_no_delay(sock)
        threads = [
            threading.Thread(target=loop, args=(sock, self._stop), name=f"beat {direction.name}")
            for direction, loop in ((out, out.send_loop), (back, back.receive_loop))
        ]
        for thread in threads:
            thread.start()
        return threads


def recovery_times(relay: ChaosRelay, beat: Heartbeat, cuts: int, *, seed: int = 1) -> list[float]:
    """Reset the connection under `beat` `cuts` times; the seconds that each took to heal.

    That is, from the reset until a byte that was sent after it has arrived, in the later of both directions.
    """
    chance = random.Random(seed)
    times = []
    for _ in range(cuts):
        time.sleep(chance.uniform(*_BETWEEN))
        accepted = relay.accepted
        cut = relay.cut()
        arrived = max(direction.wait_sent_after(cut) for direction in (beat.up, beat.down))
        assert relay.accepted > accepted, "nobody connected anew, so nothing was cut"
        times.append(arrived - cut)
    return times
