"""Promises about memory that was given back: it is not kept several times over, and much of it goes to the system."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from qanat.process.allocator import (
    LOOKS_UNASKED,
    WORTH_BLOCKS,
    MemoryReturn,
    free_bytes,
    resident_bytes,
    return_memory,
    use_large_pages,
)

PROGRAM = """
import re, sys, threading
from qanat.process.allocator import limit_arenas
if sys.argv[1] == "limited":
    limit_arenas()
together = threading.Barrier(8)
def use():
    together.wait()
    kept = [bytearray(100_000) for _ in range(20)]
    together.wait()
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
# An arena is a mapping of 64 MiB of which most is only reserved.
maps = open("/proc/self/maps").read()
print(len(re.findall(r"---p 00000000 00:00 0 *$", maps, re.MULTILINE)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of its mappings in /proc")
def test_threads_share_two_arenas_instead_of_having_one_each() -> None:
    def arenas(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert arenas("limited") < arenas("as it comes")


def test_large_pages_take_what_is_in_memory_and_hardly_more() -> None:
    kept = [bytes(1000) for _ in range(20_000)]  # some pages of it, whatever else this process has
    before = resident_bytes()
    tried = use_large_pages()
    assert resident_bytes() - before <= tried / 3
    assert kept == [bytes(1000)] * 20_000


class Memory:
    """A process's memory as MemoryReturn sees it, in MB."""

    def __init__(self) -> None:
        self.free = 0
        self.resident = 50
        self.blocks = 200_000
        self.asked = 0  # for these
        self.sockets = 10
        self.trims = 0
        self.returns = MemoryReturn(
            lambda: self.sockets, lambda: self.free << 20, lambda: self.resident << 20, self._trim, self._blocks
        )

    def _blocks(self) -> int:
        self.asked += 1
        return self.blocks

    def _trim(self) -> None:
        """Return the free pages; malloc goes on to call them free."""
        self.trims += 1
        self.resident = 50

    def look(self) -> bool:
        before = self.trims
        self.returns.look()
        return self.trims > before


def test_memory_that_came_free_is_returned_once() -> None:
    memory = Memory()
    assert not memory.look()
    memory.resident = 200
    assert not memory.look(), "it is in use"
    memory.free = 150
    assert memory.look()
    assert not memory.look(), "what is free is not resident any more"


def test_memory_that_is_used_again_is_returned_again() -> None:
    memory = Memory()
    memory.free, memory.resident = 150, 200
    assert memory.look()
    memory.free, memory.resident = 0, 200
    assert not memory.look()
    memory.free = 150
    assert memory.look()
    memory.resident = 200  # used and freed between two looks
    assert memory.look()


def test_what_comes_free_soon_after_is_returned_too() -> None:
    memory = Memory()
    memory.free, memory.resident = 10, 60
    assert memory.returns.look(), "it asks for another look"
    assert memory.trims == 1
    memory.free, memory.resident = 12, 52
    assert memory.look()
    memory.free, memory.resident = 14, 52
    assert not memory.look(), "only once: a little memory is kept"


def test_memory_is_returned_when_many_of_python_s_own_blocks_came_free() -> None:
    memory = Memory()
    memory.sockets, memory.blocks = 700, 200_000 + WORTH_BLOCKS
    assert not memory.look(), "they are in use"
    memory.sockets, memory.blocks = 400, 200_001
    assert not memory.look(), "nearly all still are"
    memory.sockets, memory.blocks = 10, 200_000
    assert memory.look()
    memory.sockets = 110
    assert not memory.look(), "once"


def test_blocks_that_come_free_after_the_last_sockets_have_gone_count_too() -> None:
    memory = Memory()
    memory.sockets, memory.blocks = 700, 200_000 + 3 * WORTH_BLOCKS
    assert not memory.look()
    memory.sockets, memory.blocks = 10, 200_000 + WORTH_BLOCKS
    assert memory.look()
    memory.blocks = 200_000
    assert memory.look()


def test_python_is_not_asked_for_its_blocks_while_the_number_of_sockets_is_about_the_same() -> None:
    memory = Memory()
    for memory.sockets in (10, 99, 1, 100, 199, 1, 0, 50):
        memory.look()
    assert memory.asked == 2, "at 100 and at 0"
    for _ in range(LOOKS_UNASKED):
        memory.look()
    assert memory.asked == 3, "what goes without its sockets is found, too"


def test_a_little_memory_is_kept() -> None:
    memory = Memory()
    memory.free, memory.resident = 3, 53
    assert not memory.look()


@pytest.mark.skipif(free_bytes() is None, reason="only glibc 2.33 and later tells how much is free")
def test_malloc_tells_what_is_free_and_returns_it() -> None:
    kept = [bytearray(100_000) for _ in range(400)]
    before = free_bytes()
    del kept[:-1]  # the last one holds the end of the arena
    after = free_bytes()
    assert before is not None
    assert after is not None
    assert after - before > 30_000_000
    resident = resident_bytes()
    return_memory()
    assert resident - resident_bytes() > 20_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is returned elsewhere")
def test_what_python_keeps_for_reuse_is_freed_and_cycles_are_found_afterwards() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    gone = weakref.ref(Cycle())
    many = [(number, number, number) for number in range(2000)]
    del many
    before = sys.getallocatedblocks()
    return_memory()
    assert before - sys.getallocatedblocks() > 1500
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gone() is None
