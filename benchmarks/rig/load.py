"""The near end of every measurement: functions that load a forward whose target is `benchmarks.rig.target`.

Each takes the address of the forward and returns plain figures; none knows what carries the bytes.  They need
nothing but sockets and this package's two modules of the load, so anything that can give a stream on a local port can
be measured with them, a live tunnel as well as a contender in `benchmarks.contenders`.

All of them block, and raise OSError (TimeoutError among others) when the forward does not do its part.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.rig.target import (
    BOTH,
    CHUNK,
    COUNT,
    COUNT_STREAM,
    DOWNLOAD,
    ECHO,
    GO,
    MANY,
    MARK,
    RUN,
    SMALL,
    UPLOAD,
    Count,
    Waits,
    payload,
)

Address = tuple[str, int]

PATIENCE: Final = 20.0
"""Seconds that any single step may take before the measurement has failed."""
MARK_PATIENCE: Final = 60.0
"""Seconds that a byte may take through the queues that bulk makes: OpenSSH holds 2 MiB for each of 1,000 streams."""
_TIMEOUT = struct.pack("ll", int(PATIENCE), 0)
_PING = bytes(64)


def connect(address: Address, first: bytes) -> socket.socket:
    """A connection to the forward that has sent `first`, which tells the target what it is for."""
    sock = socket.socket()
    try:
        # The kernel's own timeouts, since Python's would cost a poll for each call.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, _TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(address)
        sock.sendall(first)
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes."""
    data = b""
    while len(data) < count:
        try:
            more = sock.recv(count - len(data))
        except BlockingIOError:
            raise TimeoutError(f"the forward answered nothing within {PATIENCE:g} s") from None
        if not more:
            raise ConnectionError("the forward closed a stream that was in use")
        data += more
    return data


def settle(address: Address, seconds: float = PATIENCE) -> bool:
    """Block until nothing stands in the way any more that earlier streams have left there, or for `seconds`.

    That is when three exchanges in a row take less than 30 ms each.  Return whether it came to that.
    """
    end = time.monotonic() + seconds
    with connect(address, ECHO) as sock:
        took: list[float] = []
        while time.monotonic() < end:
            began = time.monotonic()
            sock.sendall(_PING)
            receive(sock, len(_PING))
            took.append(time.monotonic() - began)
            if len(took) >= 3 and max(took[-3:]) < 0.03:
                return True
    return False


# --- small exchanges ----------------------------------------------------------------------------


def ping(address: Address, seconds: float, *, pause: float = 0.0) -> list[float]:
    """Seconds that 64 bytes took to come back, for as many turns as fit, one after the other on one stream.

    `pause` seconds lie between two turns.
    """
    found = []
    with connect(address, ECHO + _PING) as sock:
        receive(sock, len(_PING))
        end = time.perf_counter() + seconds
        began = 0.0
        while began < end:
            began = time.perf_counter()
            sock.sendall(_PING)
            receive(sock, len(_PING))
            found.append(time.perf_counter() - began)
            if pause:
                time.sleep(pause)
    return found


def connections_in_turn(address: Address, seconds: float) -> tuple[int, float]:
    """Connections made one after the other, each with 64 bytes to the target and back; how many, in what time."""
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        with connect(address, ECHO + _PING) as sock:
            receive(sock, len(_PING))
        count += 1
    return count, took


def connections_at_once(address: Address, seconds: float, at_once: int) -> tuple[int, float]:
    """The same with `at_once` of them under way at any time."""
    poll, count = select.epoll(), 0
    open_now: dict[int, _Opening] = {}
    began = time.perf_counter()
    end = began + seconds

    def start() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(address)
        open_now[sock.fileno()] = _Opening(sock)
        poll.register(sock.fileno(), select.EPOLLOUT)

    with contextlib.closing(poll):
        try:
            for _ in range(at_once):
                start()
            while open_now:
                ready = poll.poll(PATIENCE)
                if not ready:
                    raise TimeoutError(f"{len(open_now)} of {at_once} connections stand still")
                for number, _ in ready:
                    one = open_now[number]
                    if not one.sent:
                        one.sock.sendall(ECHO + _PING)
                        one.sent = True
                        poll.modify(number, select.EPOLLIN)
                        continue
                    came = len(one.sock.recv(one.missing))
                    if not came:
                        raise ConnectionError("the forward closed a new connection before its echo")
                    one.missing -= came
                    if one.missing:
                        continue
                    del open_now[number]
                    one.sock.close()  # leaves epoll by itself
                    count += 1
                    if time.perf_counter() < end:
                        start()
            return count, time.perf_counter() - began
        finally:
            for one in open_now.values():
                one.sock.close()


@dataclass(slots=True)
class _Opening:
    sock: socket.socket
    sent: bool = False
    missing: int = len(_PING)


@dataclass(frozen=True, slots=True)
class Requests:
    """HTTP requests a second, and seconds that 99 % of them took at most."""

    rate: float
    p99: float
    generator: str


def requests(address: Address, seconds: float, connections: int = 50) -> Requests:
    """HTTP/1.1 requests on kept connections, by wrk where it is installed, else by a loop of our own."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return _requests_of_our_own(address, seconds, connections)
    whole = max(1, round(seconds))
    command = [wrk, "-t1", f"-c{connections}", f"-d{whole}s", "--latency", "--timeout", "10s"]
    done = subprocess.run([*command, f"http://{address[0]}:{address[1]}/"], capture_output=True, text=True)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", done.stdout)
    if rate is None or p99 is None or "Socket errors" in done.stdout:
        raise ConnectionError("wrk: " + " ".join((done.stderr or done.stdout).split())[-200:])
    return Requests(float(rate[1]), float(p99[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[p99[2]], "wrk")


def _requests_of_our_own(address: Address, seconds: float, connections: int) -> Requests:
    request = f"GET / HTTP/1.1\r\nHost: {address[0]}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(contextlib.closing(select.epoll()))
        open_now: dict[int, tuple[socket.socket, deque[float]]] = {}
        for _ in range(connections):
            sock = stack.enter_context(connect(address, request))
            open_now[sock.fileno()] = sock, deque([time.perf_counter()])
            poll.register(sock.fileno(), select.EPOLLIN)
        took: list[float] = []
        began = time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            for number, _ in poll.poll(PATIENCE):
                sock, asked = open_now[number]
                data = sock.recv(4096)
                if not data.endswith(b"x"):
                    raise ConnectionError("an answer came in pieces, or not at all; install wrk: apt-get install wrk")
                took.append(now - asked.popleft())
                sock.sendall(request)
                asked.append(time.perf_counter())
        return Requests(len(took) / (now - began), sorted(took)[int(len(took) * 0.99)], "own")


@contextmanager
def idle_streams(address: Address, count: int) -> Iterator[None]:
    """That many streams, each open as far as the target, with nothing to say."""
    with contextlib.ExitStack() as stack:
        batch = 50
        for first in range(0, count, batch):
            socks = [
                stack.enter_context(connect(address, ECHO + _PING)) for _ in range(first, min(count, first + batch))
            ]
            for sock in socks:
                receive(sock, len(_PING))
        yield


# --- bulk ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carried:
    """What bulk streams did between two marks, and altogether."""

    up: float  # bytes a second, counted at the target
    down: float  # bytes a second, counted here
    waited: float  # seconds: the longest that any stream received nothing
    fairness: float  # the slowest downloading stream's part of the mean, 0 to 1; 1 for what has no downloads
    total: int  # bytes from beginning to end, both ways, marks or not


class _Bulk:
    """Streams of one run, moved by one loop; a count stream beside them."""

    def __init__(self, address: Address, kind: bytes, count: int, stack: contextlib.ExitStack) -> None:
        run = secrets.token_bytes(RUN)
        self._kind = kind
        self._count = stack.enter_context(connect(address, COUNT_STREAM + run))
        self._answer = b""
        self._socks: dict[int, socket.socket] = {}
        self._poll = stack.enter_context(contextlib.closing(select.epoll()))
        self._file = payload()
        stack.callback(os.close, self._file)
        self._scratch = bytearray(4 * CHUNK)
        self._waits = Waits()
        self.received: dict[int, int] = {}
        self.sent = 0
        for _ in range(count):
            sock = stack.enter_context(connect(address, kind + run))
            sock.setblocking(False)
            if count > MANY:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            self._socks[sock.fileno()] = sock
            self.received[sock.fileno()] = 0
        end = time.monotonic() + PATIENCE
        while (there := self._ask(COUNT).streams) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{there} of {count} streams reached the target")
            time.sleep(0.02)
        self._ask(GO)
        for number in self._socks:
            self._waits.opened(number, time.monotonic())
            down = select.EPOLLIN if kind in (DOWNLOAD, BOTH) else 0
            self._poll.register(number, down | (select.EPOLLOUT if kind in (UPLOAD, BOTH) else 0))
        self._count.setblocking(False)
        self._poll.register(self._count.fileno(), select.EPOLLIN)

    def _ask(self, what: bytes) -> Count:
        self._count.sendall(what)
        return Count.decode(receive(self._count, Count.LAYOUT.size))

    def move(self, until: Callable[[], bool]) -> None:
        """Keep all streams busy until `until` says so, which is asked about a hundred times a second."""
        kind, file, scratch = self._kind, self._file, self._scratch
        own = self._count.fileno()
        ask = 0.0
        while True:
            if (now := time.monotonic()) >= ask:
                if until():
                    return
                ask = now + 0.01
            for number, events in self._poll.poll(0.01, 64):
                if number == own:
                    self._answer += self._count.recv(4096)
                    continue
                try:
                    if events & select.EPOLLIN and kind != UPLOAD:
                        came = self._socks[number].recv_into(scratch, len(scratch), socket.MSG_TRUNC)
                        if not came:
                            raise ConnectionError("the forward closed a stream in the middle")
                        self.received[number] += came
                        self._waits.moved(number, now)
                    if events & select.EPOLLOUT:
                        self.sent += os.sendfile(number, file, 0, CHUNK)
                except BlockingIOError:
                    continue
                if events & select.EPOLLERR:
                    raise ConnectionError("the forward reset a stream in the middle")

    def move_for(self, seconds: float) -> None:
        """The same for a time."""
        end = time.monotonic() + seconds
        self.move(lambda: time.monotonic() >= end)

    def mark(self, what: bytes) -> tuple[Count, float, dict[int, int], float]:
        """The target's count, and ours from the moment of asking: when, bytes of each stream, the longest wait.

        Goes on moving while the answer is on its way.
        """
        now = time.monotonic()
        here = now, dict(self.received), self._waits.longest(now)
        if what == MARK:
            self._waits.mark(now)
        self._answer = b""
        self._count.send(what)
        end = now + MARK_PATIENCE
        self.move(lambda: len(self._answer) >= Count.LAYOUT.size or time.monotonic() > end)
        if len(self._answer) < Count.LAYOUT.size:
            raise TimeoutError(f"one byte beside the bulk streams had no answer within {MARK_PATIENCE:g} s")
        return Count.decode(self._answer), *here


def bulk(
    address: Address,
    *,
    streams: int,
    up: bool,
    down: bool,
    seconds: float,
    warm: float = 0.5,
    started: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] | None = None,
) -> Carried:
    """Carry as much as goes for `seconds` after `warm`, or until `stop`; `started` is called in between."""
    kind = BOTH if up and down else UPLOAD if up else DOWNLOAD
    with contextlib.ExitStack() as stack:
        work = _Bulk(address, kind, streams, stack)
        work.move_for(warm)
        there_first, first, bytes_first, _ = work.mark(MARK)
        started()
        if stop is None:
            work.move_for(seconds)
        else:
            work.move(stop)
        there, last, bytes_last, waited = work.mark(COUNT)
        each = [bytes_last[number] - bytes_first[number] for number in bytes_last]
        return Carried(
            up=(there.received - there_first.received) / (there.at - there_first.at) if up else 0.0,
            down=sum(each) / (last - first) if down else 0.0,
            waited=max(there.waited if up else 0.0, waited if down else 0.0),
            fairness=min(each) * len(each) / sum(each) if down and any(each) else 1.0,
            total=there.received + sum(work.received.values()),
        )


class Beside:
    """Bulk in a process of its own, so that what is measured beside it shares no interpreter with it.

    Running from the `with` on; `carried` is there after it.
    """

    def __init__(self, address: Address, *, streams: int, up: bool, down: bool, warm: float = 0.5) -> None:
        self._arguments: dict[str, Any] = {"streams": streams, "up": up, "down": down, "warm": warm, "seconds": 0.0}
        self._address = address
        self.carried: Carried | None = None

    def __enter__(self) -> Beside:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rig.load", json.dumps([self._address, self._arguments])],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us, and we end it
        )
        try:
            self._expect("started")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                assert self._process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it has failed, and said why
                    self._process.stdin.write("stop\n")
                    self._process.stdin.flush()
                self.carried = Carried(**self._expect("carried"))
        finally:
            self._end()

    def _expect(self, what: str) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], (), (), PATIENCE * 3)
        if not ready:
            raise TimeoutError(f"the bulk beside it did not come to {what!r}")
        line = self._process.stdout.readline()
        found, value = json.loads(line) if line else ("failed", "it ended")
        if found != what:
            raise ConnectionError(f"the bulk beside it: {value}")
        return value

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


def _carry_beside() -> None:
    """What the other process does: bulk until it is told to stop."""
    address, arguments = json.loads(sys.argv[1])

    def say(what: str, value: object) -> None:
        print(json.dumps([what, value]), flush=True)

    try:
        carried = bulk(
            tuple(address),
            **arguments,
            started=lambda: say("started", None),
            stop=lambda: bool(select.select([sys.stdin], (), (), 0)[0]),
        )
        say("carried", asdict(carried))
    except OSError as error:
        say("failed", f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    _carry_beside()
