"""Whether the server's bytes come in one answer that goes on, and for how long the path lets one.

Packets pass everywhere, so they come first; a streamed answer is tried beside them, and takes their place once its
beginning has come before its end.  Where it is cut over and over, or held back, packets it is again.  Pure, and not
thread-safe: the pipe's lock guards it.
"""

from __future__ import annotations

import math

FILLER, MIN_FILLER = 8.0, 2.0
"""Seconds without bytes after which the server puts some without content into a streamed answer: at first, and at
least on a path that cuts silence sooner."""
FIRST_LIFE, MIN_LIFE = 300.0, 5.0
"""Seconds after which another streamed answer takes the place of one: at first, and at least where it is cut sooner."""
SOON = 1.0
"""Seconds, beyond some round trips, within which the beginning of a streamed answer has to come."""
AGAIN = 10.0
"""Seconds until a streamed answer is tried again on a path that has let one through before."""
_MOST_SHORT = 2
"""How often in turn one may be cut at once until packets are better."""


class StreamForm:
    """One pipe's.  Times are seconds, of any clock that rises."""

    def __init__(self) -> None:
        self.streamed = False
        """Whether bytes come in a streamed answer."""
        self.filler = FILLER
        """After how long without bytes the server should say something in it."""
        self.life = FIRST_LIFE
        """After how long another one should take its place."""
        self._ever = False  # one has gone on before
        self._short = 0  # of those that did, how many in turn were cut at once
        self._try_at = math.inf

    def heard(self) -> bool:
        """Note that the beginning of one has come; return whether that is new."""
        new = not self.streamed
        self.streamed = self._ever = True
        return new

    def held_back(self, now: float) -> None:
        """Note that nothing of one has come in time."""
        self.streamed = False
        self._try_at = now + AGAIN if self._ever else math.inf

    def cut(self, silent: float, lived: float, now: float) -> bool:
        """Note that one which had gone on was cut; return whether another should follow at once.

        It had lived for `lived` seconds, and brought nothing for the last `silent` of these.
        """
        if silent >= MIN_FILLER:
            self.filler = max(MIN_FILLER, min(self.filler, 0.5 * silent))
        else:
            self.life = max(MIN_LIFE, min(self.life, 0.7 * lived))
        self._short = self._short + 1 if lived < SOON else 0
        if self._short <= _MOST_SHORT:
            return True
        self.streamed, self._try_at = False, now + AGAIN
        return False

    def take_due(self, now: float) -> bool:
        """Return, once, whether the time has come to try one again."""
        due = now >= self._try_at
        if due:
            self._try_at = math.inf
        return due
