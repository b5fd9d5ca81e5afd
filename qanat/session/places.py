"""Where a pipe leads and what became of one, for people: what a session remembers beside its lanes.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from operator import add
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class PipePlace:
    """Over which transport a lane's pipe goes, and where."""

    transport: str
    address: str
    """The other end: a client's address at a server, the URL at a client."""
    via: str = ""
    """The proxy on the way, where this end knows of one."""


@dataclass(frozen=True, slots=True)
class PastFailure:
    """What went wrong last, and when, in seconds of Unix time."""

    at: float
    text: str


class Tally(NamedTuple):
    """What lanes that are over have carried, in bytes, and their streams, recoveries and replayed bytes."""

    received: int = 0
    sent: int = 0
    streams: int = 0
    recoveries: int = 0
    replayed: int = 0

    def plus(self, other: Tally) -> Tally:
        """Return both together."""
        return other if self is NOTHING else Tally(*map(add, self, other))


NOTHING = Tally()
