"""Promises of qanat.mux.buffer_pool: buffers are used again, and those that nobody needs any more are dropped."""

from __future__ import annotations

from qanat.mux.buffer_pool import BUFFER_PAYLOAD, KEEP_FREE, Buffer, BufferPool


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
