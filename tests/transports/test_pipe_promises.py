"""What every pipe promises to the rooms above, whatever transport it is."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from qanat.base.errors import LocalError, PipeEnded
from qanat.transports.pipe import MAX_MESSAGE, Pipe
from tests.support.background import Background, wait_until
from tests.support.machine.certificates import Authority, Certificate
from tests.support.transports.loopback import send_bytes
from tests.support.transports.pairs import PAIRS, Pair

AT_ONCE = 10.0
"""Seconds; without being woken they would block for ever."""

FULL = 64 * 1024 * 1024
"""Bytes; more than all buffers between two pipes take."""


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, stack: ExitStack, authority: Authority, good_certificate: Certificate) -> Pair:
    """A sender's and a receiver's pipe."""
    return PAIRS[request.param](stack, authority, good_certificate)


def fill(pipe: Pipe) -> None:
    """Send until it cannot go on.  Raises PipeEnded."""
    message = memoryview(bytearray(pipe.headroom + 65536))
    for _ in range(FULL // 65536):
        pipe.send(message)


def test_messages_of_every_size_arrive_whole_and_in_order(pair: Pair) -> None:
    one, other = pair
    sizes = (1, 4, 125, 126, 127, 8191, 8192, 8193, 65535, 65536, MAX_MESSAGE - 1, MAX_MESSAGE)
    messages = [os.urandom(size) for size in sizes]
    sending = Background(lambda: [send_bytes(one, m) for m in messages])
    for message in messages:
        assert other.recv() == message
    sending.result()


def test_both_directions_carry_bulk_at_once(pair: Pair) -> None:
    messages = [os.urandom(100_000 + i) for i in range(80)]
    expected = hashlib.sha256(b"".join(messages)).digest()

    def receive(pipe: Pipe) -> bytes:
        digest = hashlib.sha256()
        for _ in messages:
            digest.update(pipe.recv())
        return digest.digest()

    def send(pipe: Pipe) -> None:
        for message in messages:
            send_bytes(pipe, message)

    sending = [Background(lambda pipe=pipe: send(pipe)) for pipe in pair]
    receiving = [Background(lambda pipe=pipe: receive(pipe)) for pipe in pair]
    assert [r.result() for r in receiving] == [expected, expected]
    for s in sending:
        s.result()


def test_a_buffer_may_be_used_again_as_soon_as_it_was_sent(pair: Pair) -> None:
    one, other = pair
    buffer = memoryview(bytearray(one.headroom + 1000))
    for value in range(10):
        buffer[:] = bytes([value]) * len(buffer)
        one.send(buffer)
    for value in range(10):
        assert other.recv() == bytes([value]) * 1000


def test_what_is_sent_now_arrives_in_its_place_whatever_the_kernel_leaves(pair: Pair) -> None:
    one, other = pair
    sent = 0

    def message() -> memoryview:
        return memoryview(bytearray(one.headroom) + sent.to_bytes(4, "big") * 10_000)

    if one.transport == "memory":
        assert not one.can_send_now
        return
    taken = True
    while taken:
        wait_until(lambda: one.can_send_now, "nobody else is sending")
        taken = one.send_now(message())
        sent += 1
        assert sent < FULL // 40_000, "it says what the kernel did not take"
    assert not one.can_send_now, "what is left goes first"
    if sys.platform == "linux" and one.transport == "websocket":  # the others have windows of their own
        wait_until(lambda: one.unsent > 0, "the kernel has more than it can send")
    receiving = Background(lambda: [bytes(other.recv()[:4]) for _ in range(sent + 3)])
    one.flush()
    for _ in range(3):
        buffer = message()
        if one.can_send_now:
            if not one.send_now(buffer):
                one.flush()
        else:
            one.send(buffer)
        sent += 1
    assert receiving.result() == [number.to_bytes(4, "big") for number in range(sent)]


def test_a_received_message_may_be_written_to(pair: Pair) -> None:
    one, other = pair
    send_bytes(one, b"first")
    send_bytes(one, b"second")
    view = other.recv()
    view[:] = b"12345"
    assert other.recv() == b"second"


def test_a_message_above_the_limit_is_our_own_fault_and_harms_nothing(pair: Pair) -> None:
    one, other = pair
    with pytest.raises(LocalError):
        send_bytes(one, bytes(MAX_MESSAGE + 1))
    send_bytes(one, b"still here")
    assert other.recv() == b"still here"


def test_a_receiver_who_does_not_receive_stops_the_sender(pair: Pair) -> None:
    one, other = pair
    sending = Background(lambda: fill(one))
    assert not sending.wait(0.3)
    for _ in range(FULL // 65536):
        assert len(other.recv()) == 65536
    sending.result()


def test_close_wakes_a_blocked_receiver_at_once(pair: Pair) -> None:
    one, _ = pair
    receiving = Background(one.recv)
    assert not receiving.wait(0.05)
    started = time.monotonic()
    one.close("enough")
    error = receiving.error()
    assert time.monotonic() - started < AT_ONCE
    assert isinstance(error, PipeEnded)
    assert error.message == "enough"


def test_close_wakes_a_blocked_sender_at_once_and_does_not_block_itself(pair: Pair) -> None:
    one, _ = pair
    sending = Background(lambda: fill(one))
    assert not sending.wait(0.3)
    started = time.monotonic()
    one.close("enough")
    error = sending.error()
    assert time.monotonic() - started < AT_ONCE
    assert isinstance(error, PipeEnded)
    assert error.message == "enough"


def test_close_at_one_end_ends_the_other(pair: Pair) -> None:
    one, other = pair
    receiving = Background(other.recv)
    one.close("enough")
    assert isinstance(receiving.error(), PipeEnded)
    assert other.cause is not None
    assert "enough" not in other.cause, "our reasons are for our own log"


def test_close_wakes_a_sender_at_the_other_end(pair: Pair) -> None:
    one, other = pair
    sending = Background(lambda: fill(other))
    assert not sending.wait(0.3)
    one.close("enough")
    assert isinstance(sending.error(), PipeEnded)


def test_what_was_sent_before_the_end_is_still_received(pair: Pair) -> None:
    one, other = pair
    for number in range(5):  # few enough for TCP's first window, so that nothing waits for an ACK
        send_bytes(one, b"message %d" % number)
    one.close("done")
    with pytest.raises(PipeEnded):  # sending fails sooner or later, and must not take away what came
        fill(other)
    for number in range(5):
        assert other.recv() == b"message %d" % number
    with pytest.raises(PipeEnded):
        other.recv()


def test_the_first_cause_is_kept(pair: Pair) -> None:
    one, _ = pair
    assert one.cause is None
    one.close("first")
    one.close("second")
    assert one.cause == "first"
    for _ in range(2):
        with pytest.raises(PipeEnded, match="first"):
            one.recv()
        with pytest.raises(PipeEnded, match="first"):
            send_bytes(one, b"more")


def test_close_from_many_threads_at_once_closes_once(pair: Pair) -> None:
    one, _ = pair
    barrier = threading.Barrier(8)

    def close(number: int) -> None:
        barrier.wait()
        one.close(f"thread {number}")

    for closing in [Background(lambda number=number: close(number)) for number in range(8)]:
        closing.result()
    assert one.cause is not None
    assert one.cause.startswith("thread")


def test_silence_ends_the_pipe_after_the_read_timeout(pair: Pair) -> None:
    one, _ = pair
    one.set_read_timeout(0.05)
    with pytest.raises(PipeEnded, match=r"nothing received for 0\.05 s"):
        one.recv()
    assert one.cause is not None


def test_a_read_timeout_can_be_lifted(pair: Pair) -> None:
    one, other = pair
    one.set_read_timeout(0.05)
    one.set_read_timeout(None)
    receiving = Background(one.recv)
    assert not receiving.wait(0.15)
    send_bytes(other, b"late")
    assert receiving.result() == b"late"


def test_a_read_timeout_does_not_touch_the_sender(pair: Pair) -> None:
    one, other = pair
    one.set_read_timeout(0.01)
    sending = Background(lambda: fill(one))
    assert not sending.wait(0.3), "the sender must block on, though the timeout has long passed"
    receiving = Background(lambda: [len(other.recv()) for _ in range(FULL // 65536)])
    sending.result()
    receiving.result()


def test_a_peer_that_takes_nothing_ends_the_pipe_for_sender_and_receiver(pair: Pair) -> None:
    one, _ = pair
    one.set_write_timeout(0.4)
    receiving = Background(one.recv)
    sending = Background(lambda: fill(one))
    for error in (sending.error(), receiving.error()):
        assert isinstance(error, PipeEnded)
        assert error.message == "nothing could be sent for 0.4 s"
    assert one.cause == "nothing could be sent for 0.4 s"


def test_a_write_timeout_can_be_lifted_and_does_not_touch_the_receiver(pair: Pair) -> None:
    one, other = pair
    one.set_write_timeout(0.05)
    receiving = Background(one.recv)
    assert not receiving.wait(0.2), "nothing was to be sent"
    one.set_write_timeout(None)
    sending = Background(lambda: fill(one))
    assert not sending.wait(0.3)
    for _ in range(FULL // 65536):
        other.recv()
    sending.result()
    send_bytes(other, b"late")
    assert receiving.result() == b"late"


def test_the_addresses_below_are_known_and_stay_so(pair: Pair) -> None:
    one, other = pair
    one.close("enough")
    if one.transport == "memory":
        assert one.addresses is None
        return
    assert one.addresses is not None
    assert other.addresses is not None
    local, remote = one.addresses
    assert (remote, local) == other.addresses
    assert local[0] == remote[0] == "127.0.0.1"
    assert local[1] != remote[1]


def test_nobody_leaves_unasked(pair: Pair) -> None:
    one, other = pair
    told: list[str] = []
    one.set_on_leaving(lambda: told.append("leaving"))
    send_bytes(other, b"hello")
    assert one.recv() == b"hello"
    other.close("enough")
    with pytest.raises(PipeEnded):
        one.recv()
    assert not told, "an end is no announcement"
