"""The tree of errors, whole, in one file.

Two kinds meet at every boundary: what the *peer* did wrong (`ProtocolError`) and what the *path*
did (`TransportError`).  `LocalError` is a fault in this program: a call that the state does not
allow.  Library and operating-system errors are mapped to these once, at the edge where they
appear.  A message says what happened and to whom; `hint` says what to do next.  Neither ever holds
a token, a key or payload.
"""

from __future__ import annotations


class QanatError(Exception):
    """Root of all errors that this program raises on purpose.

    `hint` is one sentence that tells a person what to do next, or "" when nothing can be done.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(QanatError):
    """A command line or configuration that cannot work: exit code 2."""


class LocalError(QanatError):
    """A call that this object's state does not allow: a fault in this program, not of the peer."""


class ProtocolError(QanatError):
    """The peer sent what docs/PROTOCOL.md does not allow.  Ends the pipe it came on."""


class HandshakeError(ProtocolError):
    """A handshake message was malformed, out of order, too long or too late."""


class RefusedError(QanatError):
    """The other end is not who it should be, or will not have us: exit code 3 before a success.

    `final` is false when the refusal cannot be verified (anything on the path may have forged it),
    or may pass by itself; the client then backs off and tries again.
    """

    def __init__(self, message: str, *, hint: str = "", final: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.final = final


class TransportError(QanatError):
    """A pipe could not be made, or has ended, for a reason on the path.

    `retry_after` is the number of seconds that the other end asked us to wait, or None.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class NoThread(QanatError):
    """The system gives this process no further thread.  Passes by itself when others end."""

    def __init__(self) -> None:
        super().__init__("a new thread could not be started", hint="raise the limit on threads (ulimit -u, TasksMax)")


class PipeEnded(TransportError):
    """The pipe is over: the peer closed it, the network cut it, or we closed it ourselves."""


class EndpointError(QanatError):
    """A stream's target could not be reached, or its socket failed; `code` names why (qanat.mux.frames.Reason)."""

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class StreamReset(QanatError):
    """This stream was ended abruptly by either end; `code` names why (qanat.mux.frames.Reason)."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class SessionEnded(QanatError):
    """The session that carried this stream is over, so no new stream can be opened on it."""
