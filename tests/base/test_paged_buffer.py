"""Promises of qanat.base.paged_buffer: memory is there when it is used, and goes when it is given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qanat.base.paged_buffer import PagedBuffer

MIB = 1 << 20

MEASURE = """
from qanat.base.paged_buffer import PagedBuffer
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
buffers = [PagedBuffer(1 << 20) for _ in range(64)]
made = resident() - before
for buffer in buffers:
    buffer.view[:] = bytes(1 << 20)
used = resident() - before
for buffer in buffers:
    buffer.give_back()
print(made, used, resident() - before)
"""


def test_it_is_zero_bytes_that_can_be_written() -> None:
    buffer = PagedBuffer(3 * MIB + 1)
    assert len(buffer.view) == 3 * MIB + 1
    assert not any(buffer.view[:100])
    buffer.view[-5:] = b"hello"
    assert bytes(buffer.view[-5:]) == b"hello"
    buffer.give_back()
    buffer.view[:5] = b"again"
    assert bytes(buffer.view[:5]) == b"again"


def test_what_is_kept_of_it_outlives_it() -> None:
    part = PagedBuffer(MIB).view[10:20]
    part[:] = b"0123456789"
    assert bytes(part) == b"0123456789"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_pages_in_use_cost_memory() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=60)
    made, used, given_back = map(int, run.stdout.split())
    assert made < 8 * MIB < 60 * MIB < used
    assert given_back < 8 * MIB
