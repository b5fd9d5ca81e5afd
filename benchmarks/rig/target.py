"""The far end of every measurement: one small server, a process of its own, that all forwards lead to.

The first byte of a connection says what it is for; after ECHO or in HTTP the payload follows at once, all others are
followed by RUN bytes that name the run which the stream belongs to:

    E  echo whatever comes                    U  read to the end (upload)
    G  HTTP/1.1, kept alive ("GET ...")       D  send until the peer has gone (download)
    C  count, see below                       B  both at once

A count stream asks with single bytes, MARK, COUNT or GO, and gets a Count for each: what the streams of its run have
carried, by this end's clock.  Figures taken here do not depend on how long the answer travels, so an upload can be
measured through a tunnel whose queues are full.  MARK begins the longest wait anew.  Downloads wait for GO, so that
the first do not stand in the way of those that are still to be opened.

Two processes: what is small and in a hurry (E, G) is served where connections are accepted, so that it never stands
behind bulk; the other kinds are handed to the second process with their sockets.  Nothing here looks at bulk bytes:
they come from a file in memory (`sendfile`) and are dropped by the kernel (`MSG_TRUNC`), which keeps the load cheap.
The load's half of this is `benchmarks.rig.load`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ECHO, UPLOAD, DOWNLOAD, BOTH, COUNT_STREAM, HTTP = b"E", b"U", b"D", b"B", b"C", b"G"
RUN: Final = 8
"""Bytes of a run's name."""
MARK, COUNT, GO = b"M", b"S", b"G"
CHUNK: Final = 256 * 1024
"""Bytes that one stream moves before the next one's turn."""
MANY: Final = 8
"""With more streams in a run, each end's socket gets a buffer of SMALL bytes: else the kernel runs short of memory."""
SMALL: Final = 64 * 1024
BODY: Final = b"x" * 64
RESPONSE: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 64\r\n\r\n" + BODY

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


@dataclass(frozen=True, slots=True)
class Count:
    """What a run has carried by now, at the target."""

    at: float  # seconds of the target's own clock
    streams: int  # open now, count streams not included
    received: int  # bytes, by uploads
    sent: int  # bytes given to the kernel, by downloads
    waited: float  # seconds: the longest that any stream that is open received nothing, since MARK

    LAYOUT = struct.Struct("!dIQQd")

    def encode(self) -> bytes:
        """Return the answer on a count stream."""
        return self.LAYOUT.pack(self.at, self.streams, self.received, self.sent, self.waited)

    @classmethod
    def decode(cls, data: bytes) -> Count:
        """Return what `encode` made."""
        return cls(*cls.LAYOUT.unpack(data))


class Waits:
    """The longest time that any of several streams went without a byte."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}
        self._longest = 0.0

    def opened(self, stream: int, now: float) -> None:
        """A stream begins to wait."""
        self._last[stream] = now

    def moved(self, stream: int, now: float) -> None:
        """Some of its bytes came."""
        gap = now - self._last[stream]
        self._last[stream] = now
        if gap > self._longest:
            self._longest = gap

    def closed(self, stream: int) -> None:
        """It waits no more, and what it waited last does not count."""
        self._last.pop(stream, None)

    def mark(self, now: float) -> None:
        """Begin anew."""
        self._longest = 0.0
        self._last = dict.fromkeys(self._last, now)

    def longest(self, now: float) -> float:
        """Return seconds, those that wait right now included."""
        return max(self._longest, now - min(self._last.values(), default=now))


@dataclass(slots=True)
class _Run:
    streams: int = 0
    received: int = 0
    sent: int = 0
    users: int = 0
    going: bool = False
    waits: Waits = field(default_factory=Waits)


@dataclass(slots=True)
class _Stream:
    sock: socket.socket
    kind: bytes
    name: bytes
    run: _Run


def payload() -> int:
    """A file in memory with CHUNK random bytes; its descriptor."""
    file = os.memfd_create("payload")
    os.write(file, os.urandom(CHUNK))
    return file


class _Bulk:
    """The second process: everything but ECHO and HTTP."""

    def __init__(self, handed: socket.socket) -> None:
        self._handed = handed
        self._poll = select.epoll()
        self._poll.register(handed.fileno(), _IN)
        self._streams: dict[int, _Stream] = {}
        self._runs: dict[bytes, _Run] = {}
        self._file = payload()
        self._scratch = bytearray(4 * CHUNK)

    def serve_loop(self) -> None:
        """Serve until the first process is gone."""
        while True:
            for number, events in self._poll.poll():
                if number == self._handed.fileno():
                    message, descriptors, _, _ = socket.recv_fds(self._handed, 1 + RUN, 1)
                    if not message:
                        return
                    self._open(socket.socket(fileno=descriptors[0]), message[:1], message[1:])
                elif number in self._streams:
                    self._serve(number, events)

    def _open(self, sock: socket.socket, kind: bytes, name: bytes) -> None:
        run = self._runs.setdefault(name, _Run())
        run.users += 1
        number = sock.fileno()
        sock.setblocking(False)
        if kind != COUNT_STREAM:
            run.streams += 1
            if run.streams > MANY:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        if kind in (UPLOAD, BOTH):
            run.waits.opened(number, time.monotonic())
        self._streams[number] = _Stream(sock, kind, name, run)
        self._poll.register(number, self._events(self._streams[number]))

    def _events(self, stream: _Stream) -> int:
        return _IN | (_OUT if stream.kind in (DOWNLOAD, BOTH) and stream.run.going else 0)

    def _go(self, run: _Run) -> None:
        run.going = True
        for number, stream in self._streams.items():
            if stream.run is run:
                self._poll.modify(number, self._events(stream))

    def _serve(self, number: int, events: int) -> None:
        stream = self._streams[number]
        try:
            if events & _IN and not self._read(stream, number):
                return self._close(number)
            if events & _OUT:
                stream.run.sent += os.sendfile(number, self._file, 0, CHUNK)
        except BlockingIOError:
            pass
        except OSError:
            return self._close(number)
        if events & _GONE and not events & _IN:
            self._close(number)
        return None

    def _read(self, stream: _Stream, number: int) -> bool:
        run = stream.run
        if stream.kind == COUNT_STREAM:
            asked = stream.sock.recv(64)
            for byte in asked:
                now = time.monotonic()
                count = Count(now, run.streams, run.received, run.sent, run.waits.longest(now))
                if bytes([byte]) == MARK:
                    run.waits.mark(now)
                elif bytes([byte]) == GO:
                    self._go(run)
                stream.sock.sendall(count.encode())
            return bool(asked)
        came = stream.sock.recv_into(self._scratch, len(self._scratch), socket.MSG_TRUNC)
        if stream.kind != DOWNLOAD:
            run.received += came
            run.waits.moved(number, time.monotonic())
        return came > 0

    def _close(self, number: int) -> None:
        stream = self._streams.pop(number)
        self._poll.unregister(number)
        stream.sock.close()
        stream.run.waits.closed(number)
        stream.run.users -= 1
        stream.run.streams -= stream.kind != COUNT_STREAM
        if not stream.run.users:
            self._runs.pop(stream.name, None)


class _Front:
    """The first process: accepts, echoes, answers HTTP, and hands on the rest."""

    def __init__(self, listener: socket.socket, bulk: socket.socket) -> None:
        self._listener = listener
        self._bulk = bulk
        self._poll = select.epoll()
        listener.setblocking(False)
        self._poll.register(listener.fileno(), _IN)
        self._socks: dict[int, socket.socket] = {}
        self._heads: dict[int, bytes] = {}
        """What has come of the first bytes, for connections whose purpose is not known yet."""
        self._http: dict[int, bytes] = {}
        """What has come of the next request."""

    def serve_loop(self) -> None:
        """Serve until killed."""
        while True:
            for number, _ in self._poll.poll():
                if number == self._listener.fileno():
                    self._accept()
                    continue
                try:
                    self._serve(number)
                except BlockingIOError:
                    pass
                except OSError:
                    self._drop(number).close()

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            number = sock.fileno()
            self._socks[number] = sock
            self._heads[number] = b""
            self._poll.register(number, _IN)

    def _drop(self, number: int) -> socket.socket:
        self._poll.unregister(number)
        self._heads.pop(number, None)
        self._http.pop(number, None)
        return self._socks.pop(number)

    def _serve(self, number: int) -> None:
        sock = self._socks[number]
        if number in self._heads:
            self._begin(number, sock)
            return
        data = sock.recv(65536)
        if not data:
            self._drop(number).close()
        elif number in self._http:
            self._answer(number, sock, data)
        else:
            sock.sendall(data)

    def _begin(self, number: int, sock: socket.socket) -> None:
        head = self._heads[number]
        # No byte beyond the head: those that are handed on are read by the other process.
        data = sock.recv(65536) if head[:1] in (ECHO, HTTP) else sock.recv(1 + RUN - len(head), socket.MSG_PEEK)
        if not data:
            self._drop(number).close()
        elif data[:1] in (ECHO, HTTP) and not head:
            data = sock.recv(65536)
            del self._heads[number]
            if data[:1] == ECHO:
                if data[1:]:
                    sock.sendall(data[1:])
            else:
                self._http[number] = b""
                self._answer(number, sock, data)
        else:
            sock.recv(len(data))
            head += data
            self._heads[number] = head
            if len(head) == 1 + RUN:
                socket.send_fds(self._bulk, [head], [number])
                self._drop(number).close()

    def _answer(self, number: int, sock: socket.socket, data: bytes) -> None:
        waiting = self._http[number] + data
        requests = waiting.count(b"\r\n\r\n")
        self._http[number] = waiting[waiting.rfind(b"\r\n\r\n") + 4 :] if requests else waiting
        if requests:
            sock.sendall(RESPONSE * requests)


def serve(listener: socket.socket) -> None:
    """Serve on `listener` until SIGTERM.  Starts the second process, which ends with this one."""
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def bulk() -> None:
        front.close()
        listener.close()
        with contextlib.suppress(KeyboardInterrupt):
            _Bulk(back).serve_loop()

    process = multiprocessing.get_context("fork").Process(target=bulk, daemon=True)
    process.start()
    back.close()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        _Front(listener, front).serve_loop()


def main() -> None:
    """Listen on a free port of the address that is the first argument, and write the port to the file that is next."""
    host, file = sys.argv[1], Path(sys.argv[2])
    listener = socket.create_server((host, 0), backlog=4096)
    whole = file.with_suffix(".new")
    whole.write_text(str(listener.getsockname()[1]))
    whole.rename(file)
    serve(listener)


if __name__ == "__main__":
    main()
