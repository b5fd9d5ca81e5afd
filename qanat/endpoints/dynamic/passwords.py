"""Who may use a proxy: users and their passwords, as a file has them.

A line is `USER:PASSWORD`; empty lines and those that begin with # are left out.  Pure: reading the file is the
configuration's.  No message holds anything of a line.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from qanat.base.errors import UsageError

MAX_PART = 255
"""Bytes of a user and of a password at most (RFC 1929 §2)."""


class Passwords:
    """Users and their passwords.  Immutable, and safe to use from any thread."""

    def __init__(self, users: Mapping[bytes, bytes]) -> None:
        """Take passwords by user."""
        self._digests = {user: _digest(password) for user, password in users.items()}

    @classmethod
    def parse(cls, text: str) -> Passwords:
        """Read the lines of a file.  Raises UsageError, which names the line by its number."""
        users: dict[bytes, bytes] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            user, colon, password = line.partition(":")
            if not colon or not user or not password:
                raise UsageError(f"has a line {number} that is not USER:PASSWORD", hint="write one user a line")
            name, secret = user.encode(), password.encode()
            if len(name) > MAX_PART or len(secret) > MAX_PART:
                raise UsageError(f"has more than {MAX_PART} bytes of a user or a password in line {number}")
            if name in users:
                raise UsageError(f"has a user of line {number} twice", hint="keep one of the lines")
            users[name] = secret
        if not users:
            raise UsageError("holds no user", hint="write lines of USER:PASSWORD into it")
        return cls(users)

    def allows(self, user: bytes, password: bytes) -> bool:
        """Return whether this is a user's password.  How long it takes tells nothing about either."""
        known = self._digests.get(user)
        equal = hmac.compare_digest(_digest(password), known or bytes(hashlib.sha256().digest_size))
        return equal and known is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Passwords) and self._digests == other._digests

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._digests)))

    def __repr__(self) -> str:
        return f"Passwords of {len(self._digests)} users"


def _digest(password: bytes) -> bytes:
    return hashlib.sha256(password).digest()
