"""What the user of a proxy asks for, and what the three protocols have in common.

Each protocol is a machine without I/O in a file of its own: bytes in, bytes out, and at last an `Asked`.  Pure.
`qanat.endpoints.dynamic.connection` has the sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from qanat.base.addresses import split_host_port
from qanat.base.errors import UsageError
from qanat.mux.frames import Reason


class Command(Enum):
    """What a proxy should do with the target."""

    CONNECT = "connect"
    REQUEST = "request"
    """Answer HTTP requests by it: what passes goes through the machine (`qanat.endpoints.dynamic.http_proxy`)."""
    ASSOCIATE = "associate"
    """Carry UDP to whatever each datagram names (RFC 1928 §7)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Where a user would like to go.  `host` is a name or a literal, as he wrote it, and not checked yet."""

    host: str
    port: int
    command: Command = Command.CONNECT


class ProxyMachine(Protocol):
    """One connection's protocol, as far as the target's answer.  Never raises for what the user sends."""

    problem: str
    """Why nothing can come of this connection, for the log; "" while something can."""

    def receive(self, data: bytes) -> Asked | None:
        """Take what came; return what is asked for once that is known.  Not to be called after that."""

    def take_output(self) -> bytes:
        """Return what has to be sent now; with a `problem` these are the last bytes."""

    def take_rest(self) -> bytes:
        """Return what came behind the request, which is for the target."""

    def accepted(self, address: str) -> bytes:
        """Return the answer that the target was reached, at `address`."""

    def refused(self, reason: Reason, text: str) -> bytes:
        """Return the answer that it was not."""


def split_address(address: str) -> tuple[str, int]:
    """Return the host and port of an address in the peer's words; ("", 0) for anything else."""
    try:
        host, port = split_host_port(address)
    except UsageError:
        return "", 0
    return (host, int(port)) if port.isdecimal() and int(port) <= 65535 else ("", 0)
