"""Whether an application's machine has vanished while something was on its way to it.

TCP keepalive asks only while nothing is on its way.  What is sent to a machine that is gone the kernel sends again for
about 15 minutes, and TCP_USER_TIMEOUT, which would end that sooner, also ends a connection whose application pauses:
but for 5.1 to 5.10, Linux counts on from the first probe of a closed window though every probe is answered
(`icsk_probes_tstamp`, net/ipv4/tcp_timer.c; seen on 6.18).  So we look ourselves, at what was acknowledged: a machine
whose application does not read answers the probes, and one that has vanished answers nothing.

`qanat.session.joined_streams` looks at each of its streams now and then, through `qanat.endpoints.pump`.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

from qanat.base.sockets import unacknowledged

UNANSWERED = 2
"""Times in turn that something was sent again, or a probe was, before a machine may count as vanished: the answer to
one may be on its way."""

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_FIELDS = struct.Struct("@2x2B52xI")  # tcpi_retransmits, tcpi_probes, tcpi_last_ack_recv in ms: linux/tcp.h
ASKS_THE_KERNEL = _TCP_INFO is not None


class Acknowledgments:
    """What has become of what was sent on one socket, from look to look.  For one thread at a time."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: float | None = None  # when something was first seen on its way, if it was at every look since

    def silence(self, sock: socket.socket) -> float | None:
        """Return the seconds for which nothing was acknowledged, with something on its way; None when nothing is.

        0 while the machine answers, and where the system does not tell.  Does not block.
        """
        if _TCP_INFO is None or not unacknowledged(sock):
            self._since = None
            return None
        now = time.monotonic()
        if self._since is None:
            self._since = now
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _FIELDS.size)
        except OSError:  # no TCP, or gone
            return 0.0
        retransmits, probes, since_ack = _FIELDS.unpack(info)
        if retransmits + probes < UNANSWERED:
            return 0.0
        return float(min(now - self._since, since_ack / 1000))
