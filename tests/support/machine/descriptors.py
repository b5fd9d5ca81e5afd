"""A process that runs out of descriptors, without opening thousands of files."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def files_limited(spare: int = 0) -> Iterator[None]:
    """Leave this process room for `spare` more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    holes = []
    limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    try:
        while (number := os.open("/dev/null", os.O_RDONLY)) < limit:
            holes.append(number)
        os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit + spare, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in holes:
            os.close(number)
