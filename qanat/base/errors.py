"""The tree of errors, whole, in one file.

Two kinds meet at every boundary: what the *peer* did wrong (`ProtocolError`) and what the *path*
did (`TransportError`).  `LocalError`, alone outside the tree, is a fault in this program: a call that
the state does not allow.  Library and operating-system errors are mapped to these once, at the edge where they
appear.  A message says what failed and where; `hint` says what to do next.  Neither ever holds
a token, a key or payload.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any


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


class LocalError(Exception):
    """A call that this object's state does not allow: a fault in this program, not of the peer.

    No QanatError, so that nothing takes it for a failure of the path: it is logged with its traceback, at ERROR.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


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


class TokenRefused(RefusedError):
    """A server that has proven itself does not accept our name and token.  Nobody on the path can make this up.

    `token` is the token's fingerprint, and `server` the key with which the server has proven itself, as SPKI.
    """

    def __init__(self, message: str, *, hint: str = "", token: str = "", server: bytes = b"") -> None:
        super().__init__(message, hint=hint)
        self.token = token
        self.server = server


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


class Canceled(QanatError):
    """What was being waited for is no longer wanted: `qanat.base.cancel.Cancel` said so."""

    def __init__(self) -> None:
        super().__init__("it was stopped")


class NameLookupError(QanatError):
    """A host's name has no address that could be found in time.

    `unknown` is true when the answer is that there is none; `busy` when it was not even asked for, since this process
    looks up too many names or has no thread left.
    """

    def __init__(self, message: str, *, unknown: bool = False, busy: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.unknown = unknown
        self.busy = busy


class ConnectError(QanatError):
    """None of a host's addresses could be connected to.

    `attempts` has each that was tried, or was to be, and what the operating system said; at least one.
    """

    def __init__(self, attempts: Sequence[tuple[tuple[Any, ...], OSError]]) -> None:
        super().__init__("no address could be connected to")
        self.attempts = tuple(attempts)

    @property
    def last(self) -> OSError:
        """Return the last failure that says more than that time was up, or that one."""
        said = [error for _, error in self.attempts if error.errno != errno.ETIMEDOUT]
        return said[-1] if said else self.attempts[-1][1]


class BindError(QanatError):
    """An address cannot be listened on.  `number` is the operating system's error number, 0 when it has none."""

    def __init__(self, message: str, *, number: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.number = number


MORE_FILES = "raise the limit on open files (ulimit -n, LimitNOFILE)"
"""What to do about EMFILE."""


class OutOfFiles(QanatError):
    """The system has no descriptor, or no memory, for one more connection.  Passes by itself when others end."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error), hint=MORE_FILES)


class PipeEnded(TransportError):
    """The pipe is over: the peer closed it, the network cut it, or we closed it ourselves."""


class EndpointError(QanatError):
    """A stream's target could not be reached, or its socket failed; `code` names why (qanat.mux.frames.Reason).

    The other end is told the message.  `log_text` is for the log at this end, which may have more: by default the
    message and the hint.  `closer_code` is for an end that knows more reasons than those of the first version.
    """

    def __init__(
        self, message: str, *, code: int, hint: str = "", log_text: str = "", closer_code: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.closer_code = code if closer_code is None else closer_code
        self.log_text = log_text or str(self)


class StreamReset(QanatError):
    """This stream was ended abruptly by either end; `code` names why (qanat.mux.frames.Reason)."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class WouldBlock(QanatError):
    """What was asked for without waiting cannot be done at once.  Ask again, and wait."""

    def __init__(self) -> None:
        super().__init__("it would have to wait")


class SessionEnded(QanatError):
    """The session that carried this stream is over, so no new stream can be opened on it."""
