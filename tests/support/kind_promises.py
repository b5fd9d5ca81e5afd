"""What is promised of every kind of forward over every transport, with the counts left open.

Callers: tests/integration/test_kinds.py and `benchmarks.soak`.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

from qanat.mux.datagrams import LATE
from tests.support.applications import exchange, receive_all
from tests.support.background import Background
from tests.support.cuts import RESUMED
from tests.support.datagrams import Numbered, ask
from tests.support.harness import SECONDS
from tests.support.kinds import ECHO, KINDS, REPLY, UDP_KINDS, Kind, Place, UdpKind

BLOCK = 4096
PAUSE = 0.05
"""Seconds between two blocks of a stream that is cut, so that each cut hits some of all that there are."""


def both_ways_at_once(place: Place, kind: Kind, size: int) -> None:
    """`size` bytes each way through one stream, while the other way goes on."""
    data = os.urandom(size)
    with kind.use(place, ECHO) as sock:
        sending = Background(lambda: _send_all(sock, data))
        came = receive_all(sock)
        sending.result()
    assert hashlib.sha256(came).digest() == hashlib.sha256(data).digest()


def _send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def half_close(place: Place, kind: Kind) -> None:
    """An end reaches the target, whose answer of a megabyte comes after it, whole."""
    with kind.use(place, REPLY) as sock:
        sock.sendall(b"all that there is to say")
        sock.shutdown(socket.SHUT_WR)
        assert len(receive_all(sock)) == 32 + (1 << 20)


def at_once(place: Place, kind: Kind, count: int) -> None:
    """`count` streams are open at the same time, each with its own bytes."""
    with ExitStack() as stack:

        def open_one() -> socket.socket:
            return stack.enter_context(kind.use(place, ECHO))

        opening = [Background(open_one) for _ in range(count)]
        socks = [each.result(SECONDS) for each in opening]
        blocks = [os.urandom(20_000) for _ in socks]
        talks = [Background(lambda s=s, b=b: exchange(s, b)) for s, b in zip(socks, blocks, strict=True)]
        assert [talk.result(SECONDS) for talk in talks] == blocks


def datagrams_both_ways(place: Place, kind: UdpKind, count: int) -> None:
    """Datagrams go there and back, also the largest ones, in order and once."""
    with kind.use(place, ECHO) as flow:
        for size in (0, 1, 1472, 20_000):
            payload = os.urandom(size)
            assert ask(flow, payload) == payload
        with Numbered(flow, burst=10, pause=0.01) as numbered:
            numbered.wait_for(count)
        numbered.check()


def flows_at_once(place: Place, kind: UdpKind, count: int) -> None:
    """`count` senders get their own answers."""
    with ExitStack() as stack:
        flows = [stack.enter_context(kind.use(place, ECHO)) for _ in range(count)]
        for number, flow in enumerate(flows):
            flow.send(b"flow %d" % number)
        for number, flow in enumerate(flows):
            assert ask(flow, b"again %d" % number) == b"again %d" % number


def none_late_after_a_stall(place: Place, *, seconds: float) -> None:
    """What a path that stalls for so long delivers then is too old, on every kind; what is sent later comes."""
    with ExitStack() as stack:
        flows: list[Numbered] = []
        for kind in UDP_KINDS.values():
            sock = stack.enter_context(kind.use(place, ECHO))
            flows.append(stack.enter_context(Numbered(sock, burst=1, pause=0.02)))
        for flow in flows:
            flow.wait_for(5)
        with place.relay.stalled():
            for mark in (1, 2):
                for flow in flows:
                    flow.mark = mark
                time.sleep(0.2 if mark == 1 else LATE + 0.1)
            time.sleep(max(0.0, seconds - LATE - 0.3))
        for flow in flows:
            flow.mark = 3
        for flow in flows:
            flow.wait_for_mark(3)
            flow.check()
            assert 1 not in {mark for _, mark in flow.came}, "a stale datagram came after the path had stalled"


# --- cuts -------------------------------------------------------------------------------------------


class Continuing(Protocol):
    """What goes on while connections are cut."""

    def note_cut(self, number: int) -> None:
        """Note what was sent before cut `number`."""

    def wait_past(self, number: int) -> None:
        """Block until something has come back that was sent after it."""

    def finish(self) -> None:
        """End it, and check that nothing was lost."""


class Talk:
    """A stream to an echo that is written without waiting for what comes back, which must be the same to the end."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self._name, self._sock = name, sock
        self._sent, self._came = hashlib.sha256(), hashlib.sha256()
        self._sent_bytes = self._came_bytes = self._sent_before = 0
        self._over = threading.Event()
        self._changed = threading.Condition()
        self._sender, self._receiver = Background(self._send_loop), Background(self._receive_loop)

    def note_cut(self, number: int) -> None:
        self._sent_before = self._sent_bytes

    def wait_past(self, number: int) -> None:
        def gone_on() -> bool:
            return self._came_bytes > self._sent_before

        with self._changed:
            on = self._changed.wait_for(lambda: gone_on() or self._receiver.wait(0), SECONDS)
        assert on, f"{self._name} does not go on after cut {number}"
        assert gone_on(), f"{self._name} has ended at cut {number}"

    def finish(self) -> None:
        self._over.set()
        self._sender.result(SECONDS)
        self._receiver.result(SECONDS)
        assert self._came_bytes == self._sent_bytes, f"{self._name}: {self._came_bytes} of {self._sent_bytes} bytes"
        assert self._came.digest() == self._sent.digest(), self._name

    def _send_loop(self) -> None:
        while not self._over.wait(PAUSE):
            block = os.urandom(BLOCK)
            self._sent.update(block)
            self._sent_bytes += len(block)
            self._sock.sendall(block)
        self._sock.shutdown(socket.SHUT_WR)

    def _receive_loop(self) -> None:
        while data := self._sock.recv(1 << 16):
            self._came.update(data)
            with self._changed:
                self._came_bytes += len(data)
                self._changed.notify_all()


class Requests:
    """Uploads in absolute form through a dynamic port, one after the other, each answered by its SHA-256."""

    def __init__(self, name: str, place: Place, port: int) -> None:
        self._name, self._url = name, f"http://{place.web.address}/upload"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        self._done = self._wanted = 0
        self._over = threading.Event()
        self._changed = threading.Condition()
        self._asking = Background(self._ask_loop)

    def note_cut(self, number: int) -> None:
        self._wanted = self._done + 2  # the one that runs was sent before

    def wait_past(self, number: int) -> None:
        with self._changed:
            on = self._changed.wait_for(lambda: self._done >= self._wanted or self._asking.wait(0), SECONDS)
        assert on, f"{self._name} does not go on after cut {number}"
        assert self._done >= self._wanted, f"{self._name} has ended at cut {number}"

    def finish(self) -> None:
        self._over.set()
        self._asking.result(SECONDS)
        self._connection.close()

    def _ask_loop(self) -> None:
        while not self._over.wait(PAUSE):
            body = os.urandom(10 * BLOCK)
            self._connection.request("POST", self._url, body)
            answer = self._connection.getresponse().read().decode()
            assert answer == f"{len(body)} {hashlib.sha256(body).hexdigest()}"
            with self._changed:
                self._done += 1
                self._changed.notify_all()


class Stream:
    """Numbered datagrams: after each cut fresh ones come, and then never one that is older, and none twice."""

    def __init__(self, name: str, numbered: Numbered) -> None:
        self._name, self._numbered = name, numbered

    def note_cut(self, number: int) -> None:
        self._numbered.mark = number

    def wait_past(self, number: int) -> None:
        self._numbered.wait_for_mark(number)

    def finish(self) -> None:
        self._numbered.check()


class Cutting:
    """All kinds of one place at the same time, whose connections are cut together."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._stack = ExitStack()
        self._going: list[Continuing] = []

    def __enter__(self) -> Self:
        for name, kind in KINDS.items():
            self._going.append(Talk(name, self._stack.enter_context(kind.use(self._place, ECHO))))
        for name, udp in UDP_KINDS.items():
            flow = self._stack.enter_context(udp.use(self._place, ECHO))
            numbered = self._stack.enter_context(Numbered(flow, burst=1, pause=0.02))
            self._going.append(Stream(name, numbered))
        for side in ("dynamic", "reverse dynamic"):
            self._going.append(Requests(f"{side}, requests", self._place, self._place.port(side, "")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def run(self, cuts: int) -> dict[str, float]:
        """Cut `cuts` times, each time that everything has gone on; the figures."""
        client, before = self._place.tunnel.client, self._place.tunnel.client.count(RESUMED)
        began, slowest = time.monotonic(), 0.0
        for number in range(1, cuts + 1):
            cut = time.monotonic()
            self._place.relay.cut()
            if self._place.transport != "split":  # which goes on as if nothing had been
                client.wait_for(RESUMED, count=before + number)
            for each in self._going:
                each.note_cut(number)
            for each in self._going:
                each.wait_past(number)
            slowest = max(slowest, time.monotonic() - cut)
        for each in self._going:
            each.finish()
        assert client.count("connected to ") == 1, "a new session, where the old one should go on"
        return {
            "kinds": len(self._going),
            "cuts": cuts,
            "longest until all had gone on, s": slowest,
            "seconds": time.monotonic() - began,
        }
