"""What `tunnel.py doctor` asks a server, and how it is answered: the words of both ends.  Pure.

A probe is a request to the tunnel's path with the header `Qanat-Probe`.  PLAIN, TRICKLE, ECHO and SIZE are answered as
HTTP; PIPE opens a pipe of the request's transport on which the server does what it is told instead of shaking hands.
A server without probes ignores the header (docs/PROTOCOL.md §6.7).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER = "qanat-probe"
"""In a request: which probe.  In an answer: VERSION, which only a server that knows probes says."""
VERSION = "1"


class Probe(enum.Enum):
    """What a request asks for."""

    PLAIN = "plain"  # an answer that says what of the request has arrived
    TRICKLE = "trickle"  # an answer whose bytes come bit by bit, as `TRICKLE_SIZES` says
    ECHO = "echo"  # an answer that begins before the request's body and says when its first bytes came
    SIZE = "size"  # an answer at once to a request that says how large its body will be
    PIPE = "pipe"  # a pipe; see `Order`

    @classmethod
    def of(cls, value: str) -> Probe | None:
        """Return the probe that a header asks for; None when it is none."""
        try:
            return cls(value.strip().lower())
        except ValueError:
            return None


TRICKLE_STEP = 0.25
"""Seconds between two parts of TRICKLE."""
TRICKLE_SIZES = (*(64,) * 12, 1024, 4096, 16_384, 32_768, 65_536)
"""Bytes of each part: first small ones, which show holding for a time, then growing ones, which show it by size."""

GREETING = b"qanat-probe 1"
"""The first message on a PIPE, from the server."""


class Order(enum.IntEnum):
    """The first byte of a client's message on a PIPE."""

    ECHO = 1  # the rest comes back
    SILENCE = 2  # u16 seconds: say nothing for so long, then send the message back
    SINK = 3  # drop the rest


MAX_MESSAGE = 1000
"""Bytes of a message on a PIPE: what an unauthenticated one may carry, and room for framing."""
MAX_MESSAGES = 64
"""Messages of ECHO on one PIPE."""
MAX_SUNK = 1600
"""Messages of SINK on one PIPE: more than 1 MiB, at which nginx's default cuts a request."""
MAX_SILENCE = 150
"""Seconds."""

_SILENCE = struct.Struct("!BH")


def silence(seconds: int) -> bytes:
    """Return the message that asks for silence."""
    return _SILENCE.pack(Order.SILENCE, seconds)


def seconds_of(message: bytes) -> int:
    """Return how long the silence is that a message asks for, at most MAX_SILENCE.  Raises ValueError."""
    try:
        _, seconds = _SILENCE.unpack(message)
    except struct.error as error:
        raise ValueError("not a message that asks for silence") from error
    return min(int(seconds), MAX_SILENCE)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What of a request has arrived at the server, as the answer to PLAIN says it: `KEY=VALUE` lines."""

    http: str
    """1.0, 1.1 or 2."""
    via: bool
    forwarded_for: bool

    def encode(self) -> str:
        """Return the answer's body."""
        return f"http={self.http}\nvia={self.via:d}\nforwarded-for={self.forwarded_for:d}\n"

    @classmethod
    def decode(cls, body: str) -> Arrived | None:
        """Return what a body says; None when it is another's."""
        values = dict(line.split("=", 1) for line in body.splitlines() if "=" in line)
        if values.get("http") not in ("1.0", "1.1", "2"):
            return None
        return cls(values["http"], values.get("via") == "1", values.get("forwarded-for") == "1")
