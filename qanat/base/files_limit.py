"""How many files and sockets this process may have open, raised as far as the system allows.

Called once at start-up by the running client and server, who cap their streams to what is left.
"""

from __future__ import annotations

import contextlib
import sys

UNLIMITED = 1_048_576
"""What is reported, and asked for, where the system names no bound (also Linux's default fs.nr_open)."""

_DARWIN_MAX = 10_240
"""macOS refuses more than OPEN_MAX even when it says that the hard limit is infinite."""

if sys.platform == "win32":

    def raise_open_files_limit() -> int:
        """Sockets are not file descriptors on Windows, so there is no limit to raise."""
        return UNLIMITED

else:
    import resource

    def raise_open_files_limit() -> int:
        """Raise the soft limit of open files to the hard one; return the limit that now holds.

        Never raises and never lowers the limit: where the system refuses, the old one stays.  Does not block.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = UNLIMITED if hard == resource.RLIM_INFINITY else hard
        if soft != resource.RLIM_INFINITY and soft < wanted:
            for target in (wanted, _DARWIN_MAX):
                if soft < target <= wanted:
                    with contextlib.suppress(OSError, ValueError):
                        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
                        break
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return UNLIMITED if soft == resource.RLIM_INFINITY else soft
