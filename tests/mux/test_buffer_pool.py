"""Promises of qanat.mux.buffer_pool: buffers are used again, and those that nobody needs any more are dropped."""

from __future__ import annotations

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


def test_free_buffers_of_both_sizes_are_kept_within_one_bound() -> None:
    pool = BufferPool(4 * KEEP_FREE * BUFFER_PAYLOAD)
    buffers = [pool.take(large=number % 2 == 0) for number in range(KEEP_FREE)]
    for buffer in buffers:
        assert buffer is not None
        pool.give_back(buffer)
    again = [pool.take(large=number % 2 == 0) for number in range(KEEP_FREE)]
    kept = [buffer for buffer in again if any(buffer is before for before in buffers)]
    assert KEEP_FREE <= sum(buffer.places for buffer in kept if buffer is not None) <= KEEP_FREE + 1
