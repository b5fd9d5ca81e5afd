"""Promises about memory that was given back: threads that come and go do not keep it several times over."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
