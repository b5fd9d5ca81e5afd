"""Streams with a rate and an idle time, joined to real sockets through a real lane."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from qanat.base.sockets import set_reset_on_close
from qanat.base.threads import ThreadGroup
from qanat.base.watcher import Watcher
from qanat.endpoints.pump import Pump
from qanat.endpoints.rate_limit import RateLimit
from qanat.endpoints.traffic_limits import UNLIMITED, TrafficLimits
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason
from qanat.mux.stream import Stream
from tests.support.background import Background, wait_until
from tests.support.mux.rig import Pair
from tests.support.sockets import SECONDS, read_to_end

KIB = 1024
MIB = 1 << 20
RATE = MIB


class Bench:
    """Streams whose client's end has limits, and whose server's end has none."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.watcher = Watcher()
        self._threads = {"client": ThreadGroup("client's"), "server": ThreadGroup("server's")}
        self._open: list[threading.Event] = []
        self._sockets: list[socket.socket] = []
        self._streams: list[Stream] = []

    def rate(self, bytes_per_second: float) -> RateLimit:
        return RateLimit(bytes_per_second, self.watcher)

    def join(self, limits: TrafficLimits) -> tuple[socket.socket, socket.socket, Stream]:
        """The applications at the limited end and at the other, and the stream as the limited end has it."""
        stream = self._pair.client.lane.open_stream(b"")
        self._streams.append(stream)
        return self._pump("client", stream, limits), self._pump("server", self._pair.server.next_stream()), stream

    def threads(self, which: str) -> int:
        return len(self._threads[which])

    def close(self) -> None:
        """Reset what waits for its turn, and check that all pumps end, and leave nothing."""
        for stream in self._streams:
            stream.reset(Reason.CANCELED, "the test is over")
        for sock in self._sockets:
            sock.close()
        for over in self._open:
            assert over.wait(SECONDS)
        for threads in self._threads.values():
            assert threads.join(SECONDS) == []
        assert len(self.watcher) == 0
        self.watcher.close()

    def _pump(self, which: str, stream: Stream, limits: TrafficLimits = UNLIMITED) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            application = socket.create_connection(listener.getsockname(), SECONDS)
            accepted, _ = listener.accept()
        over = threading.Event()
        self._open.append(over)
        self._sockets.append(application)
        Pump(stream, WakeableSocket(accepted), self.watcher, self._threads[which].start, over.set, limits).start()
        return application


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Pair() as pair:
        bench = Bench(pair)
        yield bench
        bench.close()


def limits_of(direction: str, rate: RateLimit) -> TrafficLimits:
    return TrafficLimits(reading=rate) if direction == "reading" else TrafficLimits(writing=rate)


def ways(direction: str, ends: tuple[socket.socket, socket.socket, Stream]) -> tuple[socket.socket, socket.socket]:
    """Who sends and who receives, for bytes that the limit is about."""
    limited, other, _ = ends
    return (limited, other) if direction == "reading" else (other, limited)


def transfer(sender: socket.socket, receiver: socket.socket, data: bytes) -> float:
    """Send and half-close; return the seconds until all had come."""
    began = time.monotonic()
    sending = Background(lambda: (sender.sendall(data), sender.shutdown(socket.SHUT_WR)))
    assert read_to_end(receiver) == (data, "end")
    sending.result()
    return time.monotonic() - began


@pytest.mark.parametrize("direction", ["reading", "writing"])
def test_bulk_arrives_whole_and_no_faster_than_the_rate(bench: Bench, direction: str) -> None:
    data = bytes(range(256)) * (2 * RATE // 256)
    ends = bench.join(limits_of(direction, bench.rate(RATE)))
    seconds = transfer(*ways(direction, ends), data)
    assert len(data) <= RATE * (0.25 + seconds) + 1


@pytest.mark.parametrize("direction", ["reading", "writing"])
def test_the_other_direction_is_as_fast_as_ever(bench: Bench, direction: str) -> None:
    ends = bench.join(limits_of(direction, bench.rate(1000)))
    receiver, sender = ways(direction, ends)
    transfer(sender, receiver, bytes(8 * MIB))  # which would take hours


@pytest.mark.parametrize("direction", ["reading", "writing"])
def test_what_is_never_reached_costs_no_speed(bench: Bench, direction: str) -> None:
    ends = bench.join(limits_of(direction, bench.rate(1e12)))
    transfer(*ways(direction, ends), bytes(32 * MIB))


@pytest.mark.parametrize("direction", ["reading", "writing"])
def test_streams_share_the_rate_and_a_small_exchange_beside_them_is_quick(bench: Bench, direction: str) -> None:
    rate = bench.rate(RATE)
    bulk = [ways(direction, bench.join(limits_of(direction, rate))) for _ in range(4)]
    here, there, _ = bench.join(limits_of(direction, rate))
    stop = threading.Event()
    moved = [0] * len(bulk)

    def receive(number: int, sock: socket.socket) -> None:
        while not stop.is_set():
            moved[number] += len(sock.recv(KIB * 64))

    def send(sock: socket.socket) -> None:
        sock.settimeout(0.1)
        while not stop.is_set():
            try:
                sock.send(bytes(64 * KIB))
            except TimeoutError:
                continue

    works = [Background(lambda s=sender: send(s)) for sender, _ in bulk]
    works += [Background(lambda n=n, s=receiver: receive(n, s)) for n, (_, receiver) in enumerate(bulk)]
    wait_until(lambda: min(moved) > 128 * KIB, "all to move")
    began, waits = time.monotonic(), list[float]()
    before = list(moved)
    for _ in range(20):
        sent = time.monotonic()
        here.sendall(b"question")
        assert there.recv(100) == b"question"
        there.sendall(b"answer")
        assert here.recv(100) == b"answer"
        waits.append(time.monotonic() - sent)
        time.sleep(0.02)
    time.sleep(max(0.0, began + 1.5 - time.monotonic()))
    parts = [now - then for now, then in zip(moved, before, strict=True)]
    stop.set()
    for work in works:
        work.result()
    # A turn among four in a queue for all that waits would take more than the windows' 500 KiB at this rate.
    assert sorted(waits)[10] < 0.1
    assert min(parts) > 0.4 * max(parts)


@pytest.mark.parametrize("direction", ["reading", "writing"])
def test_streams_that_wait_for_their_turn_have_no_thread(bench: Bench, direction: str) -> None:
    rate = bench.rate(2000)
    for _ in range(20):
        sender, _ = ways(direction, bench.join(limits_of(direction, rate)))
        sender.setblocking(False)
        sender.send(bytes(100 * KIB))
    wait_until(lambda: bench.threads("client") == 0, "the burst to be over")
    # A turn takes one for a moment only.
    assert sum(bench.threads("client") for _ in range(20) if not time.sleep(0.01)) <= 10


@pytest.mark.parametrize("direction", ["reading", "writing"])
def test_a_reset_ends_a_stream_that_waits_for_its_turn(bench: Bench, direction: str) -> None:
    limited, other, stream = ends = bench.join(limits_of(direction, bench.rate(100)))
    sender, _ = ways(direction, ends)
    sender.setblocking(False)
    sender.send(bytes(60 * KIB))
    sender.settimeout(SECONDS)
    wait_until(lambda: sum(stream.counts) >= 8 * KIB, "the burst")
    set_reset_on_close(other, True)
    other.close()
    assert read_to_end(limited)[1] == "reset"


def test_what_came_before_a_reset_is_delivered_at_once(bench: Bench) -> None:
    here, there, stream = bench.join(TrafficLimits(writing=bench.rate(100)))
    there.sendall(bytes(60 * KIB))
    wait_until(lambda: stream.counts[1] == 60 * KIB, "the bytes to come")
    set_reset_on_close(there, True)
    there.close()
    received, how = read_to_end(here)
    assert (len(received), how) == (60 * KIB, "reset")


def test_a_stream_that_rests_is_reset_with_the_reason(bench: Bench) -> None:
    here, there, stream = bench.join(TrafficLimits(idle_timeout=0.5))
    resting = bench.join(UNLIMITED)
    here.sendall(b"x")
    assert there.recv(10) == b"x"
    assert read_to_end(there) == (b"", "reset")
    assert read_to_end(here) == (b"", "reset")
    assert stream.failure == (Reason.LIMIT, "nothing came or went for 0.5 s, its idle_timeout")
    resting[0].sendall(b"still here")
    assert resting[1].recv(20) == b"still here"


def test_a_stream_that_moves_now_and_then_is_left_alone(bench: Bench) -> None:
    here, there, _ = bench.join(TrafficLimits(idle_timeout=2))
    for _ in range(8):
        time.sleep(0.4)
        here.sendall(b"x")
        assert there.recv(10) == b"x"


def test_a_stream_that_waits_for_its_turn_does_not_rest(bench: Bench) -> None:
    limits = TrafficLimits(writing=bench.rate(100), idle_timeout=0.4)
    here, there, stream = bench.join(limits)
    there.sendall(bytes(40 * KIB))
    wait_until(lambda: stream.counts[1] == 40 * KIB, "the bytes to come")
    time.sleep(1)
    assert stream.failure is None
    here.setblocking(False)
    assert here.recv(KIB)
