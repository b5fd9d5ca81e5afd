"""How a pipe ended that has carried a lane."""

from __future__ import annotations

from dataclasses import dataclass

from qanat.handshake.hello import Close


@dataclass(frozen=True, slots=True)
class PipeResult:
    """How a pipe ended: with the peer's sealed CLOSE (`close`), or, by this end or a cut, without one.

    `cause` says it for people.  `fault` is set when the peer broke the protocol inside the sealed channel, or this
    program failed: there is no point in going on over another pipe.
    """

    cause: str
    close: Close | None = None
    fault: bool = False
