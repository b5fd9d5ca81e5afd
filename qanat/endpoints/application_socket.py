"""What is set on every socket of an application, at both ends of the tunnel, before its first byte.

An application's machine that vanishes (its cable pulled, its NAT's memory lost) says nothing, and a quiet stream would
stay open forever, so TCP keepalive probes it.  Urgent data (telnet's Synch, FTP's ABOR) stays in its place among the
other bytes, as TCP itself carries it; without that its last byte would be lost.

Used by `tcp`, for connected sockets and for listening ones, whose accepted sockets inherit the options on Linux, so
that a connection which is accepted costs no call for any of them (`PreparedSocket`).
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field

from qanat.base.sockets import set_no_delay, set_reset_on_close
from qanat.mux.frames import Reason

_KEEP_IDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the second is macOS's name
_KEEP_INTERVAL = getattr(socket, "TCP_KEEPINTVL", None)
_KEEP_COUNT = getattr(socket, "TCP_KEEPCNT", None)

GONE = "the application's machine no longer answers: {}"
_VANISHED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
"""What the kernel reports when probes or data have gone unanswered: the last word that it heard of the path."""


@dataclass(frozen=True, slots=True)
class ApplicationKeepalive:
    """When an application's machine that is silent counts as vanished: with these defaults, after two minutes."""

    idle: float = 60.0
    """Seconds of silence until the first probe; 0 never asks."""
    interval: float = 15.0
    """Seconds between probes."""
    count: int = 4
    """Probes without an answer after which the connection is over."""
    unacknowledged: float = 120.0
    """Seconds without an acknowledgment of what was sent (`qanat.endpoints.vanished`); 0 leaves that to the kernel."""

    _options: tuple[tuple[int, int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make once what is set on each socket."""
        times = ((_KEEP_IDLE, round(self.idle)), (_KEEP_INTERVAL, round(self.interval)), (_KEEP_COUNT, self.count))
        options = [(socket.IPPROTO_TCP, name, max(1, value)) for name, value in times if name is not None]
        on = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        object.__setattr__(self, "_options", (on, *options) if self.idle else ())

    def configure(self, sock: socket.socket) -> None:
        """Set all options of an application's socket that is about to connect or listen.  Does not block."""
        set_reset_on_close(sock, True)
        set_no_delay(sock)
        set_option = sock.setsockopt
        try:  # noqa: SIM105 - for each connection
            set_option(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        except OSError:  # a system without it
            pass
        try:
            for level, name, value in self._options:
                set_option(level, name, value)
        except OSError:  # likewise: keepalive is no condition for a connection
            pass


DEFAULT_KEEPALIVE = ApplicationKeepalive()


class PreparedSocket(socket.socket):
    """A blocking socket that has all options already, since the listening one that it was accepted from has them."""

    __slots__ = ()


def reason_for(error: OSError) -> tuple[Reason, str]:
    """Return why a stream is reset whose socket failed with `error`, as a code and in words."""
    words = error.strerror or type(error).__name__
    if error.errno in _VANISHED:
        return Reason.UNREACHABLE, GONE.format(words)
    return Reason.CANCELED, words
