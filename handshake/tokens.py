"""Tokens as people carry them: text with a prefix and a checksum round 32 random bytes.

Only tokens that this program made are accepted, so what one knows is always 256 bits of chance:
no password hashing is needed and nothing can be guessed offline.  `key_schedule` uses the secret; where tokens
are stored is up to the configuration.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Final

from qanat.base.errors import UsageError

PREFIX: Final = "qanat1-"
SECRET_SIZE: Final = 32
_CHECKSUM_BYTES: Final = 4
_SECRET_CHARACTERS: Final = 43
_TEXT_LENGTH: Final = len(PREFIX) + _SECRET_CHARACTERS + 1 + 6


def generate_token() -> str:
    """Make a random token, as text; the only way by which tokens are made."""
    return format_token(os.urandom(SECRET_SIZE))


def format_token(secret: bytes) -> str:
    """Return the text of the 32-byte `secret` (docs/PROTOCOL.md, Tokens)."""
    return f"{PREFIX}{_base64url(secret)}-{_base64url(_checksum(secret))}"


def parse_token(text: str) -> bytes:
    """Return the 32-byte secret in `text`, which must be exactly what `format_token` writes.

    Raises UsageError, whose message never repeats any part of the token.
    """
    hint = "a token is made by `tunnel.py token` and looks like qanat1-…; copy the whole line"
    if not text.startswith(PREFIX):
        raise UsageError("this is not a token: it does not begin with qanat1-", hint=hint)
    if len(text) != _TEXT_LENGTH:
        raise UsageError(f"a token has {_TEXT_LENGTH} characters and this one has {len(text)}", hint=hint)
    # By position, since "-" is also a digit of base64url.
    body = text[len(PREFIX) : len(PREFIX) + _SECRET_CHARACTERS]
    try:
        secret = base64.b64decode(body + "=", altchars=b"-_", validate=True)
    except ValueError:
        secret = b""
    # Comparing the whole text also refuses the other spellings that base64 has for the same bytes.
    if len(secret) != SECRET_SIZE or format_token(secret) != text:
        raise UsageError("the token's checksum does not hold, so a character of it was changed", hint=hint)
    return secret


def token_fingerprint(secret: bytes) -> str:
    """Return 16 hexadecimal digits by which people and logs know the token of `secret`; they tell nothing about it."""
    return hashlib.sha256(b"qanat/1 token fingerprint" + secret).hexdigest()[:16]


def _checksum(secret: bytes) -> bytes:
    return hashlib.sha256(b"qanat/1 token text" + secret).digest()[:_CHECKSUM_BYTES]


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
