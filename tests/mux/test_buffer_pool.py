"""Promises of qanat.mux.buffer_pool: buffers are used again, and those that nobody needs any more are dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qanat.handshake.sealed import MAX_PLAINTEXT
from qanat.mux.buffer_pool import BUFFER_FRONT, BUFFER_PAYLOAD, KEEP_FREE, LARGE_PAYLOAD, Buffer, BufferPool


def taken(pool: BufferPool, count: int) -> list[Buffer]:
    buffers = [pool.take() for _ in range(count)]
    assert None not in buffers
    return [buffer for buffer in buffers if buffer is not None]


def test_a_pool_that_is_not_used_drops_its_buffers() -> None:
    pool = BufferPool(KEEP_FREE * BUFFER_PAYLOAD)
    for buffer in taken(pool, 4):
        pool.give_back(buffer)
    assert pool.shrink(), "they were needed since the last time"
    assert not pool.shrink()
    buffer = pool.take()
    assert buffer is not None
    assert pool.lent == 1


def test_a_pool_that_is_used_keeps_as_many_as_it_needs() -> None:
    pool = BufferPool(KEEP_FREE * BUFFER_PAYLOAD)
    first = taken(pool, 4)
    for buffer in first:
        pool.give_back(buffer)
    pool.shrink()
    used = taken(pool, 3)
    for buffer in used:
        pool.give_back(buffer)
    assert pool.shrink(), "three are left"
    again = taken(pool, 4)
    assert sum(buffer in first for buffer in again) == 3


def test_a_large_buffer_fills_a_record_and_takes_two_places() -> None:
    assert BUFFER_FRONT + LARGE_PAYLOAD <= MAX_PLAINTEXT
    pool = BufferPool(3 * BUFFER_PAYLOAD)
    large = pool.take(large=True)
    assert large is not None
    assert len(large.payload) == LARGE_PAYLOAD
    assert pool.lent == 2
    last = pool.take(large=True)
    assert last is not None
    assert len(last.payload) == BUFFER_PAYLOAD, "one place is left"
    assert pool.exhausted
    assert pool.take() is None
    pool.give_back(large)
    assert pool.take(large=True) is large


@given(st.lists(st.sampled_from(["usual", "large", "back", "shrink"]), max_size=300), st.integers(1, 2 * KEEP_FREE))
def test_no_more_memory_exists_than_the_limit_whatever_sizes_are_asked_for(steps: list[str], places: int) -> None:
    pool = BufferPool(places * BUFFER_PAYLOAD)
    lent: list[Buffer] = []
    for step in steps:
        if step == "back":
            if lent:
                pool.give_back(lent.pop(0))
        elif step == "shrink":
            pool.shrink()
        else:
            taken = pool.take(large=step == "large")
            assert (taken is None) == (sum(buffer.places for buffer in lent) >= pool.capacity)
            if taken is not None:
                lent.append(taken)
        assert pool.lent == sum(buffer.places for buffer in lent) <= pool.capacity
        free = [*pool._usual.free, *pool._large.free]
        assert pool._free == sum(buffer.places for buffer in free) <= KEEP_FREE
        assert pool.lent + pool._free <= pool.capacity


def test_when_the_size_changes_buffers_are_soon_used_again() -> None:
    pool = BufferPool(4 * KEEP_FREE * BUFFER_PAYLOAD)
    for large in (True, False, True):
        for _ in range(2):
            buffers = [pool.take(large=large) for _ in range(KEEP_FREE // 2)]
            for buffer in buffers:
                assert buffer is not None
                pool.give_back(buffer)
        again = pool.take(large=large)
        assert again is buffers[-1]
        pool.give_back(again)
