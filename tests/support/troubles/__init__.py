"""Paths that a client may have to get through, each with one trouble, or all of them at once.

`TROUBLES` is the list, `trouble(name)` one of them; `Relay` with `Rules` of one's own makes others.
"""

from tests.support.troubles.catalog import ALL, PROGRAMS, RELAYS, TROUBLES, Trouble, TroubledPath
from tests.support.troubles.relay import Relay
from tests.support.troubles.rules import Portal, Rules

__all__ = ["ALL", "PROGRAMS", "Portal", "RELAYS", "Relay", "Rules", "TROUBLES", "Trouble", "TroubledPath", "trouble"]


def trouble(name: str) -> Trouble:
    """The trouble of this name."""
    return next(one for one in TROUBLES if one.name == name)
