"""What each request of a client's says of itself and of the pipe: tokens, and the key that makes them the client's.

Not thread-safe: what ends in `_locked` needs the pipe's lock.
"""

from __future__ import annotations

from dataclasses import replace

from qanat.transports.split.receiving import Receiving
from qanat.transports.split.segments import Welcome
from qanat.transports.split.sequence import Outgoing
from qanat.transports.split.token import Carrier, Kind, Token, digest_of


class Numbering:
    """One pipe's."""

    def __init__(self, welcome: Welcome, carrier: Carrier, receiving: Receiving, outgoing: Outgoing) -> None:
        """Tokens travel in `carrier`, and say what `receiving` and `outgoing` have come to."""
        self.asking: set[int] = set()
        """The numbers of requests for bytes that run."""
        self.told_limit = 0
        """Up to where the server knows that it may send."""
        self._id = welcome.id
        self._early_key = welcome.secret
        self._key: bytes | None = None  # since the handshake
        self._carrier = carrier
        self._incoming = receiving.incoming
        self._outgoing = outgoing
        self._number = 0

    def bind_locked(self, key: bytes) -> None:
        """Make tokens with `key` from now on."""
        self._key = key

    def token_locked(
        self, kind: Kind, *, at: int = 0, size: int = 0, wait: float = 0.0, ended: bool, streams: bool
    ) -> Token:
        """Return the next request's, for `carried`; `wait` is in seconds."""
        self._number += 1
        if kind is not Kind.UP:
            self.asking.add(self._number)
        self.told_limit = self._incoming.limit
        return Token(
            id=self._id,
            kind=kind,
            number=self._number,
            acknowledged=self._incoming.expected,
            limit=self._outgoing.end if ended else self._incoming.limit,
            oldest=min(self.asking, default=self._number),
            at=at,
            size=size,
            wait=round(wait * 1000),
            early=self._key is None,
            ended=ended,
            streams=streams,
        )

    def carried(self, token: Token, data: bytes | memoryview = b"") -> list[tuple[Carrier, str]]:
        """Return what a request with these bytes says, and where.  Needs no lock: a digest takes its time."""
        key = self._early_key if token.early or self._key is None else self._key
        if data:
            token = replace(token, digest=digest_of(data))
        return [(self._carrier, token.encode(key))]
