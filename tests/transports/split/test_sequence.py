"""Promises of the two ends of a sequence: every byte once and in order, whatever the path does to the parts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import ProtocolError
from qanat.transports.pipe import MAX_UNAUTHENTICATED
from qanat.transports.split.sequence import PREFIX, Incoming, Outgoing

WINDOW = 1 << 20


def framed(*messages: bytes) -> bytes:
    return b"".join(PREFIX.pack(len(message)) + message for message in messages)


def taken(incoming: Incoming) -> list[bytes]:
    found = []
    while (message := incoming.take()) is not None:
        found.append(bytes(message))
    return found


@given(st.lists(st.binary(max_size=3000), max_size=20), st.integers(), st.integers(1, 2000))
def test_parts_that_are_cut_anywhere_doubled_and_reordered_give_the_same_messages(
    messages: list[bytes], seed: int, size: int
) -> None:
    chance = random.Random(seed)
    data = framed(*messages)
    parts = [(at, data[at : at + chance.randint(1, 2 * size)]) for at in range(0, len(data), size)]
    parts += chance.sample(parts, len(parts) // 2)
    parts += [(at, data[at : at + size]) for at in range(0, len(data), size)]
    chance.shuffle(parts)
    incoming, found = Incoming(WINDOW), []
    for at, part in parts:
        incoming.add(at, memoryview(bytearray(part)))
        found += taken(incoming)
    assert found == messages
    assert incoming.expected == len(data)


def test_bytes_beyond_the_window_are_an_error_and_taken_messages_move_it() -> None:
    incoming = Incoming(100)
    incoming.add(0, memoryview(bytearray(framed(bytes(96)))))
    with pytest.raises(ProtocolError):
        incoming.add(100, memoryview(b"x"))
    assert len(taken(incoming)[0]) == 96
    assert incoming.limit == 200
    incoming.add(100, memoryview(b"x"))


def test_a_large_message_before_authentication_is_an_error_when_its_length_is_known() -> None:
    incoming = Incoming(WINDOW)
    incoming.unauthenticated = True
    incoming.add(0, memoryview(PREFIX.pack(MAX_UNAUTHENTICATED + 1)))
    assert incoming.has_message
    with pytest.raises(ProtocolError):
        incoming.take()


def test_what_was_lost_is_sent_again_first_and_only_as_far_as_it_is_not_acknowledged() -> None:
    outgoing = Outgoing()
    outgoing.limit = 1000
    outgoing.append(bytes(range(100)))
    assert outgoing.take(40) == (0, bytes(range(40)))
    assert outgoing.take(40) == (40, bytes(range(40, 80)))
    outgoing.lose(0, 40)
    outgoing.acknowledge(10, 1000)
    assert outgoing.take(20) == (10, bytes(range(10, 30)))
    assert outgoing.take(1000) == (30, bytes(range(30, 40)))
    assert outgoing.take(1000) == (80, bytes(range(80, 100)))
    assert outgoing.take(1000) is None
    outgoing.rewind()
    assert outgoing.take(1000) == (10, bytes(range(10, 100)))


def test_nothing_new_is_sent_beyond_the_limit_of_the_other_end() -> None:
    outgoing = Outgoing()
    outgoing.append(bytes(100))
    assert outgoing.take(100) is None
    outgoing.acknowledge(0, 60)
    assert outgoing.take(100) == (0, bytes(60))
    assert outgoing.unsent == 40


def test_an_acknowledgment_of_what_was_never_sent_is_an_error() -> None:
    outgoing = Outgoing()
    outgoing.append(bytes(100))
    with pytest.raises(ProtocolError):
        outgoing.acknowledge(1, 100)


@given(st.binary(min_size=1, max_size=5000), st.integers())
def test_both_ends_together_carry_every_byte_over_a_path_that_loses_half(data: bytes, seed: int) -> None:
    chance = random.Random(seed)
    outgoing, incoming = Outgoing(), Incoming(700)
    outgoing.append(
        framed(data) if len(data) <= 600 else framed(*[data[i : i + 600] for i in range(0, len(data), 600)])
    )
    outgoing.limit = incoming.limit
    found = b""
    while outgoing.kept:
        part = outgoing.take(chance.randint(1, 200))
        if part is None:
            outgoing.rewind()
            part = outgoing.take(200)
        if part is not None and chance.random() < 0.5:
            incoming.add(part[0], memoryview(bytearray(part[1])))
            found += b"".join(taken(incoming))
        if chance.random() < 0.5:
            outgoing.acknowledge(incoming.expected, incoming.limit)
    assert found == data
