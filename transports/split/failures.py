"""When requests that fail end a pipe, and how long one waits before the next.

Nothing that fails once does: that is for what fails for PATIENCE, and for a server that knows the pipe no more.  Pure,
and not thread-safe: the pipe's lock guards it.
"""

from __future__ import annotations

PATIENCE = 15.0
"""Seconds that every request may fail until the pipe has ended."""
MOST_PAUSE = 2.0
"""Seconds before the next try, at most."""
_MOST_UNKNOWN = 2
"""How often in turn the server may not know the pipe until that is believed."""


class Failures:
    """One pipe's, since a request last succeeded."""

    def __init__(self) -> None:
        self.count = 0
        """How many in turn."""
        self.since: float | None = None
        """When the first of these was."""
        self._unknown = 0

    def succeeded(self) -> bool:
        """Note that a request has succeeded; return whether others had failed before."""
        had = self.count > 0
        self.count, self.since, self._unknown = 0, None, 0
        return had

    def note(self, now: float) -> None:
        """Note another one of a pipe that has ended."""
        if self.since is None:
            self.since = now

    def failed(self, why: str, now: float, *, unknown: bool) -> str | None:
        """Note another one; return why the pipe has to end, if it has.

        `unknown` says that the server did not know the pipe.
        """
        self.count += 1
        self._unknown = self._unknown + 1 if unknown else 0
        if self.since is None:
            self.since = now
        if self._unknown >= _MOST_UNKNOWN:
            return "the server does not know this pipe any more"
        return f"requests fail for {PATIENCE:g} s: {why}" if now - self.since > PATIENCE else None

    @property
    def pause(self) -> float:
        """Seconds until the next try."""
        return min(MOST_PAUSE, 0.05 * 2 ** min(self.count, 10)) if self.count > 1 else 0.0
