"""The local address that a datagram came to, on a UDP socket bound to every address: replies leave from it.

Without that the kernel chooses a reply's source by its route, and whoever asked another address of this machine drops
it.  Linux alone (IP_PKTINFO in ip(7), RFC 3542 §6.1); elsewhere replies leave from where the system likes.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Sequence

Beside = tuple[tuple[int, int, bytes], ...]
"""What goes beside a datagram: level, kind and content of each control message."""

# Not all of these have a name in every Python; linux/in.h and linux/in6.h.
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
_IPV6_RECVPKTINFO = getattr(socket, "IPV6_RECVPKTINFO", 49)
_IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", 50)
_IPV4 = struct.Struct("@I4s4s")  # interface, local address, destination in the header
_IPV6 = struct.Struct("@16sI")  # local address, interface
ROOM = socket.CMSG_SPACE(_IPV6.size) if sys.platform == "linux" else 0
"""Bytes beside each datagram that say it; 0 where the system does not."""


def request(sock: socket.socket) -> None:
    """Have the kernel say it for each datagram that comes on `sock`.  Raises OSError."""
    if not ROOM:
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def reply_from(beside: Sequence[tuple[int, int, bytes]]) -> Beside:
    """Return what goes beside a reply to a datagram that had `beside`; nothing where that does not say it.  Pure."""
    for level, kind, data in beside:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, local, _ = _IPV4.unpack_from(data)
            return ((level, kind, _IPV4.pack(0, local, bytes(4))),)
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            local, interface = _IPV6.unpack_from(data)
            # The route decides by which interface to leave, but a link-local address belongs to one.
            scoped = local[0] == 0xFE and local[1] & 0xC0 == 0x80
            return ((level, kind, _IPV6.pack(local, interface if scoped else 0)),)
    return ()
