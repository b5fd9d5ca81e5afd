"""Promises of the two ends of a sequence: every byte once and in order, whatever the path does to the parts."""

from __future__ import annotations

import random
import tracemalloc

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


@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 3)), min_size=1, max_size=40), st.integers())
def test_bytes_are_the_same_however_they_were_given_and_taken(steps: list[tuple[int, int]], seed: int) -> None:
    chance = random.Random(seed)
    outgoing, everything, found = Outgoing(), bytearray(), bytearray()
    outgoing.limit = 1 << 40
    for size, what in steps:
        if what <= 1:
            data = chance.randbytes(size if what else size % 50)
            outgoing.append(data)
            everything += data
        elif what == 2:
            part = outgoing.take(size)
            if part is not None:
                at, content = part
                assert content == everything[at : at + len(content)]
                if at == len(found):
                    found += content
        else:
            if chance.random() < 0.3:
                outgoing.lose(outgoing.acknowledged, outgoing.next)
            outgoing.acknowledge(chance.randint(outgoing.acknowledged, outgoing.next), 0)
        assert outgoing.end == len(everything)
        assert outgoing.kept == len(everything) - outgoing.acknowledged
    outgoing.rewind()
    again = bytearray()
    while (part := outgoing.take(100_000)) is not None:
        again += part[1]
    assert again == everything[outgoing.acknowledged :]


def test_what_is_acknowledged_is_not_kept() -> None:
    outgoing = Outgoing()
    outgoing.limit = 1 << 40
    tracemalloc.start()
    try:
        for _ in range(200):
            outgoing.append(bytes(20_000))
            outgoing.take(20_000)
            outgoing.acknowledge(outgoing.next, 0)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 10 * 20_000


def test_small_pieces_are_joined_but_not_to_what_was_taken() -> None:
    outgoing = Outgoing()
    outgoing.limit = 1 << 40
    outgoing.append(b"ab")
    first = outgoing.take(10)
    for letter in (b"c", b"d", b"e"):
        outgoing.append(letter)
    assert outgoing.take(10) == (2, b"cde")
    assert first == (0, b"ab")


@pytest.mark.parametrize("gap", [0, 1])
def test_tiny_pieces_of_large_buffers_cost_little_more_than_their_bytes(gap: int) -> None:
    incoming = Incoming(WINDOW)
    tracemalloc.start()
    try:
        for at in range(20_000):
            buffer = memoryview(bytearray(64 * 1024))
            incoming.add(gap + at * (1 + gap), buffer[at % 1000 : at % 1000 + 1])
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 2 * WINDOW


def test_bytes_that_come_over_and_over_behind_a_gap_are_bounded() -> None:
    incoming = Incoming(WINDOW)
    tracemalloc.start()
    try:
        for at in range(1, 500):
            incoming.add(at, memoryview(bytearray(WINDOW // 2)))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 3 * WINDOW
    assert incoming.add(0, memoryview(b"\0"))
    assert incoming.expected >= WINDOW // 2
