"""What is set on every socket of an application, at both ends of the tunnel, before its first byte.

An application's machine that vanishes (its cable pulled, its NAT's memory lost) says nothing, and a quiet stream would
stay open forever, so TCP keepalive probes it.  Urgent data (telnet's Synch, FTP's ABOR) stays in its place among the
other bytes, as TCP itself carries it; without that its last byte would be lost.

Used by `tcp`, for connected sockets and for listening ones, whose accepted sockets inherit the options.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass

from qanat.base.sockets import set_reset_on_close
from qanat.mux.frames import Reason

_KEEP_IDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the second is macOS's name
_KEEP_INTERVAL = getattr(socket, "TCP_KEEPINTVL", None)
_KEEP_COUNT = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)

_VANISHED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
"""What the kernel reports when probes or data have gone unanswered: the last word that it heard of the path."""


@dataclass(frozen=True, slots=True)
class ApplicationKeepalive:
    """When an application that is silent counts as vanished: with these defaults, after two minutes."""

    idle: float = 60.0
    """Seconds of silence until the first probe; 0 never asks."""
    interval: float = 15.0
    """Seconds between probes."""
    count: int = 4
    """Probes without an answer after which the connection is over."""
    unacknowledged: float | None = None
    """Seconds for which data may stay unacknowledged (TCP_USER_TIMEOUT); None leaves that to the kernel.

    Linux also counts data that waits because the application does not read, though its machine answers every probe
    (measured on 6.18): a paused program would lose its connection.  So it is not set unless someone asks for it, and
    data on its way to a machine that vanished is given up by the kernel, after about 15 minutes.
    """

    def configure(self, sock: socket.socket) -> None:
        """Set all options of an application's socket that is about to connect or listen.  Does not block."""
        set_reset_on_close(sock, True)
        with contextlib.suppress(OSError):  # a system without it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if self.idle:
            with contextlib.suppress(OSError):  # likewise: keepalive is no condition for a connection
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in (
                    (_KEEP_IDLE, round(self.idle)),
                    (_KEEP_INTERVAL, round(self.interval)),
                    (_KEEP_COUNT, self.count),
                ):
                    if option is not None:
                        sock.setsockopt(socket.IPPROTO_TCP, option, max(1, value))
        if self.unacknowledged is not None and _USER_TIMEOUT is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, max(1, round(self.unacknowledged * 1000)))


DEFAULT_KEEPALIVE = ApplicationKeepalive()


def reason_for(error: OSError) -> tuple[Reason, str]:
    """Return why a stream is reset whose socket failed with `error`, as a code and in words."""
    words = error.strerror or type(error).__name__
    if error.errno in _VANISHED:
        return Reason.UNREACHABLE, f"the application's machine no longer answers: {words}"
    return Reason.CANCELED, words
