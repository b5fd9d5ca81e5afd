"""Two applications joined through a real lane: what one does to its connection, the other sees on its own."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from qanat.base.errors import NoThread
from qanat.base.sockets import set_reset_on_close
from qanat.base.threads import ThreadGroup
from qanat.base.watcher import Flushable, Watcher
from qanat.endpoints.pump import QUICK_SENDS, SMALL_READ, Pump, StartThread
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream import Stream
from tests.support.background import Background, wait_until
from tests.support.mux.cores import held
from tests.support.mux.rig import Pair, waiting_in, write_all
from tests.support.sockets import SECONDS, read_to_end
from tests.support.transports.memory import memory_pair

MIB = 1 << 20
WHAT_A_KERNEL_HOLDS = 16 * MIB
"""More than the buffers of two loopback sockets and a stream's window together."""


class Joining:
    """One pump and the watcher that it has to itself."""

    def __init__(
        self, stream: Stream, sock: WakeableSocket, start_thread: StartThread | None = None, *, crowded: bool = False
    ) -> None:
        self._watcher = Watcher()
        self._threads = ThreadGroup("pumps")
        self._over = threading.Event()
        start_thread = start_thread or self._threads.start
        Pump(stream, sock, self._watcher, start_thread, self._over.set, crowded=lambda: crowded).start()

    def result(self) -> None:
        """Block until the pump is over, and nothing of it is left."""
        assert self._over.wait(SECONDS)
        assert self._threads.join(SECONDS) == []
        assert len(self._watcher) == 0
        self._watcher.close()


class Joined:
    """An application at each end of one stream: `client` and `server` are their sockets."""

    def __init__(self, pair: Pair, *, crowded: bool = False) -> None:
        self.client, ours = _socket_pair()
        self.server, theirs = _socket_pair()
        self.ours = pair.client.lane.open_stream(b"")
        self.theirs = pair.server.next_stream()
        self.pumps = [
            Joining(self.ours, ours, crowded=crowded),
            Joining(self.theirs, theirs, crowded=crowded),
        ]

    def end(self) -> None:
        """Both pumps end by themselves; then the applications' sockets are closed."""
        for joining in self.pumps:
            joining.result()
        self.close()

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def both(self, reversed_: bool) -> tuple[socket.socket, socket.socket]:
        return (self.server, self.client) if reversed_ else (self.client, self.server)


def _plain_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        application = socket.create_connection(listener.getsockname(), SECONDS)
        accepted, _ = listener.accept()
    return application, accepted


def _socket_pair() -> tuple[socket.socket, WakeableSocket]:
    application, accepted = _plain_pair()
    return application, WakeableSocket(accepted)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


@pytest.fixture(params=[False, True], ids=["threads", "crowded"])
def joined(pair: Pair, request: pytest.FixtureRequest) -> Iterator[Joined]:
    joined = Joined(pair, crowded=request.param)
    yield joined
    joined.end()


def reset(sock: socket.socket) -> None:
    """Close so that the peer sees a RST."""
    set_reset_on_close(sock, True)
    sock.close()


def finish(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


# --- orderly ends -----------------------------------------------------------------------------------


def test_bytes_of_every_size_arrive_both_ways_at_once(joined: Joined) -> None:
    dice = random.Random(1)
    sent = [dice.randbytes(20 * MIB) for _ in range(2)]

    def send(sock: socket.socket, data: bytes, seed: int) -> None:
        sizes = random.Random(seed)
        view = memoryview(data)
        while view:
            size = sizes.choice((1, 100, 20_000, 200_000, 2 * MIB))
            sock.sendall(view[:size])
            view = view[size:]
        finish(sock)

    ways = zip(joined.both(False), sent, (1, 2), strict=True)
    writers = [Background(lambda way=way: send(*way)) for way in ways]
    readers = [Background(lambda s=s: read_to_end(s)) for s in (joined.server, joined.client)]
    for reader, data in zip(readers, sent, strict=True):
        assert reader.result() == (data, "end")
    for writer in writers:
        writer.result()


@pytest.mark.parametrize("server_asks", [False, True])
def test_a_reply_that_comes_after_the_requests_end_arrives_whole(joined: Joined, server_asks: bool) -> None:
    asking, answering = joined.both(server_asks)
    asking.sendall(b"all of the question")
    finish(asking)
    assert read_to_end(answering) == (b"all of the question", "end")
    replying = Background(lambda: (answering.sendall(bytes(8 * MIB)), finish(answering)))
    assert read_to_end(asking) == (bytes(8 * MIB), "end")
    replying.result()


def test_a_connection_on_which_nothing_is_said_ends_in_order(joined: Joined) -> None:
    finish(joined.client)
    assert read_to_end(joined.server) == (b"", "end")
    finish(joined.server)
    assert read_to_end(joined.client) == (b"", "end")


def test_an_end_waits_for_one_more_look_and_is_tidied_up_once_all_is_sent(pair: Pair) -> None:
    """So that the FIN of one connection and the OPEN of the next share a record, and neither waits for a `close`."""
    order: list[str] = []

    class Noting(Watcher):
        def flush_soon(self, flushable: Flushable) -> None:
            order.append("soon")
            super().flush_soon(flushable)

        def call_late(self, callback: Callable[[], None]) -> None:
            def called() -> None:
                order.append("late")
                callback()

            super().call_late(called)

    class Closing(WakeableSocket):
        def close(self, *, orderly: bool) -> None:
            order.append("closed")
            super().close(orderly=orderly)

    application, accepted = _plain_pair()
    stream = pair.client.lane.open_stream(b"")
    theirs = pair.server.next_stream()
    watcher, threads, over = Noting(), ThreadGroup("pumps"), threading.Event()
    pump = Pump(stream, Closing(accepted), watcher, threads.start, over.set)
    theirs.finish()
    pump.start()
    assert application.recv(1) == b""
    order.clear()
    finish(application)
    assert over.wait(SECONDS)
    assert order == ["soon", "late", "closed"]
    assert theirs.receive() is None
    theirs.release()
    application.close()
    watcher.close()


def test_what_was_sent_just_before_an_orderly_end_is_not_lost(joined: Joined) -> None:
    joined.server.sendall(bytes(100_000))
    finish(joined.server)
    finish(joined.client)
    assert read_to_end(joined.client) == (bytes(100_000), "end")
    assert read_to_end(joined.server) == (b"", "end")


# --- resets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("server_resets", [False, True])
def test_a_reset_of_one_connection_is_a_reset_of_the_other(joined: Joined, server_resets: bool) -> None:
    one, other = joined.both(server_resets)
    reset(one)
    assert read_to_end(other) == (b"", "reset")


@pytest.mark.parametrize("server_resets", [False, True])
def test_a_reset_after_a_half_close_is_still_a_reset(joined: Joined, server_resets: bool) -> None:
    one, other = joined.both(server_resets)
    finish(other)
    assert read_to_end(one) == (b"", "end")
    reset(one)
    assert read_to_end(other) == (b"", "reset")


def test_what_came_before_the_reset_is_still_delivered(joined: Joined) -> None:
    joined.client.sendall(b"last words")
    wait_until(lambda: joined.theirs.counts[1] == 10, "they are through the tunnel")
    reset(joined.client)
    content, ending = read_to_end(joined.server)
    assert ending == "reset"
    assert content in (b"last words", b"")  # A RST may overtake what the application has not read yet.


def test_a_reset_of_the_stream_wakes_pumps_that_are_blocked_in_sending_and_for_credit(pair: Pair) -> None:
    joined = Joined(pair)
    pushing = Background(lambda: joined.client.sendall(bytes(2 * WHAT_A_KERNEL_HOLDS)))
    wait_until(waiting_in("wait_writable"), "the uplink waits for credit")
    joined.ours.reset(Reason.CANCELED, "")
    for joining in joined.pumps:
        joining.result()
    assert isinstance(pushing.error(), ConnectionError)
    assert read_to_end(joined.server)[1] == "reset"
    joined.close()


def test_a_reset_while_the_other_end_sends_is_never_a_clean_end() -> None:
    """The downlink may be told of the RST instead of the uplink, which must not say that all is well."""
    with Pair() as pair:
        for _ in range(60):
            joined = Joined(pair)

            def push(joined: Joined = joined) -> None:
                while True:
                    joined.server.sendall(b"x" * 1000)

            pushing, pulling = Background(push), Background(lambda j=joined: read_to_end(j.server)[1])
            assert joined.client.recv(1)
            reset(joined.client)
            # Here too only one of the two is told of the RST; after a FIN, sending would fail with EPIPE instead.
            told = pushing.error()
            assert pulling.result() == "reset" or isinstance(told, ConnectionResetError)
            joined.end()


def test_an_application_that_is_gone_before_the_pump_begins_is_a_reset(pair: Pair) -> None:
    application, ours = _socket_pair()
    stream = pair.client.lane.open_stream(b"")
    theirs = pair.server.next_stream()
    theirs.reset(Reason.REFUSED, "connection refused")
    wait_until(lambda: stream.failure is not None, "the refusal has come")
    Joining(stream, ours).result()
    assert read_to_end(application) == (b"", "reset")
    application.close()
    theirs.release()


def test_a_cut_session_resets_both_applications() -> None:
    with Pair() as pair:
        everyone = [Joined(pair) for _ in range(20)]
        for joined in everyone:
            joined.client.sendall(b"in the middle of")
            assert joined.server.recv(100) == b"in the middle of"
        pair.client.lane.cut("the network is gone")
        for joined in everyone:
            assert read_to_end(joined.client) == (b"", "reset")
            assert read_to_end(joined.server) == (b"", "reset")
            joined.end()


# --- back-pressure ----------------------------------------------------------------------------------


def test_an_application_that_does_not_read_stops_its_own_connection_and_no_other() -> None:
    with Pair(pipes=memory_pair()) as pair:
        slow, fast = Joined(pair), Joined(pair)
        pushing = Background(lambda: (slow.client.sendall(bytes(3 * WHAT_A_KERNEL_HOLDS)), finish(slow.client)))
        wait_until(lambda: not pushing.wait(0.05), "it is stuck")
        for _ in range(10):
            fast.client.sendall(b"ping")
            assert fast.server.recv(10) == b"ping"
        assert read_to_end(slow.server) == (bytes(3 * WHAT_A_KERNEL_HOLDS), "end")
        pushing.result()
        for joined in (slow, fast):
            for sock in joined.both(False):
                with contextlib.suppress(OSError):
                    finish(sock)
            joined.end()


def test_many_connections_push_through_a_small_retransmit_buffer_and_all_arrive() -> None:
    parameters = [LaneParameters(client=client, outbox=512 * 1024) for client in (True, False)]
    with Pair(*parameters) as pair:
        everyone = [Joined(pair) for _ in range(30)]
        writers = [Background(lambda j=j: (j.client.sendall(bytes(MIB)), finish(j.client))) for j in everyone]
        readers = [Background(lambda j=j: read_to_end(j.server)) for j in everyone]
        for reader in readers:
            assert reader.result() == (bytes(MIB), "end")
        for writer in writers:
            writer.result()
        for joined in everyone:
            finish(joined.server)
            joined.end()


# --- our own faults ---------------------------------------------------------------------------------


def test_bulk_among_many_is_carried_up_without_a_thread_and_small_reads_come_back(pair: Pair) -> None:
    application, ours = _socket_pair()
    stream = pair.client.lane.open_stream(b"")
    theirs = pair.server.next_stream()
    started: list[str] = []
    threads = ThreadGroup("down")

    def start_thread(name: str, function: Callable[[], object]) -> None:
        started.append(name)
        threads.start(name, function)

    joining = Joining(stream, ours, start_thread, crowded=True)
    data = random.Random(3).randbytes(8 * MIB)
    writer = Background(lambda: (application.sendall(data), finish(application)))
    received = bytearray()
    while (payload := theirs.receive()) is not None:
        received += payload
        theirs.consumed(len(payload))
    assert received == data
    writer.result()
    theirs.finish()
    assert application.recv(1) == b""
    joining.result()
    application.close()
    theirs.release()
    assert not any(name.endswith("-up") for name in started)
    assert threads.join(SECONDS) == []


def test_bulk_for_a_socket_that_takes_it_at_once_needs_a_thread_only_at_first(pair: Pair) -> None:
    application, ours = _socket_pair()
    stream = pair.client.lane.open_stream(b"")
    theirs = pair.server.next_stream()
    started: list[str] = []
    threads, watcher, over = ThreadGroup("down"), Watcher(), threading.Event()

    def start_thread(name: str, function: Callable[[], object]) -> None:
        started.append(name)
        threads.start(name, function)

    pump = Pump(stream, ours, watcher, start_thread, over.set)
    pump.start()
    piece, pieces = bytes(2 * SMALL_READ), 0

    def in_turn() -> bool:
        nonlocal pieces
        pieces += 1
        write_all(theirs, piece)
        left = len(piece)
        while left:
            left -= len(application.recv(left))
        return pump.takes_bulk

    wait_until(in_turn, "the lane's reader delivers bulk, too")
    assert pieces >= QUICK_SENDS
    wait_until(lambda: not threads.join(0), "the thread has gone")
    seen = len(started)
    for _ in range(8):
        assert in_turn()
    assert len(started) == seen
    writer = Background(lambda: write_all(theirs, bytes(WHAT_A_KERNEL_HOLDS)))
    wait_until(lambda: len(started) > seen, "a socket that takes no more costs a thread again")
    left = WHAT_A_KERNEL_HOLDS
    while left:
        left -= len(application.recv(left))
    writer.result()
    theirs.finish()
    finish(application)
    assert application.recv(1) == b""
    assert over.wait(SECONDS)
    assert threads.join(SECONDS) == []
    watcher.close()
    application.close()
    theirs.release()


def test_a_system_without_threads_refuses_the_stream_and_says_so(pair: Pair) -> None:
    def no_thread(name: str, target: Callable[[], object]) -> object:
        raise NoThread

    application, ours = _socket_pair()
    stream = pair.client.lane.open_stream(b"")
    theirs = pair.server.next_stream()
    joining = Joining(stream, ours, no_thread)
    theirs.write(bytes(2 * SMALL_READ))
    assert read_to_end(application)[1] == "reset"
    joining.result()
    wait_until(lambda: theirs.failure is not None, "the other end is told")
    assert theirs.failure == (Reason.LIMIT, "no more threads at the other end")
    application.close()
    theirs.release()


@pytest.mark.parametrize("function", ["recv_now", "recv_available_into", "send_all"])
def test_a_fault_in_one_direction_ends_the_other_and_leaves_nothing(
    pair: Pair, function: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(sock: WakeableSocket, *arguments: object) -> int:
        raise ValueError("a bug")

    application, ours = _socket_pair()
    stream = pair.client.lane.open_stream(b"")
    theirs = pair.server.next_stream()
    monkeypatch.setattr(WakeableSocket, function, fail)
    joining = Joining(stream, ours)
    if function == "send_all":
        theirs.write(bytes(2 * SMALL_READ))
    else:
        application.sendall(bytes(10 * SMALL_READ))
    assert read_to_end(application)[1] == "reset"
    joining.result()
    assert caplog.text.count("an unexpected error") == 1
    wait_until(lambda: theirs.failure is not None, "the other end is told")
    assert theirs.failure is not None
    assert theirs.failure[0] == Reason.INTERNAL
    application.close()
    theirs.release()


def test_under_random_ends_every_connection_ends_and_nothing_is_left() -> None:
    """Each application writes, reads, finishes or resets when it likes; nobody may be left waiting."""
    parameters = [LaneParameters(client=client, outbox=MIB, window_budget=MIB) for client in (True, False)]
    with Pair(*parameters) as pair:

        def behave(sock: socket.socket, dice: random.Random) -> None:
            with contextlib.suppress(OSError):
                for _ in range(dice.randrange(8)):
                    sock.sendall(bytes(dice.choice((1, 1000, 100_000, 400_000))))
                    if dice.random() < 0.5:
                        sock.settimeout(0.001)
                        with contextlib.suppress(TimeoutError):
                            sock.recv(100_000)
                        sock.settimeout(SECONDS)
                if dice.random() < 0.3:
                    return reset(sock)
                finish(sock)
                read_to_end(sock)
            sock.close()
            return None

        for seed in range(3):
            everyone = [Joined(pair) for _ in range(25)]
            applications = [
                Background(lambda s=sock, name=f"{seed} {number} {side}": behave(s, random.Random(name)))
                for number, joined in enumerate(everyone)
                for side, sock in enumerate(joined.both(False))
            ]
            for application in applications:
                application.result()
            for joined in everyone:
                joined.end()
        for end in (pair.client, pair.server):
            wait_until(lambda core=end.lane.core: not held(core), "all is over")
